"""Runs of jobs: hold the lease, give the missing units of work to an executor, sum up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from actlas.jobs import logs
from actlas.jobs.executors import select
from actlas.jobs.formatting import (
    command,
    count,
    counted,
    duration,
    is_are,
    n_bytes,
    numbered,
    plural,
    ranges,
)
from actlas.jobs.monitor.progress import PlainProgress, display
from actlas.jobs.monitor.run_stats import RunStats
from actlas.jobs.monitor.run_summary import stage_line
from actlas.jobs.run.outcome import Outcome, joined
from actlas.jobs.run.work import Work, extraction, pooling
from actlas.jobs.run.worker import open_pooler, open_worker
from actlas.jobs.scheduler.faults import FaultBudget, Quarantined
from actlas.jobs.scheduler.protocols import Job, MakeWorker
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.terminal import echo
from actlas.pipeline.options import RunOptions
from actlas.store.errors import (
    EXIT_DAMAGE,
    EXIT_DONE,
    EXIT_QUARANTINE,
    EXIT_RESUME,
    RunFaultError,
)
from actlas.store.ledger import lease
from actlas.store.ledger.finished import note_finished
from actlas.store.ledger.job_kinds import kind_of
from actlas.store.ledger.receipts import EXTRACT, POOLED

if TYPE_CHECKING:
    from actlas.store.read.reader import StoreReader

MAX_SHARE = 1.05
"""The largest speed that is reported, as a share of the bare forward pass's. A larger share only
means that other processes were busy while the bare forward pass was measured."""


def run_extraction(
    store: StoreReader,
    run: RunOptions,
    make_worker: MakeWorker = open_worker,
    make_pooler: MakeWorker = open_pooler,
) -> Outcome:
    """Extract the missing shards of a store. If none is missing, only that is recorded, once.

    If a store has rows for tokens and pooled rows, the pooled rows are extracted second, by a
    forward pass of their own.

    Parameters
    ----------
    store : StoreReader
        The store.
    run : RunOptions
        Executor, workers, device, budgets.
    make_worker, make_pooler : callable
        Open a worker for shards of tokens, and for shards of documents.

    Raises
    ------
    LeaseHeldError
        Another driver works on this store.
    ActlasError
        The error that stopped the run, for which no shard is to blame.
    """
    outcomes: list[Outcome] = []
    for job in store.jobs:
        work, make = extraction(store), make_worker
        if job == POOLED:
            work, make = pooling(store), make_pooler
        if outcomes and outcomes[-1].stopped and work.units.missing():
            state = f"stopped before {work.doing}"
            again = "run the same command again"
            signal = outcomes[-1].signal
            outcomes.append(Outcome(EXIT_RESUME, state, next=again, signal=signal))
            break
        outcomes.append(run_work(store, work, run, make))
        if outcomes[-1].exit_code == EXIT_RESUME:
            break
    return joined(outcomes)


def run_work(store: StoreReader, work: Work, run: RunOptions, make_worker: MakeWorker) -> Outcome:
    """Do the missing units of a job. If none is missing, only that is recorded, once.

    Parameters
    ----------
    store : StoreReader
        The store.
    work : Work
        The job.
    run : RunOptions
        Executor, workers, device, budgets.
    make_worker : callable
        Opens a worker, in the worker's own process.

    Raises
    ------
    LeaseHeldError
        Another driver works on this store.
    ActlasError
        The error that stopped the run, for which no unit is to blame.
    """
    floor_s = max(run.deadline_floor_s, work.least_deadline_s)
    run = run.model_copy(update={"deadline_floor_s": floor_s})
    budget = FaultBudget(store.objects, work.job, run)
    missing = work.units.missing()
    kept_out = set() if run.retry_quarantined else set(budget.quarantined())
    if not set(missing) - kept_out:
        _note_finished(store, work)
        return _outcome(store, work, budget, _stats(work, missing), stopped=False)
    state = {"job": work.job}
    with lease.hold(store.objects, log=on_stderr, run_state=lambda: state) as held:
        log = logs.start(store.path, "driver")
        try:
            n_swept = store.objects.sweep()
            if n_swept:
                logs.LOGGER.info("swept", extra={"n_files": n_swept})
            if run.retry_quarantined:
                budget.release(set(budget.quarantined()) & set(work.units.ready()))
            outcome = _drive(store, work, run, make_worker, budget, held)
            _note_finished(store, work)
            logs.LOGGER.info("end", extra={"exit_code": outcome.exit_code, "line": outcome.line})
            return outcome
        finally:
            logs.end(log)


def _note_finished(store: StoreReader, work: Work) -> None:
    """Record that a job is finished, if every unit has a receipt; see ``ledger.finished``.

    The table over the units of a job of several, where it has one, names all of their receipts.
    """
    kind, subject = kind_of(work.job)
    if work.job in store.jobs:
        receipts, n_units = store.receipts(work.job), store.n_shards(work.job)
    elif kind is not None and kind.table is None and not kind.sparse:
        receipts, n_units = kind.receipts(store, subject), kind.n_units(store, subject)
    else:
        return
    if work.repairs or len(receipts.done()) < n_units:
        return
    try:
        note_finished(store.objects, store.plan_sha256, work.job, n_units)
    except RunFaultError as error:
        on_stderr(f"{work.job} is finished, which could not be recorded: {error}")


def on_stderr(text: str) -> None:
    """Print a line for the user while there is no display."""
    echo(text, err=True)


def _drive(
    store: StoreReader,
    work: Work,
    run: RunOptions,
    make_worker: MakeWorker,
    budget: FaultBudget,
    held: lease.Lease,
) -> Outcome:
    """Run a job's missing units under the lease, whose heartbeats report the run's state."""
    missing = work.units.missing()
    shards = tuple(sorted(set(missing) - set(budget.quarantined())))
    stats = _stats(work, missing)
    observer = display(stats)
    options = {"options": run.model_dump(), "n_shards": len(shards), "job": work.job}
    logs.LOGGER.info("run", extra=options)
    # A single long pass over a store keeps nothing until its end: there is nothing to drain.
    at_once = run.executor == "inline" and work.job not in store.jobs and len(shards) == 1
    stop = Stop(observer.stopping, held.lost, unit=work.unit, at_once=at_once)
    state = lambda: {"job": work.job, **stats.snapshot()}  # noqa: E731
    with stop.ending_the_process(), held.reporting(state):
        if shards:
            _introduce(work, run, observer, len(shards))
            with observer.shown():
                follows = work.units.follows(shards)
                job = Job(store.path, run, shards, make_worker, follows, work.damage_stops)
                select.named(run.executor)(job, budget, observer, stop)
        held.require()
        if n_removed := work.units.sweep():
            logs.LOGGER.info("swept", extra={"n_groups": n_removed})
        stages = None if work.repairs else stage_line(stats)
        for line in (*sorted(stats.notes), *([] if stages is None else [stages])):
            observer.log(line)
        outcome = _outcome(store, work, budget, stats, stopped=stop.signalled)
    return replace(outcome, signal=stop.signal)


def _stats(work: Work, missing: list[int]) -> RunStats:
    def n_rows(units: list[int]) -> int:
        return sum(stop - start for start, stop in map(work.units.covered, units))

    total = n_rows(work.units.ready())
    return RunStats(
        n_rows=max(1, total),
        n_rows_before=total - n_rows(missing),
        n_shards=len(missing),
        rows=work.rows,
        unit=work.unit,
    )


def _introduce(work: Work, run: RunOptions, observer: PlainProgress, n_units: int) -> None:
    n = "as many workers as fit" if run.workers == "auto" else counted(run.workers, "worker")
    workers = f", {n}" if run.executor == "ray" else ""
    n_all = work.units.n
    whole = n_units == n_all
    todo = counted(n_all, work.unit)
    if not whole:
        todo = f"{n_units:,} of {todo} (the rest is done)"
    observer.log(f"{work.doing} {todo}: {work.what} ({run.executor}{workers})")
    if work.job in (EXTRACT, POOLED) and run.executor == "inline":
        observer.log("loading the model; it is tested and timed first")


def _outcome(
    store: StoreReader, work: Work, budget: FaultBudget, stats: RunStats, *, stopped: bool
) -> Outcome:
    missing = work.units.left()
    records = budget.quarantined()
    quarantined = tuple(sorted(set(records) & set(missing)))
    lost = sorted(set(missing) - set(quarantined))
    made = _made(work, stats)
    if stopped and lost:
        left = f"{counted(len(lost), work.unit)} left"
        again = "run the same command again"
        return Outcome(EXIT_RESUME, "stopped", made, left, again, quarantined)
    if lost and work.repairs:
        state = f"{numbered(lost, work.unit)} of {store.path} {is_are(len(lost))} still damaged"
        return Outcome(EXIT_DAMAGE, state)
    if lost:
        raise AssertionError(f"{store.path}: the run ended with {work.unit}s {lost} not done")
    if quarantined:
        state = f"done except for {plural(work.unit)} in quarantine ({ranges(list(quarantined))})"
        why = f"{_tracebacks(store, work)} shows why; --retry-quarantined tries again"
        fault = _last_fault(list(map(records.__getitem__, quarantined)))
        return Outcome(EXIT_QUARANTINE, state, made, next=why, quarantined=quarantined, fault=fault)
    return Outcome(EXIT_DONE, "done", made, next=work.after)


def _last_fault(records: list[Quarantined]) -> str:
    """Return the first line of the error of the unit that was put in quarantine last."""
    last = max(records, key=lambda record: record.created_unix_s)
    return last.error.partition("\n")[0]


def _tracebacks(store: StoreReader, work: Work) -> str:
    """Return the command, or the folder, that shows the tracebacks of a job's quarantine."""
    if work.job == EXTRACT:
        return command("status", store.path)
    return f"{store.path}/ledger/quarantine/{work.job}"


def _made(work: Work, stats: RunStats) -> str:
    """Return what this run made, with its size and speed, in words."""
    row = work.rows.removesuffix("s")
    if not stats.n_rows_done:
        before = f"{counted(stats.n_rows_before, row)} x {work.per_row} were stored already"
        return before if stats.n_rows_before else "nothing"
    share = stats.share_of_bare()
    measured = share is not None and share <= MAX_SHARE
    bare = f", {share:.2f} of the bare forward pass" if measured else ""
    text = (
        f"{counted(stats.n_rows_done, row)} x {work.per_row}, {n_bytes(stats.n_bytes)} in "
        f"{duration(stats.seconds_made())} ({count(stats.mean_rate())} {work.rows}/s{bare})"
    )
    if stats.n_nonfinite:
        text += f", {counted(stats.n_nonfinite, 'value')} of NaN or infinity"
    return text
