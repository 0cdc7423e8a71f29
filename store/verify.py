"""Proving a store: every receipt against the bytes, every byte against its checksum."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from actlas.store.arrays import ArraySpec
from actlas.store.errors import ActlasError, CorruptDataError
from actlas.store.receipts import EXTRACT, POOLED, receipt_key
from actlas.store.schema import ObjectRecord
from actlas.store.shardfile import ShardReader
from actlas.store.store import PLAN_KEY, Store
from actlas.store.verify_derived import (
    DerivedCheck,
    claimed,
    derived_checks,
    is_leftover,
    size_words,
)
from actlas.store.writer import READ_BYTES, object_digest

VOLATILE = ("ledger/staging/", "ledger/lease/", "ledger/logs/", "ledger/quarantine/")
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
    """

    key: str
    what: str
    start: int | None = None
    stop: int | None = None
    of: str = "rows"

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
    key: str
    where: tuple[int, int, str] | tuple[()] = ()

    def __call__(self) -> _Checked:
        try:
            return self.run()
        except (ActlasError, OSError, ValueError) as error:
            what = f"cannot be checked: {error}"
            return _Checked(0, 0, [Damage(self.key, what, *self.where)])


class _Shard(NamedTuple):
    """One shard of a job, and what its damages take with them."""

    job: str
    number: int
    where: tuple[int, int, str]
    specs: dict[str, ArraySpec]


def verify(
    store: Store, full: bool = False, progress: Callable[[int, int], None] | None = None
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
    """
    done = {job: store.done(job) for job in store.jobs}
    shards = [_shard(store, job, number) for job in done for number in sorted(done[job])]
    n_all = len(store.plan_file.objects) + sum(len(shard.specs) for shard in shards)
    damages: list[Damage] = []
    n_objects, n_bytes = 0, 0
    for checked in _in_threads(_checks(store, shards, full)):
        damages += checked.damages
        n_objects += checked.n_objects
        n_bytes += checked.n_bytes
        if progress is not None:
            progress(n_objects, n_all)
    strays, unclaimed = _strays(store, done)
    missing = {j: tuple(sorted(set(range(store.n_shards(j))) - done[j])) for j in done}
    unique = {(d.key, d.start, d.stop): d for d in reversed(damages + strays)}
    return Report(
        full=full,
        n_objects=n_objects,
        n_bytes=n_bytes,
        missing=missing.get(EXTRACT, ()),
        damages=tuple(reversed(unique.values())),
        unclaimed=unclaimed,
        missing_pooled=missing.get(POOLED, ()),
    )


def _in_threads(checks: Iterator[_Check]) -> Iterator[_Checked]:
    """Run checks in threads, a bounded number ahead, and yield outcomes in order."""
    n_threads = min(8, os.cpu_count() or 1)
    running: deque[Future[_Checked]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="actlas-verify") as pool:
        for check in checks:
            running.append(pool.submit(check.__call__))
            if len(running) > 16 * n_threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _derived(check: DerivedCheck) -> _Checked:
    n_objects, n_bytes, findings = check.run()
    return _Checked(n_objects, n_bytes, [Damage(*finding) for finding in findings])


def _checks(store: Store, shards: list[_Shard], full: bool) -> Iterator[_Check]:
    for key, (digest, n_bytes) in store.plan_file.objects.items():
        yield _Check(partial(_check_planned, store, key, digest, n_bytes, full), key)
    for shard in shards:
        yield from _shard_checks(store, shard, full)
    for check in derived_checks(store, full):
        yield _Check(partial(_derived, check), check.key)


def _check_planned(store: Store, key: str, digest: str, n_bytes: int, full: bool) -> _Checked:
    size = store.objects.size(key)
    if size != n_bytes:
        return _Checked(1, 0, [Damage(key, size_words(size, n_bytes))])
    if full or key.endswith("zarr.json"):
        sha256, offset = hashlib.sha256(), 0
        while piece := store.objects.read(key, offset, READ_BYTES):
            sha256.update(piece)
            offset += len(piece)
        if sha256.hexdigest() != digest:
            return _Checked(1, n_bytes, [Damage(key, "its sha256 is not the plan's")])
    return _Checked(1, n_bytes, [])


def _shard_checks(store: Store, shard: _Shard, full: bool) -> Iterator[_Check]:
    """Yield the checks of one finished shard: its receipt, then all that the receipt names."""
    key = receipt_key(shard.job, shard.number)
    try:
        receipt = store.receipts(shard.job).read(shard.number)
    except (ActlasError, OSError) as error:
        damage = Damage(key, f"unreadable receipt: {error}", *shard.where)
        yield _Check(lambda: _Checked(0, 0, [damage]), key)
        return
    named = {record.key for record in receipt.objects}
    if named != set(shard.specs) or (receipt.start, receipt.stop) != shard.where[:2]:
        odd = sorted(set(shard.specs) ^ named)
        unfit = Damage(key, f"does not fit the plan ({odd})", *shard.where)
        yield _Check(lambda: _Checked(0, 0, [unfit]), key)
    for record in receipt.objects:
        if record.key in shard.specs:
            check = partial(_check_record, store, shard, record, full)
            yield _Check(check, record.key, shard.where)
    if full and shard.job == EXTRACT:
        columns = store.arrays.rows["doc_idx"].key(shard.number)
        yield _Check(partial(_check_columns, store, shard.number), columns, shard.where)


def _shard(store: Store, job: str, number: int) -> _Shard:
    start, stop = store.covered(number, job)
    of = "documents" if job == POOLED else "rows"
    return _Shard(job, number, (start, stop, of), _shard_specs(store, job, number))


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
        what = size_words(size, record.n_bytes)
        return _Checked(1, 0, [Damage(record.key, what, *shard.where)])
    if full and object_digest(store.objects, record.key)[1] != record.xxh3:
        what = "its bytes are not those that the receipt describes"
        return _Checked(1, size, _locate(store, shard, record, what))
    return _Checked(1, size, [])


def _locate(store: Store, shard: _Shard, record: ObjectRecord, what: str) -> list[Damage]:
    """Narrow a damaged object down to the chunks that cannot be read."""
    start, stop, of = shard.where
    whole, spec = [Damage(record.key, what, start, stop, of)], shard.specs[record.key]
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
        except (CorruptDataError, OSError) as error:
            first = start + chunk * spec.chunk_rows
            last = min(first + spec.chunk_rows, stop)
            damages.append(Damage(record.key, f"{what}; {error}", first, last, of))
    return damages or whole


def _check_columns(store: Store, shard: int) -> _Checked:
    """Hold the stored row columns against those that the plan gives."""
    start, stop = store.shard_range(shard)
    damages = []
    for name, expected in store.shard_columns(shard).items():
        spec = store.arrays.rows[name]
        try:
            stored = ShardReader(store.objects, spec, shard).read_rows(0, stop - start)
        except (ActlasError, OSError):
            continue  # _check_record names it
        if not np.array_equal(stored, expected):
            damages.append(Damage(spec.key(shard), "not the rows of this plan", start, stop))
    return _Checked(0, 0, damages)


def _strays(
    store: Store, done: Mapping[str, frozenset[int]]
) -> tuple[list[Damage], tuple[str, ...]]:
    """Find whatever lies in the store and belongs to nobody, and shards without a receipt."""
    standing = claimed(store)
    expected = {PLAN_KEY, *store.plan_file.objects, *standing}
    in_shards: dict[str, bool] = {}
    for job in store.jobs:
        for number in range(store.n_shards(job)):
            in_shards.update(dict.fromkeys(_shard_specs(store, job, number), number in done[job]))
            expected.add(receipt_key(job, number))
    strays, unclaimed = [], []
    for key in store.objects.walk():
        if key in in_shards:
            if not in_shards[key]:
                unclaimed.append(key)
        elif key not in expected and is_leftover(key, standing):
            unclaimed.append(key)
        elif key not in expected and not key.startswith(VOLATILE):
            strays.append(Damage(key, "a stray file: nothing of this store has this name"))
    return strays, tuple(sorted(unclaimed))
