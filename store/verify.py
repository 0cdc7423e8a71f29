"""Proving a store: every receipt against the bytes, every byte against its checksum."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from actlas.store.arrays import ArraySpec
from actlas.store.commit import READ_BYTES, object_digest
from actlas.store.errors import ActlasError, CorruptDataError
from actlas.store.receipts import EXTRACT, receipt_key
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
    """

    key: str
    what: str
    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        rows = f", rows [{self.start}, {self.stop})" if self.start is not None else ""
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
    start: int | None = None
    stop: int | None = None

    def __call__(self) -> _Checked:
        try:
            return self.run()
        except (ActlasError, OSError, ValueError) as error:
            what = f"cannot be checked: {error}"
            return _Checked(0, 0, [Damage(self.key, what, self.start, self.stop)])


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
    done = sorted(store.done())
    n_shard_objects = len(store.arrays.rows) + 2 * len(store.arrays.activations)
    n_all = len(store.plan_file.objects) + len(done) * n_shard_objects
    damages: list[Damage] = []
    n_objects, n_bytes = 0, 0
    for checked in _in_threads(_checks(store, done, full)):
        damages += checked.damages
        n_objects += checked.n_objects
        n_bytes += checked.n_bytes
        if progress is not None:
            progress(n_objects, n_all)
    strays, unclaimed = _strays(store, frozenset(done))
    missing = tuple(sorted(set(range(store.plan.n_shards)) - set(done)))
    unique = {(d.key, d.start, d.stop): d for d in reversed(damages + strays)}
    return Report(full, n_objects, n_bytes, missing, tuple(reversed(unique.values())), unclaimed)


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


def _checks(store: Store, done: list[int], full: bool) -> Iterator[_Check]:
    for key, (digest, n_bytes) in store.plan_file.objects.items():
        yield _Check(partial(_check_planned, store, key, digest, n_bytes, full), key)
    for shard in done:
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


def _shard_checks(store: Store, shard: int, full: bool) -> Iterator[_Check]:
    """Yield the checks of one finished shard: its receipt, then all that the receipt names."""
    start, stop = store.shard_range(shard)
    key = receipt_key(EXTRACT, shard)
    try:
        receipt = store.receipts().read(shard)
    except (ActlasError, OSError) as error:
        damage = Damage(key, f"unreadable receipt: {error}", start, stop)
        yield _Check(lambda: _Checked(0, 0, [damage]), key)
        return
    specs = _shard_specs(store, shard)
    named = {record.key for record in receipt.objects}
    if named != set(specs) or (receipt.start, receipt.stop) != (start, stop):
        odd = sorted(set(specs) ^ named)
        unfit = Damage(key, f"does not fit the plan ({odd})", start, stop)
        yield _Check(lambda: _Checked(0, 0, [unfit]), key)
    for record in receipt.objects:
        if record.key in specs:
            check = partial(_check_record, store, shard, specs[record.key], record, full)
            yield _Check(check, record.key, start, stop)
    if full:
        columns = store.arrays.rows["doc_idx"].key(shard)
        yield _Check(partial(_check_columns, store, shard), columns, start, stop)


def _shard_specs(store: Store, shard: int) -> dict[str, ArraySpec]:
    groups = (store.arrays.rows, store.arrays.activations, store.arrays.statistics)
    return {spec.key(shard): spec for group in groups for spec in group.values()}


def _check_record(
    store: Store, shard: int, spec: ArraySpec, record: ObjectRecord, full: bool
) -> _Checked:
    start, stop = store.shard_range(shard)
    size = store.objects.size(record.key)
    if size != record.n_bytes:
        what = size_words(size, record.n_bytes)
        return _Checked(1, 0, [Damage(record.key, what, start, stop)])
    if full and object_digest(store.objects, record.key)[1] != record.xxh3:
        what = "its bytes are not those that the receipt describes"
        return _Checked(1, size, _locate(store, shard, spec, record, what))
    return _Checked(1, size, [])


def _locate(
    store: Store, shard: int, spec: ArraySpec, record: ObjectRecord, what: str
) -> list[Damage]:
    """Narrow a damaged object down to the chunks that cannot be read."""
    start, stop = store.shard_range(shard)
    whole = [Damage(record.key, what, start, stop)]
    if spec.path.startswith("statistics/"):
        return whole
    try:
        reader = ShardReader(store.objects, spec, shard, record.chunk_crc32c)
    except CorruptDataError:
        return whole
    damages = []
    for chunk in range(spec.n_chunks(shard)):
        try:
            reader.read_chunk(chunk)
        except (CorruptDataError, OSError) as error:
            first = start + chunk * spec.chunk_rows
            last = min(first + spec.chunk_rows, stop)
            damages.append(Damage(record.key, f"{what}; {error}", first, last))
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


def _strays(store: Store, done: frozenset[int]) -> tuple[list[Damage], tuple[str, ...]]:
    """Find whatever lies in the store and belongs to nobody, and shards without a receipt."""
    standing = claimed(store)
    expected = {PLAN_KEY, *store.plan_file.objects, *standing}
    shards: dict[str, int] = {}
    for shard in range(store.plan.n_shards):
        shards.update(dict.fromkeys(_shard_specs(store, shard), shard))
        expected.add(receipt_key(EXTRACT, shard))
    strays, unclaimed = [], []
    for key in store.objects.walk():
        if key in shards:
            if shards[key] not in done:
                unclaimed.append(key)
        elif key not in expected and is_leftover(key, standing):
            unclaimed.append(key)
        elif key not in expected and not key.startswith(VOLATILE):
            strays.append(Damage(key, "a stray file: nothing of this store has this name"))
    return strays, tuple(sorted(unclaimed))
