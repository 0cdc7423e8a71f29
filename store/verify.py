"""Proving a store: every receipt against the bytes, every byte against its checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from actlas.store.arrays import ArraySpec
from actlas.store.commit import READ_BYTES, object_crc32c
from actlas.store.errors import ActlasError, CorruptDataError
from actlas.store.receipts import EXTRACT, receipt_key
from actlas.store.schema import ObjectRecord
from actlas.store.shardfile import ShardReader
from actlas.store.store import Store


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


class _Checked:
    """One object's outcome: its bytes, and what is wrong."""

    def __init__(self, key: str, n_bytes: int, damages: list[Damage]) -> None:
        self.key = key
        self.n_bytes = n_bytes
        self.damages = damages


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
    tasks: list[Callable[[], _Checked]] = [
        partial(_check_planned, store, key, digest, n_bytes, full)
        for key, (digest, n_bytes) in store.plan_file.objects.items()
    ]
    damages: list[Damage] = []
    for shard in done:
        tasks += _receipt_tasks(store, shard, full, damages)
    if full:
        tasks += [partial(_check_columns, store, shard) for shard in done]
    n_objects, n_bytes = 0, 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, checked in enumerate(pool.map(lambda task: task(), tasks)):
            damages += checked.damages
            n_objects += bool(checked.n_bytes)
            n_bytes += checked.n_bytes
            if progress is not None:
                progress(i + 1, len(tasks))
    strays, unclaimed = _strays(store, frozenset(done))
    missing = tuple(sorted(set(range(store.plan.n_shards)) - set(done)))
    unique = {(d.key, d.start, d.stop): d for d in reversed(damages + strays)}
    return Report(
        full, n_objects, n_bytes, missing, tuple(reversed(unique.values())), tuple(unclaimed)
    )


def _check_planned(store: Store, key: str, digest: str, n_bytes: int, full: bool) -> _Checked:
    size = store.objects.size(key)
    if size != n_bytes:
        return _Checked(key, 0, [Damage(key, _size_words(size, n_bytes))])
    if full or key.endswith("zarr.json"):
        sha256, offset = hashlib.sha256(), 0
        while piece := store.objects.read(key, offset, READ_BYTES):
            sha256.update(piece)
            offset += len(piece)
        if sha256.hexdigest() != digest:
            return _Checked(key, n_bytes, [Damage(key, "its sha256 is not the plan's")])
    return _Checked(key, n_bytes, [])


def _size_words(size: int | None, expected: int) -> str:
    if size is None:
        return f"missing ({expected:,} bytes expected)"
    word = "empty" if size == 0 else "truncated" if size < expected else "too long"
    return f"{word} ({size:,} bytes, {expected:,} expected)"


def _receipt_tasks(
    store: Store, shard: int, full: bool, damages: list[Damage]
) -> Iterator[Callable[[], _Checked]]:
    start, stop = store.shard_range(shard)
    key = receipt_key(EXTRACT, shard)
    try:
        receipt = store.receipts().read(shard)
    except (ActlasError, OSError) as error:
        damages.append(Damage(key, f"unreadable receipt: {error}", start, stop))
        return
    specs = {
        spec.key(shard): spec
        for group in (store.arrays.rows, store.arrays.activations, store.arrays.statistics)
        for spec in group.values()
    }
    named = {record.key for record in receipt.objects}
    if named != set(specs) or (receipt.start, receipt.stop) != (start, stop):
        absent = sorted(set(specs) - named) or sorted(named - set(specs))
        damages.append(Damage(key, f"does not fit the plan ({absent})", start, stop))
    for record in receipt.objects:
        if record.key in specs:
            yield partial(_check_record, store, shard, specs[record.key], record, full)


def _check_record(
    store: Store, shard: int, spec: ArraySpec, record: ObjectRecord, full: bool
) -> _Checked:
    start, stop = store.shard_range(shard)
    size = store.objects.size(record.key)
    if size != record.n_bytes:
        what = _size_words(size, record.n_bytes)
        return _Checked(record.key, 0, [Damage(record.key, what, start, stop)])
    if full:
        _, crc = object_crc32c(store.objects, record.key)
        if crc != record.crc32c:
            what = f"its crc32c is {crc:08x}, the receipt says {record.crc32c:08x}"
            return _Checked(record.key, size, _locate(store, shard, spec, record, what))
    return _Checked(record.key, size, [])


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
        except (CorruptDataError, RuntimeError, OSError) as error:
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
        except (CorruptDataError, RuntimeError, OSError):
            continue  # _check_record names it
        if not np.array_equal(stored, expected):
            damages.append(Damage(spec.key(shard), "not the rows of this plan", start, stop))
    return _Checked("", 0, damages)


def _strays(store: Store, done: frozenset[int]) -> tuple[list[Damage], list[str]]:
    """Find what lies among the shards and is none, and shards that no receipt names."""
    strays, unclaimed = [], []
    groups = (store.arrays.rows, store.arrays.activations, store.arrays.statistics)
    for spec in (spec for group in groups for spec in group.values()):
        for name in store.objects.names(f"{spec.path}/c"):
            if not name.isdigit() or int(name) >= spec.n_shards or str(int(name)) != name:
                strays.append(Damage(f"{spec.path}/c/{name}", "a stray file: no shard of the plan"))
            elif int(name) not in done and store.objects.size(spec.key(int(name))) is not None:
                unclaimed.append(spec.key(int(name)))
    return strays, unclaimed
