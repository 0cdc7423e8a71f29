"""Text of ``actlas status``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from actlas.jobs.cli.table import labelled
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, n_bytes, numbered, ranges
from actlas.jobs.monitor.heartbeat import Snapshot
from actlas.jobs.run.reports.progress import DerivedProgress, JobProgress, StatusReport
from actlas.store.ledger.job_kinds import kind_of
from actlas.store.objects import processes

N_SURE = 32
"""Smallest number of receipts for a rate that is not marked as approximate."""

N_WORKERS = 12
"""Largest number of workers that are listed."""


def lines(status: StatusReport, snapshot: Snapshot) -> Iterable[str]:
    """Yield the lines of a store's status.

    Parameters
    ----------
    status : StatusReport
        The progress of the store's jobs.
    snapshot : Snapshot
        The last heartbeat of the running driver.
    """
    yield status.store
    # The driver's own rate is the better one.
    hidden = status.running and snapshot.number("rows_per_s") > 0
    for job in _jobs(status):
        yield from _job_lines(job.model_copy(update={"rows_per_s": None}) if hidden else job)
    for derived in status.derived:
        yield labelled("derived", _derived_words(status.store, derived))
    yield from _driver_lines(status, snapshot)
    yield _next(status)


def _jobs(status: StatusReport) -> list[JobProgress]:
    return [status] if status.pooled is None else [status, status.pooled]


def _derived_words(path: str, job: DerivedProgress) -> str:
    """Return the progress of a derived job and the command that continues it."""
    kind, _ = kind_of(job.job)
    unit = "unit" if kind is None else kind.unit
    n_all = job.done if job.all is None else job.all
    of = f"{job.done:,} of " if job.all is not None else ""
    words = f"{job.job}: {of}{counted(n_all, unit)}"
    if job.lost:
        words += f", the receipt of {unit} {ranges(list(job.lost))} is lost"
    if job.quarantined:
        words += f", in quarantine: {ranges(job.quarantined)}"
    resume = _resume(path, job)
    return words if resume is None else f"{words} -> {resume}"


def _resume(path: str, job: DerivedProgress) -> str | None:
    """Return the command that continues a derived job; None if it is complete."""
    kind, subject = kind_of(job.job)
    if job.lost:
        return shell("repair", path)
    if job.complete or kind is None or not kind.command:
        return None
    tried = job.done + len(job.quarantined)
    stuck = job.quarantined and job.all is not None and tried >= job.all
    again = ["--retry-quarantined"] if stuck else []
    words = (word.format(store=path, subject=subject) for word in kind.command)
    return shell(*words, *again)


def _driver_lines(status: StatusReport, snapshot: Snapshot) -> Iterable[str]:
    """Yield the driver and the state of its run."""
    holder = status.holder
    if holder is None:
        newest = max((job.newest_receipt_unix_s or 0 for job in _jobs(status)), default=0)
        ago = f"; last receipt {duration(time.time() - newest)} ago" if newest else ""
        yield labelled("driver", f"none{ago}")
        return
    driver = f"process {holder.get('pid')} on {holder.get('host')}"
    if status.perhaps_dead:
        last = _last_heard(status)
        yield labelled("driver", f"{driver}: perhaps dead: {last}; a new run takes over after 60 s")
        return
    stopping = ", stopping: it finishes the work in flight" if snapshot.stopping else ""
    known = processes.state_of(holder) == "running"
    heard = "" if known else f"; {_last_heard(status)}"
    yield labelled("driver", f"{driver} holds the lease{stopping}{heard}")
    if snapshot.n_rows:
        yield from run_lines(snapshot)
    elif status.seconds_left:
        yield labelled("left", f"about {duration(status.seconds_left)}")


def _last_heard(status: StatusReport) -> str:
    """Return the age of the last heartbeat: by our clock only if we saw the counter change."""
    if status.last_heard_s is not None:
        return f"last heard {duration(status.last_heard_s)} ago"
    if status.last_beat_unix_s:
        ago = max(0.0, time.time() - status.last_beat_unix_s)
        return f"last heartbeat {duration(ago)} ago by its clock"
    return "no heartbeat yet"


def run_lines(snapshot: Snapshot) -> Iterable[str]:
    """Yield the numbers of a running driver.

    Parameters
    ----------
    snapshot : Snapshot
        The driver's last heartbeat.
    """
    of = snapshot.text("of") or "rows"
    if job := snapshot.text("job"):
        done = f"{count(snapshot.number('n_rows_done'))} of {count(snapshot.n_rows)} {of}"
        yield labelled("doing", f"{job}: {done}")
    now, mean = snapshot.number("rows_per_s_now"), snapshot.number("rows_per_s")
    if mean:
        yield labelled("now", f"{count(now)} {of}/s, {count(mean)} mean of this run")
    if mean := snapshot.number("tokens_per_s"):
        now = snapshot.number("tokens_per_s_now")
        yield labelled("", f"{count(now)} tokens/s, {count(mean)} mean")
    if left := snapshot.number("seconds_left"):
        yield labelled("left", f"about {duration(left)}")
    if faults := snapshot.counts("faults"):
        yield labelled("failed", f"{_listed(faults)} (attempts by cause)")
    n_workers = int(snapshot.number("n_workers"))
    states = "".join(f", {n:,} {name}" for name, n in snapshot.counts("states").items())
    in_flight = f"; {counted(snapshot.number('n_in_flight'), 'shard')} in flight"
    yield labelled("workers", f"{count(n_workers)}{states.replace(',', ':', 1)}{in_flight}")
    workers = snapshot.workers()[:N_WORKERS]
    for worker in workers:
        shards = worker["shards"]
        at = f"shard {shards[0]}" if shards else worker["state"]
        yield labelled("", f"{worker['worker']:<14} {at:<16} {duration(worker['seconds'])}")
    if (more := n_workers - len(workers)) > 0:
        yield labelled("", f"and {more:,} more")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in counts.items())


def _job_lines(job: JobProgress) -> Iterable[str]:
    """Yield the progress of the extraction or of pooling, and its failures."""
    shards, rows, of = job.shards, job.rows, job.of
    about = "about " if job.estimated else ""
    share = rows.done / rows.all if rows.all else 1.0
    noun = " documents" if of == "documents" else ""
    done = f"{count(rows.done)} of {count(rows.all)}{noun} ({share:.1%})"
    yield labelled("rows" if of == "rows" else "pooled", done)
    to_do = shards.missing - len(shards.lost)
    waiting = f", {to_do:,} to do" if to_do > 0 else ""
    yield labelled("shards", f"{shards.done:,} of {shards.all:,} done{waiting}")
    if shards.lost:
        yield labelled(
            "lost", f"the receipts of {ranges(list(shards.lost))}: all shards were done once"
        )
    yield labelled("stored", f"{about}{n_bytes(job.n_bytes)}")
    if job.rows_per_s:
        rough = "about " if shards.done < N_SURE else about
        yield labelled("speed", f"{rough}{count(job.rows_per_s)} {of}/s, by the receipts' times")
    if job.n_nonfinite:
        yield labelled(
            "non-finite", f"{about}{counted(job.n_nonfinite, 'value')} of NaN or infinity"
        )
    if shards.quarantined:
        yield labelled("quarantine", numbered(shards.quarantined, "shard"))
        for record in job.quarantine[:5]:
            yield labelled("", f"{record.shard}: {record.error[:200]}")


def _next(status: StatusReport) -> str:
    path = status.store
    if status.running:
        return "next: wait for the driver; run `actlas status` again at any time"
    if any(job.shards.lost for job in _jobs(status)):
        return f"next: {shell('repair', path)}"
    if status.complete:
        commands = (_resume(path, job) for job in status.derived)
        return f"next: {next(filter(None, commands), shell('verify', path))}"
    if not any(job.shards.missing for job in _jobs(status)):
        return f"next: {shell('extract', path, '--retry-quarantined')}"
    return f"next: {shell('extract', path)}"
