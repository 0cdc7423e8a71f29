"""Repairing derived data: what is damaged or stale is dropped, and made again from the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from actlas.jobs.formatting import command as shell
from actlas.store.arrays import group_metadata, metadata_bytes
from actlas.store.codes import names
from actlas.store.derived import group_of, receipts_of, remove
from actlas.store.errors import ActlasError, CorruptDataError, FormatError, RunFaultError
from actlas.store.receipts import EXTRACT, receipt_key
from actlas.store.verify_derived import derived_checks, plain_groups

if TYPE_CHECKING:
    from actlas.pipeline.options import RunOptions
    from actlas.store.store import Store
    from actlas.store.verify import Damage
    from actlas.store.verify_derived import Finding

Say = Callable[[str], None]
ROUNDS = 4
"""Codes, their table, the index, its totals: each is stale once the one before was made again."""


def drop_derived(store: Store, damages: Iterable[Damage], say: Say) -> list[str]:
    """Remove the units of derived data that are damaged; return the jobs that they are of."""
    damages = list(damages)
    units = {
        (d.job, d.shard)
        for d in damages
        if d.job is not None and d.shard is not None and d.job not in store.jobs
    }
    for job, unit in sorted(units):
        _drop(store, job, unit)
        say(f"dropped: unit {unit} of {job}, to be made again")
    plain = metadata_bytes(group_metadata())
    for key in {d.key for d in damages} & set(plain_groups(store)):
        store.objects.replace(key, plain)
        say(f"put back: {key}")
    return sorted({job for job, _ in units})


def redo_derived(store: Store, dropped: Sequence[str], run: RunOptions, say: Say) -> list[str]:
    """Make again what was dropped, and what has become stale; return the jobs that were redone.

    A set of features is encoded by the sparse autoencoder that it names, and indexed where it was.
    The extremes of units are only dropped: the next look at them gathers them.
    """
    stale = _drop_stale(store, say)
    touched = sorted({*dropped, *stale})
    done: list[str] = []
    for name in sorted({job.split(".", 1)[1] for job in touched if not _of_units(job)}):
        jobs = [job for job in touched if job.split(".", 1)[1] == name]
        indexed = any(job.startswith("index") for job in jobs) or _was_indexed(store, name)
        done += _redo_features(store, name, indexed, run, say)
    return [*stale, *done]


def _redo_features(store: Store, name: str, indexed: bool, run: RunOptions, say: Say) -> list[str]:
    from actlas.jobs.sae_encode import encode
    from actlas.jobs.sae_index import index

    if name not in names(store):
        return []
    try:
        say(f"encoding what is missing of {name}")
        outcome, _ = encode(store, name, None, None, run)
        say(outcome.line.partition(" -> next: ")[0])
        if outcome.exit_code:
            return []
        _drop_stale(store, say)
        if not indexed:
            return [f"encode.{name}"]
        encode(store, name, None, None, run)  # its table may have been stale too
        index(store, name)
    except ActlasError as error:
        again = shell("sae", "encode", store.path, "--sae", "DIR", "--name", name)
        say(f"{name} could not be made again: {error} With its folder at hand: {again}")
        return []
    return [f"encode.{name}", f"index.{name}"]


def _drop_stale(store: Store, say: Say) -> list[str]:
    """Drop what was made from records that lie there no longer, until nothing is."""
    jobs: list[str] = []
    for _ in range(ROUNDS):
        stale = [
            (check.job, check.unit)
            for check in derived_checks(store, full=False)
            if check.job is not None and check.unit is not None and _finds(check.run)
        ]
        if not stale:
            break
        for job, unit in stale:
            _drop(store, job, unit)
            say(f"dropped: unit {unit} of {job}, made from what is there no longer")
            jobs.append(job)
    return sorted(set(jobs))


def _finds(run: Callable[[], tuple[int, int, list[Finding]]]) -> bool:
    try:
        return bool(run()[2])
    except RunFaultError:
        raise  # an outage makes nothing stale
    except (ActlasError, OSError, ValueError):
        return True


def _drop(store: Store, job: str, unit: int) -> None:
    """Remove a unit's receipt, and then the group that it names."""
    receipts = receipts_of(store, job, 10**8)
    group = None
    # Where it cannot be read its group is a leftover, swept by the next run.
    with suppress(FormatError, CorruptDataError, FileNotFoundError):
        group = group_of(receipts.read(unit))
    store.objects.delete(receipt_key(job, unit))
    if group is not None and group.startswith(("features/", "extremes/")):
        remove(store.objects, group)


def _was_indexed(store: Store, name: str) -> bool:
    folder = f"ledger/receipts/index.{name}"
    return next(iter(store.objects.names(folder)), None) is not None


def _of_units(job: str) -> bool:
    return job.startswith("extremes.") or job == EXTRACT
