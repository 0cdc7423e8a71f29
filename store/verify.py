"""Proving a store: every receipt against the bytes, every byte against its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from actlas.store.arrays import ArraySpec
from actlas.store.errors import ActlasError, CorruptDataError, RunFaultError, of_one_object
from actlas.store.in_order import in_order
from actlas.store.receipts import EXTRACT, POOLED, Receipts, receipt_key
from actlas.store.schema import ObjectRecord
from actlas.store.shardfile import ShardReader
from actlas.store.store import PLAN_COPY_KEY, PLAN_KEY, Store
from actlas.store.verify_derived import (
    DerivedCheck,
    claimed,
    derived_checks,
    is_leftover,
    size_words,
)
from actlas.store.writer import READ_BYTES, object_digest

VOLATILE = (
    *("ledger/staging/", "ledger/lease/", "ledger/logs/", "ledger/quarantine/"),
    "ledger/repairing/",
)
"""What belongs to runs, not to the store's content."""


@dataclass(frozen=True)
class Damage:
    """One object that is not what was written.

    Attributes
    ----------
    key : str
        The object.
    what : str
        What is wrong with it.
    start, stop : int or None
        The rows [start, stop) that it takes with it, where it holds rows.
    of : {"rows", "documents"}
        What these are: pooled rows are one per document.
    job, shard : str, int, or None
        The shard of a job that it belongs to, or the unit of derived data.
    stray : bool
        Whether nothing of this store has its name.
    """

    key: str
    what: str
    start: int | None = None
    stop: int | None = None
    of: str = "rows"
    job: str | None = None
    shard: int | None = None
    stray: bool = False

    def __str__(self) -> str:
        rows = f", {self.of} [{self.start}, {self.stop})" if self.start is not None else ""
        return f"{self.key}{rows}: {self.what}"


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found.

    Attributes
    ----------
    full : bool
        Whether every byte was read, or only sizes were compared.
    n_objects, n_bytes : int
        Checked.
    missing : tuple of int
        Shards that are not extracted yet: no damage.
    missing_pooled : tuple of int
        Shards of documents that are not pooled yet.
    damages : tuple of Damage
        Empty where all is well.
    unclaimed : tuple of str
        Whole shards that no receipt names: a killed worker's, adopted by the next run.
    """

    full: bool
    n_objects: int
    n_bytes: int
    missing: tuple[int, ...]
    damages: tuple[Damage, ...]
    unclaimed: tuple[str, ...] = field(default=())
    missing_pooled: tuple[int, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged. An unfinished store can be ok."""
        return not self.damages


class _Checked(NamedTuple):
    """One check's outcome: how much was read, and what is wrong."""

    n_objects: int
    n_bytes: int
    damages: list[Damage]


class _Check(NamedTuple):
    """A check to do, and what is damaged if it cannot be done."""

    run: Callable[[], _Checked]
    otherwise: Callable[[str], Damage]

    def __call__(self) -> _Checked:
        try:
            return self.run()
        except (ActlasError, OSError, ValueError) as error:
            _raise_if_outside(error)
            return _Checked(0, 0, [self.otherwise(f"cannot be checked: {error}")])


def _raise_if_outside(error: Exception) -> None:
    """Raise what says nothing about the store: an outage, no credentials, too many open files.

    A file that cannot be read for a fault of its own is damaged.
    """
    if isinstance(error, RunFaultError) and not of_one_object(error):
        raise error


_NO_UNIT = (None, None)


class _Shard(NamedTuple):
    """One shard of a job, and what its damages take with them."""

    job: str
    number: int
    start: int
    stop: int
    specs: dict[str, ArraySpec]

    def damage(
        self, key: str, what: str, start: int | None = None, stop: int | None = None
    ) -> Damage:
        """Return a damage that takes these rows with it, or all of the shard's."""
        lo = self.start if start is None else start
        hi = self.stop if stop is None else stop
        of = "documents" if self.job == POOLED else "rows"
        return Damage(key, what, lo, hi, of, self.job, self.number)


def verify(
    store: Store,
    full: bool = False,
    progress: Callable[[int, int], None] | None = None,
    only: Collection[Damage] | None = None,
) -> Report:
    """Check a store against its plan and its receipts.

    Parameters
    ----------
    store : Store
        The store.
    full : bool
        Read every byte. Otherwise only metadata and receipts are read, and sizes compared.
    progress : callable, optional
        Called with (objects checked, objects in all).
    only : collection of Damage, optional
        Look only at what was found before: at those shards, units and objects.
    """
    done = {job: store.done(job) for job in store.jobs}
    shards = [_shard(store, job, number) for job in done for number in sorted(done[job])]
    if only is not None:
        return _verify_only(store, shards, full, only)
    n_all = len(store.plan_file.objects) + sum(len(shard.specs) for shard in shards)
    n_objects, n_bytes, damages = _run(store, _checks(store, shards, full), n_all, progress)
    strays, unclaimed = _strays(store, done)
    missing = {j: tuple(sorted(set(range(store.n_shards(j))) - done[j])) for j in done}
    return Report(
        full=full,
        n_objects=n_objects,
        n_bytes=n_bytes,
        missing=missing.get(EXTRACT, ()),
        damages=_once(damages + strays),
        unclaimed=unclaimed,
        missing_pooled=missing.get(POOLED, ()),
    )


def _verify_only(
    store: Store, shards: list[_Shard], full: bool, only: Collection[Damage]
) -> Report:
    """Check again what was found damaged before."""
    units, keys = {(d.job, d.shard) for d in only}, {d.key for d in only}
    wanted = [shard for shard in shards if (shard.job, shard.number) in units]

    def checks() -> Iterator[_Check]:
        for check in _checks(store, wanted, full):
            damage = check.otherwise("")
            in_shard = damage.job in store.jobs
            if in_shard or damage.key in keys or (damage.job, damage.shard) in units - {_NO_UNIT}:
                yield check

    n_objects, n_bytes, damages = _run(store, checks(), 0, None)
    if any(d.stray for d in only):  # by what lies there now: who removes strays asks for no other
        strays, _ = _strays(store, {job: store.done(job) for job in store.jobs})
        damages += [d for d in strays if d.key in keys]
    return Report(full, n_objects, n_bytes, (), _once(damages))


def _run(
    store: Store,
    checks: Iterator[_Check],
    n_all: int,
    progress: Callable[[int, int], None] | None,
) -> _Checked:
    n_objects, n_bytes = 0, 0
    damages: list[Damage] = []
    for checked in in_order(_Check.__call__, checks, store.objects.n_readers):
        damages += checked.damages
        n_objects += checked.n_objects
        n_bytes += checked.n_bytes
        if progress is not None:
            progress(n_objects, n_all)
    return _Checked(n_objects, n_bytes, damages)


def _once(damages: list[Damage]) -> tuple[Damage, ...]:
    """Return each damage once, in the order found."""
    unique = {(d.key, d.start, d.stop): d for d in reversed(damages)}
    return tuple(reversed(unique.values()))


def _derived(check: DerivedCheck) -> _Checked:
    n_objects, n_bytes, findings = check.run()
    damages = [
        Damage(f.key, f.what, f.start, f.stop, job=check.job, shard=check.unit) for f in findings
    ]
    return _Checked(n_objects, n_bytes, damages)


def _checks(store: Store, shards: list[_Shard], full: bool) -> Iterator[_Check]:
    if store.plan_file.has_copy:
        yield _Check(partial(_check_plan_copy, store), partial(Damage, PLAN_COPY_KEY))
    for key, (digest, n_bytes) in store.plan_file.objects.items():
        run = partial(_check_planned, store, key, digest, n_bytes, full)
        yield _Check(run, partial(Damage, key))

    def of_shard(shard: _Shard) -> list[_Check]:  # it reads the receipt
        return list(_shard_checks(store, shard, full))

    for checks in in_order(of_shard, shards, store.objects.n_readers):
        yield from checks
    for check in derived_checks(store, full):
        damage = partial(Damage, check.key, job=check.job, shard=check.unit)
        yield _Check(partial(_derived, check), damage)


def _check_plan_copy(store: Store) -> _Checked:
    size = store.objects.size(PLAN_COPY_KEY)
    if size is None:
        n_bytes = store.objects.size(PLAN_KEY) or 0
        return _Checked(0, 0, [Damage(PLAN_COPY_KEY, size_words(None, n_bytes))])
    data = store.objects.read(PLAN_COPY_KEY)
    if data == store.objects.read(PLAN_KEY):
        return _Checked(0, 0, [])
    return _Checked(0, 0, [Damage(PLAN_COPY_KEY, f"is not the same as {PLAN_KEY}")])


def _check_planned(store: Store, key: str, digest: str, n_bytes: int, full: bool) -> _Checked:
    size = store.objects.size(key)
    if size != n_bytes:
        return _Checked(1, 0, [Damage(key, size_words(size, n_bytes))])
    if full or key.endswith("zarr.json"):
        sha256 = hashlib.sha256()
        for piece in store.objects.pieces(key, READ_BYTES):
            sha256.update(piece)
        if sha256.hexdigest() != digest:
            return _Checked(1, n_bytes, [Damage(key, "its sha256 is not the plan's")])
    return _Checked(1, n_bytes, [])


def _shard_checks(store: Store, shard: _Shard, full: bool) -> Iterator[_Check]:
    """Yield the checks of one finished shard: its receipts, then all that they name."""
    receipts = store.receipts(shard.job)
    for generation in [0, *receipts.generations.get(shard.number, [])][:-1]:
        key = receipt_key(shard.job, shard.number, generation)
        earlier = partial(_check_superseded, receipts, shard, generation)
        yield _Check(earlier, partial(shard.damage, key))
    key = receipts.key(shard.number)
    try:
        receipt = receipts.read(shard.number)
    except (ActlasError, OSError) as error:
        _raise_if_outside(error)
        damage = shard.damage(key, f"unreadable receipt: {error}")
        yield _Check(lambda: _Checked(0, 0, [damage]), partial(shard.damage, key))
        return
    named = {record.key for record in receipt.objects}
    if named != set(shard.specs) or (receipt.start, receipt.stop) != (shard.start, shard.stop):
        odd = sorted(set(shard.specs) ^ named)
        unfit = shard.damage(key, f"does not fit the plan ({odd})")
        yield _Check(lambda: _Checked(0, 0, [unfit]), partial(shard.damage, key))
    for record in receipt.objects:
        if record.key in shard.specs:
            check = partial(_check_record, store, shard, record, full)
            yield _Check(check, partial(shard.damage, record.key))
    if full and shard.job == EXTRACT:
        columns = store.arrays.rows["doc_idx"].key(shard.number)
        run = partial(_check_columns, store, shard)
        yield _Check(run, partial(shard.damage, columns))


def _check_superseded(receipts: Receipts, shard: _Shard, generation: int) -> _Checked:
    """Check a receipt that a repair has put another in the place of. It may be gone."""
    key = receipt_key(shard.job, shard.number, generation)
    if receipts.objects.size(key) is None:
        return _Checked(0, 0, [])
    try:
        receipts.read(shard.number, generation)
    except CorruptDataError as error:
        return _Checked(1, 0, [shard.damage(key, f"unreadable receipt: {error}")])
    return _Checked(1, 0, [])


def _shard(store: Store, job: str, number: int) -> _Shard:
    start, stop = store.covered(number, job)
    return _Shard(job, number, start, stop, _shard_specs(store, job, number))


def _shard_specs(store: Store, job: str, number: int) -> dict[str, ArraySpec]:
    arrays = store.arrays
    specs = [*arrays.pooled.values()]
    if job == EXTRACT:
        groups = (arrays.rows, arrays.activations, arrays.statistics)
        specs = [spec for group in groups for spec in group.values()]
    return {spec.key(number): spec for spec in specs}


def _check_record(store: Store, shard: _Shard, record: ObjectRecord, full: bool) -> _Checked:
    size = store.objects.size(record.key)
    if size != record.n_bytes:
        return _Checked(1, 0, [shard.damage(record.key, size_words(size, record.n_bytes))])
    if full and object_digest(store.objects, record.key)[1] != record.xxh3:
        what = "its bytes are not those that the receipt describes"
        return _Checked(1, size, _locate(store, shard, record, what))
    return _Checked(1, size, [])


def _locate(store: Store, shard: _Shard, record: ObjectRecord, what: str) -> list[Damage]:
    """Narrow a damaged object down to the chunks that cannot be read."""
    whole, spec = [shard.damage(record.key, what)], shard.specs[record.key]
    if spec.path.startswith("statistics/"):
        return whole
    try:
        reader = ShardReader(store.objects, spec, shard.number, record.chunk_crc32c)
    except CorruptDataError:
        return whole
    damages = []
    for chunk in range(spec.n_chunks(shard.number)):
        try:
            reader.read_chunk(chunk)
        except (CorruptDataError, FileNotFoundError) as error:
            first = shard.start + chunk * spec.chunk_rows
            last = min(first + spec.chunk_rows, shard.stop)
            damages.append(shard.damage(record.key, f"{what}; {error}", first, last))
    return damages or whole


def _check_columns(store: Store, shard: _Shard) -> _Checked:
    """Hold the stored row columns against those that the plan gives."""
    try:
        columns = store.shard_columns(shard.number)
    except (ActlasError, OSError, ValueError) as error:
        _raise_if_outside(error)
        # The documents are to blame, and named: the shard computed again would mend nothing.
        key = store.arrays.rows["doc_idx"].key(shard.number)
        unchecked = Damage(key, f"cannot be checked: {error}", shard.start, shard.stop)
        return _Checked(0, 0, [unchecked])
    damages = []
    for name, expected in columns.items():
        spec = store.arrays.rows[name]
        try:
            reader = ShardReader(store.objects, spec, shard.number)
            stored = reader.read_rows(0, shard.stop - shard.start)
        except (CorruptDataError, FileNotFoundError):
            continue  # _check_record names it
        if not np.array_equal(stored, expected):
            damages.append(shard.damage(spec.key(shard.number), "not the rows of this plan"))
    return _Checked(0, 0, damages)


def _strays(
    store: Store, done: Mapping[str, frozenset[int]]
) -> tuple[list[Damage], tuple[str, ...]]:
    """Find whatever lies in the store and belongs to nobody, and shards without a receipt."""
    standing = claimed(store)
    expected = {PLAN_KEY, PLAN_COPY_KEY, *store.plan_file.objects, *standing}
    in_shards: dict[str, bool] = {}
    for job in store.jobs:
        for number in range(store.n_shards(job)):
            in_shards.update(dict.fromkeys(_shard_specs(store, job, number), number in done[job]))
            expected.add(receipt_key(job, number))
        for number, generations in store.receipts(job).generations.items():
            expected.update(receipt_key(job, number, g) for g in generations)
    strays, unclaimed = [], []
    for key in store.objects.walk():
        if key in in_shards:
            if not in_shards[key]:
                unclaimed.append(key)
        elif key not in expected and is_leftover(key, standing):
            unclaimed.append(key)
        elif key not in expected and not key.startswith(VOLATILE):
            what = "a stray file: nothing of this store has this name"
            strays.append(Damage(key, what, stray=True))
    return strays, tuple(sorted(unclaimed))
