"""Repair of derived data: damaged and stale units are dropped, and recomputed from the rows."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from actlas.jobs.formatting import ranges
from actlas.jobs.scheduler.faults import FaultBudget
from actlas.store.errors import ActlasError, CorruptDataError, FormatError, InterruptedRunError
from actlas.store.format.zarr_json import group_metadata, metadata_bytes
from actlas.store.ledger.derived import group_of
from actlas.store.ledger.feature_sets import NAME, names, spec_key
from actlas.store.ledger.finished import (
    PREFIX,
    forget_finished,
    note_finished,
    put_back_finished,
)
from actlas.store.ledger.job_kinds import by_inputs, depth, job_receipts, kind_of, kinds, made_from
from actlas.store.ledger.receipts import receipt_key
from actlas.store.verify.damage import Damage
from actlas.store.verify.derived import derived_checks, plain_groups
from actlas.store.write.derived import remove

if TYPE_CHECKING:
    from actlas.jobs.run.outcome import Outcome
    from actlas.pipeline.options import RunOptions
    from actlas.store.ledger.job_kind import JobKind
    from actlas.store.store import Store

Log = Callable[[str], None]
"""Called with a line for each step of a repair."""

Redo = Callable[["Store", str, Collection[str], "RunOptions", Log], "str | None"]
"""Recomputes the missing units of a subject's jobs. It is called with the store, the subject, the
kinds of the subject's jobs of which units were dropped, the run's options and a log. It returns why
a dropped unit could not be recomputed, or None."""

TO_REDO = "ledger/repairing/derived.json"
"""The key of a list of the jobs of which units were dropped and are not recomputed yet."""


def drop_derived(store: Store, damages: Iterable[Damage], log: Log) -> None:
    """Drop the damaged units of derived data, and restore the plain groups above them.

    Parameters
    ----------
    store : Store
        The store.
    damages : iterable of Damage
        All damages that were found.
    log : callable
        Called with a line for each step.
    """
    damages = list(damages)
    units: dict[tuple[str, int], Damage] = {}
    for damage in damages:
        job = damage.job or ""
        if job.startswith(PREFIX) and put_back_finished(store.objects, job.removeprefix(PREFIX)):
            log(f"restored: {damage.key}, from its copy")
        elif damage.job not in (None, *store.jobs) and damage.shard is not None:
            units.setdefault((damage.job or "", damage.shard), damage)
    _remember(store, {job for job, _ in units if _is_known(job)})
    for (job, unit), damage in sorted(units.items(), key=lambda item: item[0]):
        _drop(store, job, unit)
        log(f"dropped: unit {unit} of {job}: {damage}")
    plain = metadata_bytes(group_metadata())
    for key in {d.key for d in damages} & set(plain_groups(store)):
        store.objects.replace(key, plain)
        log(f"restored: {key}")


def redo_derived(store: Store, run: RunOptions, log: Log) -> tuple[list[str], list[Damage]]:
    """Recompute units that were dropped, by this repair or one that was stopped, and stale ones.

    Units of derived jobs in quarantine are released first. A job is recomputed after the jobs that
    it is made from, of which missing units are made first. A set of features is encoded by the
    sparse autoencoder that its description names, and then indexed if it was indexed before. The
    extremes of units are only dropped: the next command that asks for them gathers them.

    Parameters
    ----------
    store : Store
        The store.
    run : RunOptions
        Executor, workers, device.
    log : callable
        Called with a line for each step.

    Returns
    -------
    list of str, list of Damage
        The jobs of which units were dropped, and what could not be recomputed.

    Raises
    ------
    InterruptedRunError
        A signal stopped the repair.
    """
    failed: dict[str, Damage] = {}
    redone: set[str] = set()
    _release(store, run, log)
    for _ in range(_longest_chain()):
        _drop_stale(store, log)
        todo = [job for job in _with_inputs(store, _remembered(store)) if job not in redone]
        if not todo:
            break
        redone.update(todo)
        _redo(store, todo, failed, run, log)
    jobs = _remembered(store)
    if jobs and not failed:
        store.objects.delete(TO_REDO)
    return jobs, list(failed.values())


def note_again(store: Store, damages: Iterable[Damage]) -> None:
    """Write damaged records of finished jobs again, which were dropped, if the jobs are complete.

    Parameters
    ----------
    store : Store
        The store, opened after the repair.
    damages : iterable of Damage
        All damages that were found.
    """
    names = (damage.job or "" for damage in damages)
    for job in sorted({name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}):
        kind, subject = kind_of(job)
        if job in store.jobs:
            n_units, n_done = store.n_shards(job), len(store.done(job))
        elif kind is not None and not kind.sparse:
            n_units = kind.n_units(store, subject)
            n_done = len(kind.receipts(store, subject).done())
        else:
            continue
        if n_done >= n_units:
            note_finished(store.objects, store.plan_sha256, job, n_units)


def outcome_or_error(do: Callable[[], Outcome]) -> Outcome | str:
    """Run a job for a repair, and return its outcome, or the message of its error.

    Parameters
    ----------
    do : callable
        Runs the job.

    Raises
    ------
    InterruptedRunError
        A signal stopped the job.
    """
    try:
        outcome = do()
    except InterruptedRunError:
        raise
    except ActlasError as error:
        return str(error)
    if outcome.stopped:
        raise InterruptedRunError(outcome.line, signal=outcome.signal)
    return outcome


def _release(store: Store, run: RunOptions, log: Log) -> None:
    """Release the quarantine of derived jobs: damaged inputs may have been the cause."""
    for job in sorted(store.objects.names("ledger/quarantine")):
        if not _is_known(job):
            continue
        budget = FaultBudget(store.objects, job, run)
        if units := sorted(budget.quarantined()):
            budget.release(units)
            log(f"released from quarantine: {ranges(units)} of {job}")


def _longest_chain() -> int:
    """Return the length of the longest chain of jobs: each may make the next one stale."""
    return max(map(depth, kinds()))


def _with_inputs(store: Store, jobs: Iterable[str]) -> list[str]:
    """Return jobs in their order, with the incomplete jobs that they are made from.

    A receipt may be lost with nothing left to drop: then no repair remembers its job.
    """
    found = set(jobs)
    for job in tuple(found):
        kind, subject = kind_of(job)
        if kind is None or kind.redo is None:
            continue
        before = {kind_of(f"{name}.{subject}")[0] for name in made_from(kind)}
        found.update(
            each.job(subject)
            for each in before
            if each is not None and not _is_complete(store, each, subject)
        )
    return by_inputs(found)


def _is_complete(store: Store, kind: JobKind, subject: str) -> bool:
    """Whether all units of a subject's job have receipts, and the table over them has one."""
    if kind.table and not job_receipts(store, f"{kind.table}.{subject}").exists(0):
        return False
    receipts = job_receipts(store, kind.job(subject))
    return kind.sparse or len(receipts.done()) == receipts.n_shards


def _redo(
    store: Store, jobs: Sequence[str], failed: dict[str, Damage], run: RunOptions, log: Log
) -> None:
    """Recompute jobs in their order; add each that fails to ``failed``, by its name.

    A function that recomputes several kinds of a subject's jobs is called once. A job is skipped if
    a job of the same subject that it is made from has failed.
    """
    dropped: dict[str, set[str]] = {}
    for job in jobs:
        name, _, subject = job.partition(".")
        dropped.setdefault(subject, set()).add(name)
    called: set[tuple[str, str]] = set()
    for job in jobs:
        kind, subject = kind_of(job)
        if kind is None or kind.redo is None or (kind.redo, subject) in called:
            continue
        if kind.of_feature_set and subject not in names(store):
            continue
        if any(f"{before}.{subject}" in failed for before in made_from(kind)):
            continue
        called.add((kind.redo, subject))
        redo: Redo = pkgutil.resolve_name(kind.redo)
        why = redo(store, subject, frozenset(dropped[subject]), run, log)
        if why is not None:
            key = spec_key(subject) if kind.of_feature_set else receipt_key(job, 0)
            failed[job] = Damage(key, f"dropped units could not be recomputed: {why}")


def _remember(store: Store, jobs: Iterable[str]) -> None:
    """Record jobs before their units are dropped: this repair may be stopped."""
    known = set(_remembered(store))
    if set(jobs) - known:
        body = json.dumps(sorted(known | set(jobs)))
        store.objects.replace(TO_REDO, body.encode() + b"\n")


def _remembered(store: Store) -> list[str]:
    try:
        jobs = json.loads(store.objects.read(TO_REDO))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    if not isinstance(jobs, list):
        return []
    return sorted(job for job in jobs if isinstance(job, str) and _is_known(job))


def _is_known(job: str) -> bool:
    """Whether a string is the name of a job of a known kind."""
    kind, subject = kind_of(job)
    return kind is not None and re.fullmatch(NAME, subject, re.ASCII) is not None


def _drop_stale(store: Store, log: Log) -> None:
    """Drop units that were made from records which are no longer there, until none is left."""
    for _ in range(_longest_chain()):
        stale = []
        for check in derived_checks(store, full=False):
            subject = check.otherwise("")
            if subject.job is not None and subject.shard is not None and check().damages:
                stale.append((subject.job, subject.shard))
        if not stale:
            break
        _remember(store, {job for job, _ in stale})
        for job, unit in stale:
            _drop(store, job, unit)
            log(f"dropped: unit {unit} of {job}, whose inputs have changed")


def _drop(store: Store, job: str, unit: int) -> None:
    """Remove a unit's receipt, and then the group that it names; its job is not finished then."""
    receipts = job_receipts(store, job)
    forget_finished(store.objects, job)
    group = None
    # The group of an unreadable receipt is a leftover, which the next run sweeps.
    with suppress(FormatError, CorruptDataError, FileNotFoundError):
        group = group_of(receipts.read(unit))
    store.objects.delete(receipt_key(job, unit))
    if group is not None:
        remove(store.objects, group)
