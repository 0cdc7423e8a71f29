"""Repairing derived data: what is damaged or stale is dropped, and made again from the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from actlas.jobs.formatting import command as shell
from actlas.store.errors import (
    ActlasError,
    CorruptDataError,
    FormatError,
    InterruptedRunError,
)
from actlas.store.format.zarr_json import group_metadata, metadata_bytes
from actlas.store.ledger.derived import group_of
from actlas.store.ledger.feature_sets import NAME, names, spec_key
from actlas.store.ledger.job_kinds import receipts_of
from actlas.store.ledger.receipts import receipt_key
from actlas.store.verify.damage import Damage
from actlas.store.verify.derived import derived_checks, plain_groups
from actlas.store.write.derived import remove

if TYPE_CHECKING:
    from actlas.pipeline.options import RunOptions
    from actlas.store.store import Store

Say = Callable[[str], None]

TO_REDO = "ledger/repairing/derived.json"
"""What was dropped and is not made again yet."""

_JOB = re.compile(rf"(encode|encoded|index|indexed|extremes)\.{NAME}", re.ASCII)

ROUNDS = 4
"""Codes, their table, the index, its totals: each is stale once the one before was made again."""


def drop_derived(store: Store, damages: Iterable[Damage], say: Say) -> None:
    """Remove the units of derived data that are damaged, and put plain groups back."""
    damages = list(damages)
    units = {
        (d.job, d.shard)
        for d in damages
        if d.job is not None and d.shard is not None and d.job not in store.jobs
    }
    _remember(store, {job for job, _ in units})
    for job, unit in sorted(units):
        _drop(store, job, unit)
        say(f"dropped: unit {unit} of {job}, to be made again")
    plain = metadata_bytes(group_metadata())
    for key in {d.key for d in damages} & set(plain_groups(store)):
        store.objects.replace(key, plain)
        say(f"put back: {key}")


def redo_derived(store: Store, run: RunOptions, say: Say) -> tuple[list[str], list[Damage]]:
    """Make again what was dropped, by this repair or one that was stopped, and what is stale.

    A set of features is encoded by the sparse autoencoder that it names, and indexed where it was.
    The extremes of units are only dropped: the next look at them gathers them.

    Returns
    -------
    list of str, list of Damage
        The jobs that were redone, and what could not be.

    Raises
    ------
    InterruptedRunError
        A signal asked for the end.
    """
    _drop_stale(store, say)
    jobs, left = _remembered(store), []
    for name in sorted({job.split(".", 1)[1] for job in jobs if not job.startswith("extremes.")}):
        of_it = {job.split(".", 1)[0] for job in jobs if job.split(".", 1)[1] == name}
        if name in names(store) and (why := _redo_features(store, name, of_it, run, say)):
            left.append(Damage(spec_key(name), f"what was dropped could not be made again: {why}"))
    if jobs and not left:
        store.objects.delete(TO_REDO)
    return jobs, left


def _redo_features(
    store: Store, name: str, kinds: set[str], run: RunOptions, say: Say
) -> str | None:
    """Encode and index what is missing of a set; return why not, where it could not be."""
    from actlas.jobs.derived.encode import encode
    from actlas.jobs.derived.index import index

    try:
        coded = not store.missing(f"encode.{name}")
        coded &= receipts_of(store, f"encoded.{name}", 1).exists(0)
        if kinds & {"encode", "encoded"} or not coded:
            for _ in range(2):  # once the codes are new, their table is stale
                say(f"encoding what is missing of {name}")
                outcome, _made = encode(store, name, None, None, run)
                if outcome.stopped:
                    raise InterruptedRunError(outcome.line)
                if outcome.exit_code:
                    return None if _waits_for_rows(store, name, kinds) else outcome.line
                _drop_stale(store, say)
            kinds = kinds | {
                k for j in _remembered(store) for k, n in [j.split(".", 1)] if n == name
            }
        if kinds & {"index", "indexed"}:
            say(f"indexing {name}")
            index(store, name)
    except InterruptedRunError:
        raise
    except ActlasError as error:
        again = shell("sae", "encode", store.path, "--sae", "DIR", "--name", name)
        return f"{error} With its folder at hand: {again}"
    return None


def _waits_for_rows(store: Store, name: str, kinds: set[str]) -> bool:
    """Whether all that was dropped is made again, and the rest is of shards not extracted yet."""
    left = set(store.missing(f"encode.{name}")) - set(store.missing())
    return not left and not kinds & {"encoded", "index", "indexed"}


def _remember(store: Store, jobs: Iterable[str]) -> None:
    """Keep what is to be made again, before it is dropped: this repair may be stopped."""
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
    return sorted(j for j in jobs if isinstance(j, str) and _JOB.fullmatch(j))


def _drop_stale(store: Store, say: Say) -> None:
    """Drop what was made from records that lie there no longer, until nothing is."""
    for _ in range(ROUNDS):
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
            say(f"dropped: unit {unit} of {job}, made from what is there no longer")


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
