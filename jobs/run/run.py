"""The extraction job: plan where there is none, hold the lease, run, say what was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from actlas.jobs import logs
from actlas.jobs.executors import select
from actlas.jobs.formatting import command, count, counted, duration, n_bytes, ranges
from actlas.jobs.monitor.progress import PlainProgress, display
from actlas.jobs.monitor.run_stats import RunStats
from actlas.jobs.monitor.run_summary import stage_line
from actlas.jobs.run.worker import open_pooler, open_worker
from actlas.jobs.scheduler.faults import Ledger
from actlas.jobs.scheduler.protocols import Job, MakeWorker
from actlas.jobs.scheduler.stop import Stop
from actlas.pipeline.options import RunOptions
from actlas.store.errors import EXIT_DONE, EXIT_QUARANTINE, EXIT_RESUME
from actlas.store.ledger import lease
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.store import Store

if TYPE_CHECKING:
    from actlas.store.store import Store

SOUND_SHARE = 1.05
"""Of the bare forward pass: more is no measure of anything."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    exit_code : int
        0, 3 with quarantine, 75 where it was stopped.
    line : str
        What was made and what to do next.
    stopped : bool
        Whether a signal asked for its end, though nothing of this job may be left: no other begins.
    """

    exit_code: int
    line: str
    quarantined: tuple[int, ...]
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """A job over a store's shards, as it is told to a person.

    Attributes
    ----------
    job : str
        The folder of its receipts.
    doing : str
        ``extracting``.
    what : str
        What is worked on: a model over a corpus.
    per_row : str
        What each row gets: ``6 hookpoints``.
    after : str
        The command to run next.
    rows : str
        What its rows are: ``rows``, or ``documents``.
    """

    job: str
    doing: str
    what: str
    per_row: str
    after: str
    rows: str = "rows"

    def all(self, store: Store) -> list[int]:
        """Return the shards that can be done: of what is made from rows, those that have some."""
        if self.job in (EXTRACT, POOLED):
            return list(range(store.n_shards(self.job)))
        return sorted(store.done())

    def missing(self, store: Store) -> list[int]:
        """Return the shards that can be done and are not, by a fresh listing."""
        return sorted(set(self.all(store)) - store.done(self.job))

    def stages(self, tally: RunStats) -> str | None:
        """Say where the time of a run went; None where nothing is known of it."""
        return stage_line(tally)

    def left(self, store: Store) -> list[int]:
        """Return the shards that a run left: missing still."""
        return self.missing(store)

    def unfinished(self, store: Store, shards: list[int]) -> Outcome:
        """Say that a run ended with shards neither done nor in quarantine: it must not."""
        raise AssertionError(f"{store.path}: the run ended with shards {shards} not done")


def extraction(store: Store) -> Work:
    """Return the main job."""
    plan = store.plan
    per_row = counted(len(plan.hookpoints), "hookpoint")
    what = f"{plan.model.id} over {plan.corpus.uri}, {per_row}"
    return Work(EXTRACT, "extracting", what, per_row, command("verify", store.path))


def pooling(store: Store) -> Work:
    """Return the job of pooled rows."""
    plan = store.plan
    per_row = f"{counted(len(plan.hookpoints), 'hookpoint')} x {', '.join(plan.pools)}"
    what = f"{plan.model.id} over {plan.corpus.uri}, {per_row}"
    return Work(POOLED, "pooling", what, per_row, command("verify", store.path), "documents")


def run_extraction(
    store: Store,
    run: RunOptions,
    make_worker: MakeWorker = open_worker,
    make_pooler: MakeWorker = open_pooler,
) -> Outcome:
    """Extract what is missing from a store. Where there is nothing to do, nothing is written.

    Where a store has rows for tokens and pooled ones, the pooled ones come after the others, by a
    forward pass of their own.

    Raises
    ------
    LeaseHeldError
        Another driver works on this store.
    ActlasError
        What stopped the run where no shard is to blame.
    """
    outcomes: list[Outcome] = []
    for job in store.jobs:
        work, make = extraction(store), make_worker
        if job == POOLED:
            work, make = pooling(store), make_pooler
        if outcomes and outcomes[-1].stopped and work.missing(store):
            line = f"stopped before {work.doing} -> next: run the same command again"
            outcomes.append(Outcome(EXIT_RESUME, line, (), stopped=True))
            break
        outcomes.append(run_work(store, work, run, make))
        if outcomes[-1].exit_code == EXIT_RESUME:
            break
    return _joined(outcomes)


def run_work(store: Store, work: Work, run: RunOptions, make_worker: MakeWorker) -> Outcome:
    """Do what is missing of a job. Where there is nothing to do, nothing is written.

    Raises
    ------
    LeaseHeldError
        Another driver works on this store.
    ActlasError
        What stopped the run where no shard is to blame.
    """
    ledger = Ledger(store.objects, work.job, run)
    missing = work.missing(store)
    kept_out = set() if run.retry_quarantined else set(ledger.quarantined())
    if not set(missing) - kept_out:
        return _outcome(store, work, ledger, _tally(store, work, missing), stopped=False)
    told: list[RunStats] = []  # none before the lease is held
    with lease.hold(store.objects, log=_say, run_state=lambda: _told(work, told)) as held:
        log = logs.start(store.path, "driver")
        try:
            n_swept = store.objects.sweep()
            if n_swept:
                logs.LOGGER.info("swept", extra={"n_files": n_swept})
            if run.retry_quarantined:
                ledger.release(set(ledger.quarantined()) & set(work.all(store)))
            missing = work.missing(store)
            shards = tuple(sorted(set(missing) - set(ledger.quarantined())))
            tally = _tally(store, work, missing)
            told.append(tally)
            watch = display(tally)
            options = {"options": run.model_dump(), "n_shards": len(shards), "job": work.job}
            logs.LOGGER.info("run", extra=options)
            stop = Stop(watch.stopping, held.lost)
            if shards:
                _introduce(store, work, run, watch, shards)
                with watch.shown():
                    chained = follows(store, shards) if work.job == EXTRACT else frozenset[int]()
                    job = Job(store.path, run, shards, make_worker, chained)
                    select.named(run.executor)(job, ledger, watch, stop)
            held.require()
            if (stages := work.stages(tally)) is not None:
                watch.log(stages)
            outcome = _outcome(store, work, ledger, tally, stopped=stop.signalled)
            outcome = replace(outcome, stopped=stop.signalled)
            logs.LOGGER.info("end", extra={"exit_code": outcome.exit_code, "line": outcome.line})
            return outcome
        finally:
            logs.end(log)


def _told(work: Work, tallies: Sequence[RunStats]) -> dict[str, Any]:
    """Return what goes with the lease's beat: `actlas status` reads it from any machine."""
    return {"job": work.job, **(tallies[0].snapshot() if tallies else {})}


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)  # noqa: T201 - before there is a display


def _tally(store: Store, work: Work, missing: list[int]) -> RunStats:
    def n_rows(shards: list[int]) -> int:
        covered = (store.covered(shard, work.job) for shard in shards)
        return sum(stop - start for start, stop in covered)

    total = n_rows(work.all(store))
    return RunStats(
        n_rows=max(1, total),
        n_rows_before=total - n_rows(missing),
        n_shards=len(missing),
        rows=work.rows,
    )


def _introduce(
    store: Store, work: Work, run: RunOptions, watch: PlainProgress, shards: tuple[int, ...]
) -> None:
    n = "as many workers as fit" if run.workers == "auto" else counted(run.workers, "worker")
    workers = f", {n}" if run.executor == "ray" else ""
    n_all = len(work.all(store)) if work.job == POOLED else store.plan.n_shards
    whole = len(shards) == n_all
    todo = counted(n_all, "shard") if whole else f"{len(shards):,} of {counted(n_all, 'shard')}"
    rest = "" if whole else " (the rest is done)"
    watch.log(f"{work.doing} {todo}{rest}: {work.what} ({run.executor}{workers})")


def _outcome(
    store: Store, work: Work, ledger: Ledger, tally: RunStats, *, stopped: bool
) -> Outcome:
    missing = work.left(store)
    quarantined = tuple(sorted(set(ledger.quarantined()) & set(missing)))
    made = _made(work, tally)
    if stopped and set(missing) - set(quarantined):
        left = len(missing) - len(quarantined)
        line = f"stopped: {made}; {counted(left, 'shard')} left -> next: run the same command again"
        return Outcome(EXIT_RESUME, line, quarantined)
    if lost := sorted(set(missing) - set(quarantined)):
        return work.unfinished(store, lost)
    if quarantined:
        line = (
            f"done but for shards in quarantine ({ranges(list(quarantined))}): "
            f"{made} -> next: {_why(store, work)} says why; --retry-quarantined tries again"
        )
        return Outcome(EXIT_QUARANTINE, line, quarantined)
    return Outcome(EXIT_DONE, f"done: {made} -> next: {work.after}", quarantined)


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what several jobs came to, one after the other."""
    worst = max(reversed(outcomes), key=lambda outcome: outcome.exit_code)
    lines = [o.line if o is worst else o.line.split(" -> next: ", 1)[0] for o in outcomes]
    quarantined = tuple(shard for outcome in outcomes for shard in outcome.quarantined)
    return Outcome(worst.exit_code, "\n".join(lines), quarantined)


def _why(store: Store, work: Work) -> str:
    """Return where the tracebacks of a job's quarantine are found."""
    if work.job == EXTRACT:
        return command("status", store.path)
    return f"{store.path}/ledger/quarantine/{work.job}"


def _made(work: Work, tally: RunStats) -> str:
    """Say what this run made."""
    if not tally.n_rows_done:
        before = f"{count(tally.n_rows_before)} {work.rows} x {work.per_row} were there already"
        return before if tally.n_rows_before else "nothing"
    share = tally.share_of_bare()
    # Above the bare pass it says only that this was measured while others were at work.
    sound = share is not None and share <= SOUND_SHARE
    bare = f", {share:.2f} of the bare forward pass" if sound else ""
    text = (
        f"{count(tally.n_rows_done)} {work.rows} x {work.per_row}, {n_bytes(tally.n_bytes)} in "
        f"{duration(tally.seconds_made())} ({count(tally.mean_rate())} {work.rows}/s{bare})"
    )
    if tally.n_nonfinite:
        text += f", {count(tally.n_nonfinite)} values are NaN or infinite"
    return text


def follows(store: Store, shards: Sequence[int]) -> frozenset[int]:
    """Return those of the shards whose first tokens continue a sequence of the shard before.

    Whoever computed that one has the sequence's cache. A sequence of a model that is not causal is
    computed whole for either, so there is nothing to keep.
    """
    from actlas.pipeline.extract.inputs import window_tokens

    plan = store.plan
    if not plan.model.causal or not shards:
        return frozenset()
    numbers = np.array([shard for shard in shards if shard], dtype=np.int64)
    borders = numbers * plan.shard_rows
    starts = store.documents.start[store.documents.find(borders)]
    return frozenset(numbers[(borders - starts) % window_tokens(plan) > 0].tolist())
