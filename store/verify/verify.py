"""Verifying a store: every receipt against the bytes, every byte against its checksum."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from actlas.store.display.text import counted, printable
from actlas.store.errors import CorruptDataError, FormatError, RunFaultError, StoreNotFoundError
from actlas.store.format.schema import PlanFile
from actlas.store.format.sealing import seal_of, unseal
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY, read_sealed_plan
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.objects.base import open_objects
from actlas.store.objects.digests import object_sha256
from actlas.store.objects.threads import map_in_order
from actlas.store.read.reader import StoreReader
from actlas.store.verify.damage import Check, Checked, Damage, raise_if_outside, size_words
from actlas.store.verify.derived import derived_checks
from actlas.store.verify.orphans import find_orphans
from actlas.store.verify.shards import Shard, check_lost, lost_shards, shard_checks, shard_of

_NO_UNIT = (None, None)


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found.

    Attributes
    ----------
    full : bool
        Whether every byte was read, or only sizes were compared.
    n_objects, n_bytes : int
        How many objects were checked, and their bytes.
    missing : tuple of int
        Shards that are not extracted yet; they are not damage.
    missing_pooled : tuple of int
        Shards of documents that are not pooled yet.
    n_lost : int
        The number of shards whose job was finished and whose receipt is gone; they are damage.
    damages : tuple of Damage
        Empty where nothing is damaged.
    unclaimed : tuple of str
        Whole shards that no receipt names: a killed worker left them, and the next run adopts them.
    """

    full: bool
    n_objects: int
    n_bytes: int
    missing: tuple[int, ...]
    damages: tuple[Damage, ...]
    unclaimed: tuple[str, ...] = field(default=())
    missing_pooled: tuple[int, ...] = field(default=())
    n_lost: int = 0

    def __repr__(self) -> str:
        read = "every byte" if self.full else "sizes and metadata"
        found = counted(len(self.damages), "damaged part") if self.damages else "no damage"
        first = f", the first: {printable(str(self.damages[0]))}" if self.damages else ""
        return f"<verified {read} of {counted(self.n_objects, 'object')}: {found}{first}>"

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged. An unfinished store can be ok."""
        return not self.damages


def verify(
    store: StoreReader | str | os.PathLike[str],
    full: bool = False,
    progress: Callable[[int, int], None] | None = None,
    only: Collection[Damage] | None = None,
) -> Report:
    """Check a store against its plan and its receipts.

    Parameters
    ----------
    store : Store, path or URL
        The store.
    full : bool
        Read every byte. Otherwise metadata and receipts are read, and sizes are compared.
    progress : callable, optional
        Called with the number of objects checked and their number in all.
    only : collection of Damage, optional
        Earlier findings: check only their shards, units and objects.
    """
    if not isinstance(store, StoreReader):
        store = open_to_verify(store)
    done = {job: store.done(job) for job in store.jobs}
    shards = [shard_of(store, job, number) for job in done for number in sorted(done[job])]
    if only is not None:
        return _verify_only(store, shards, lost_shards(store, done), full, only)
    lost = lost_shards(store, done)
    n_all = len(store.plan_file.objects) + sum(len(shard.specs) for shard in shards)
    n_objects, n_bytes, damages = _run(store, _checks(store, shards, lost, full), n_all, progress)
    orphans, unclaimed = find_orphans(store, full)
    known = {job: {*done[job], *(s.number for s in lost if s.job == job)} for job in done}
    missing = {j: tuple(sorted(set(range(store.n_shards(j))) - known[j])) for j in done}
    return Report(
        full=full,
        n_objects=n_objects,
        n_bytes=n_bytes,
        missing=missing.get(EXTRACT, ()),
        damages=_once(damages + orphans),
        unclaimed=unclaimed,
        missing_pooled=missing.get(POOLED, ()),
        n_lost=len(lost),
    )


def open_to_verify(path: str | os.PathLike[str]) -> StoreReader:
    """Open a store whose plan may be damaged: by the plan's copy where only that can be read.

    Raises
    ------
    ActlasError
        Neither can be read; see :func:`~actlas.store.store.open_store`.
    """
    try:
        return StoreReader.open(path)
    except (CorruptDataError, FormatError, StoreNotFoundError, RunFaultError) as error:
        raise_if_outside(error)
        if "found" in error.details:  # the format version is another one, which is not damage
            raise
        objects = open_objects(path)
        for key in (PLAN_KEY, PLAN_COPY_KEY):
            with suppress(CorruptDataError, FormatError, FileNotFoundError, NotADirectoryError):
                try:
                    return StoreReader(objects, *read_sealed_plan(objects, key))
                except RunFaultError as fault:
                    raise_if_outside(fault)
        raise


def _verify_only(
    store: StoreReader,
    shards: list[Shard],
    lost: list[Shard],
    full: bool,
    only: Collection[Damage],
) -> Report:
    """Check again the objects that were found damaged before."""
    units, keys = {(d.job, d.shard) for d in only}, {d.key for d in only}
    wanted = [shard for shard in shards if (shard.job, shard.number) in units]

    def checks() -> Iterator[Check]:
        for check in _checks(store, wanted, lost, full):
            damage = check.otherwise("")
            in_shard = damage.job in store.jobs and (damage.job, damage.shard) in units
            if in_shard or damage.key in keys or (damage.job, damage.shard) in units - {_NO_UNIT}:
                yield check

    n_objects, n_bytes, damages = _run(store, checks(), 0, None)
    if any(d.orphan for d in only):  # by a fresh listing: only such orphans are removed
        orphans, _ = find_orphans(store, full, keys)
        damages += [d for d in orphans if d.key in keys]
    return Report(full, n_objects, n_bytes, (), _once(damages))


def _run(
    store: StoreReader,
    checks: Iterator[Check],
    n_all: int,
    progress: Callable[[int, int], None] | None,
) -> Checked:
    n_objects, n_bytes = 0, 0
    damages: list[Damage] = []
    for checked in map_in_order(Check.__call__, checks, store.objects.n_readers):
        damages += checked.damages
        n_objects += checked.n_objects
        n_bytes += checked.n_bytes
        if progress is not None:
            progress(n_objects, n_all)
    return Checked(n_objects, n_bytes, damages)


def _once(damages: list[Damage]) -> tuple[Damage, ...]:
    """Return each damage once, in the order found."""
    unique = {(d.key, d.start, d.stop): d for d in reversed(damages)}
    return tuple(reversed(unique.values()))


def _checks(
    store: StoreReader, shards: list[Shard], lost: list[Shard], full: bool
) -> Iterator[Check]:
    for key in (PLAN_KEY, PLAN_COPY_KEY) if store.plan_file.has_copy else (PLAN_KEY,):
        yield Check(partial(_check_plan, store, key), partial(Damage, key))
    for key, (digest, n_bytes) in store.plan_file.objects.items():
        run = partial(_check_planned, store, key, digest, n_bytes, full)
        yield Check(run, partial(Damage, key))

    def of_shard(shard: Shard) -> list[Check]:  # it reads the receipt
        return list(shard_checks(store, shard, full))

    for checks in map_in_order(of_shard, shards, store.objects.n_readers):
        yield from checks
    yield from map(check_lost, lost)
    yield from derived_checks(store, full)


def _check_plan(store: StoreReader, key: str) -> Checked:
    """Compare the plan, or its copy, with the one that this store was opened by."""
    try:
        data = store.objects.read(key)
    except FileNotFoundError:
        return Checked(0, 0, [Damage(key, "is missing")])
    try:
        unseal(data, PlanFile, key)
    except CorruptDataError:
        return Checked(0, 0, [Damage(key, "its bytes are not those that were sealed")])
    except FormatError as error:
        return Checked(0, 0, [Damage(key, str(error))])
    if seal_of(data) != store.plan_sha256:
        other = PLAN_COPY_KEY if key == PLAN_KEY else PLAN_KEY
        return Checked(0, 0, [Damage(key, f"is another plan than {other}")])
    return Checked(0, 0, [])


def _check_planned(store: StoreReader, key: str, digest: str, n_bytes: int, full: bool) -> Checked:
    size = store.objects.size(key)
    if size != n_bytes:
        return Checked(1, 0, [Damage(key, size_words(size, n_bytes))])
    if full or key.endswith("zarr.json"):
        found, _ = object_sha256(store.objects, key)
        if found != digest:
            return Checked(1, n_bytes, [Damage(key, "its sha256 is not the plan's")])
    return Checked(1, n_bytes, [])
