"""Progress of a store's jobs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from actlas.jobs.monitor.heartbeat import HolderState, observe_holder
from actlas.jobs.run.reports.progress import (
    DerivedProgress,
    JobProgress,
    QuarantineEntry,
    RowCounts,
    RunProgress,
    ShardCounts,
    StatusReport,
)
from actlas.jobs.scheduler.faults import FaultBudget
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt
from actlas.store.ledger.finished import PREFIX
from actlas.store.ledger.job_kinds import kind_of
from actlas.store.ledger.lost import finished_jobs, lost_derived
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.read.reader import StoreReader

BREAK_S, N_GAPS = 10.0, 10
"""A gap between receipts is a break between runs if it exceeds ``BREAK_S`` seconds, three times the
longest shard, and ``N_GAPS`` times the median gap."""

N_SAMPLE = 512
"""Largest number of receipts that are read; of more, an evenly spread sample."""


def status_of(
    store: StoreReader, *, full: bool = False, holding: HolderState | None = None
) -> StatusReport:
    """Return the progress of a store's jobs, read from receipts, quarantine and lease.

    The job's own fields are those of the token rows, with the pooled rows under ``pooled``; in a
    store with pooled rows only they are those of pooling, and ``of`` is ``documents``.

    Parameters
    ----------
    store : StoreReader
        The store.
    full : bool
        Read every receipt. Otherwise, of more than ``N_SAMPLE`` receipts, bytes and rates are
        estimated from a sample, and ``estimated`` is true.
    holding : HolderState, optional
        The state of the lease; by default it is read now.
    """
    lost = lost_derived(store)
    main, *others = (_job_status(store, job, full) for job in store.jobs)
    held = holding or observe_holder(store.objects)
    if held.holder is None:
        main = main.model_copy(update={"seconds_left": None})
    running = held.alive and held.snapshot.n_rows > 0
    return StatusReport(
        store=store.path,
        **{name: getattr(main, name) for name in JobProgress.model_fields if name != "complete"},
        complete=all(job.complete for job in (main, *others)),
        running=held.alive,
        holder=held.holder,
        perhaps_dead=held.holder is not None and not held.alive,
        last_beat_unix_s=held.snapshot.written_unix_s or None,
        last_heard_s=held.heard_s_ago(),
        run=RunProgress(**held.snapshot.plain()) if running else None,
        pooled=others[0] if others else None,
        derived=[_derived(store, job, lost.get(job, ())) for job in derived_jobs(store)],
    )


def _job_status(store: StoreReader, job: str, full: bool) -> JobProgress:
    """Return the progress of the extraction or of pooling."""
    done = sorted(store.done(job))
    read = done if full or len(done) <= N_SAMPLE else spread(done, N_SAMPLE)
    receipts = [*store.receipts(job).read_many(read)]
    scale = len(done) / len(read) if read else 1.0
    quarantined = FaultBudget(store.objects, job, RunOptions()).quarantined()
    n_shards, plan = store.n_shards(job), store.plan
    n_all = plan.n_documents if job == POOLED else plan.n_tokens
    n_rows = sum(stop - start for start, stop in (store.covered(shard, job) for shard in done))
    rate = rows_per_s(receipts)
    if rate is not None:  # a sample skips the receipts between two of its own
        rate *= scale
    kept_out = sorted(set(quarantined) - set(done))
    return JobProgress(
        complete=len(done) == n_shards,
        of="documents" if job == POOLED else "rows",
        estimated=len(read) < len(done),
        shards=ShardCounts(
            all=n_shards,
            done=len(done),
            missing=n_shards - len(done) - len(kept_out),
            lost=tuple(store.completion.lost(job, done)),
            quarantined=kept_out,
        ),
        rows=RowCounts(all=n_all, done=n_rows),
        n_bytes=round(scale * sum(record.n_bytes for r in receipts for record in r.objects)),
        n_nonfinite=round(scale * sum(sum(r.n_nonfinite.values()) for r in receipts)),
        rows_per_s=rate,
        seconds_left=(n_all - n_rows) / rate if rate else None,
        newest_receipt_unix_s=max((r.created_unix_s for r in receipts), default=None),
        quarantine=[
            QuarantineEntry(
                shard=shard, faults=quarantined[shard].faults, error=quarantined[shard].error
            )
            for shard in kept_out
        ],
    )


def spread(shards: list[int], n: int) -> list[int]:
    """Return ``n`` evenly spaced shards, including the first and the last.

    >>> spread([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    return [shards[i * (len(shards) - 1) // (n - 1)] for i in range(n)]


def derived_jobs(store: StoreReader) -> list[str]:
    """Return the names of derived jobs with receipts or a quarantine, such as ``encode.sae``."""
    found = {*store.objects.names("ledger/receipts"), *store.objects.names("ledger/quarantine")}
    found = {job.removeprefix(PREFIX) for job in found}  # a lost folder of receipts shows too
    return sorted({*found, *finished_jobs(store)} - {EXTRACT, POOLED})


def _derived(store: StoreReader, job: str, lost: Sequence[int]) -> DerivedProgress:
    """Return the progress of a derived job, counted from the names of its receipts.

    ``all`` is None while the number of units is unknown: of an index, until the table over all
    blocks is written, last; and of a job whose kind is not known to this version.
    """
    done = {*_numbers(store, f"ledger/receipts/{job}")}
    quarantined = {*_numbers(store, f"ledger/quarantine/{job}")}
    kind, subject = kind_of(job)
    n_all: int | None = None
    finished = kind is not None
    if kind is not None:
        table = kind.table and f"ledger/receipts/{kind.table}.{subject}"
        finished = not table or bool([*_numbers(store, table)])
        if not kind.sparse:
            n_all = kind.n_units(store, subject)
        elif finished:
            n_all = len(done)
    return DerivedProgress(
        job=job,
        all=n_all,
        done=len(done),
        complete=finished and n_all is not None and len(done) >= n_all,
        lost=tuple(lost),
        quarantined=sorted(quarantined - done),
    )


def _numbers(store: StoreReader, folder: str) -> Iterable[int]:
    for name in store.objects.names(folder):
        stem, _, end = name.partition(".")
        if end == "json" and len(stem) == 8 and stem.isascii() and stem.isdigit():
            yield int(stem)


def rows_per_s(receipts: Iterable[Receipt]) -> float | None:
    """Return rows per second between receipts without breaks between runs; None below two."""
    in_time = sorted(receipts, key=lambda receipt: receipt.created_unix_s)
    gaps = [b.created_unix_s - a.created_unix_s for a, b in itertools.pairwise(in_time)]
    if not gaps:
        return None
    longest = max(_seconds(receipt) for receipt in in_time)
    limit = max(BREAK_S, 3 * longest, N_GAPS * sorted(gaps)[len(gaps) // 2])
    kept = [(gap, r.stop - r.start) for gap, r in zip(gaps, in_time[1:], strict=True)]
    seconds = sum(gap for gap, _ in kept if gap <= limit)
    rows = sum(n for gap, n in kept if gap <= limit)
    return rows / seconds if seconds > 0 else None


def _seconds(receipt: Receipt) -> float:
    """Return the seconds to compute and write a shard; an untrusted receipt may hold anything."""
    values = (receipt.run.get(name) for name in ("compute_s", "write_s"))
    return sum(v for v in values if isinstance(v, int | float) and 0 <= v < math.inf)
