"""Derived data: groups of arrays made from a store's rows, committed as shards are.

Two attempts at one unit may differ in the last bits, and a group is several objects, so the first
writer of each object cannot win alone: every attempt writes a group of its own, and the receipt,
create-only, says which one counts::

    features/sae/tokens/00000003-1f0c…/{data,indices,indptr}      written first
    ledger/receipts/encode.sae/00000003.json                       last: names that group

A group that no receipt names is a killed or beaten worker's. It is never read, and may be removed.
"""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from actlas.store.errors import ConflictError, RunFaultError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.schema import ObjectRecord, Receipt
from actlas.store.format.sealing import FORMAT_VERSION
from actlas.store.format.zarr_json import group_metadata, metadata_bytes
from actlas.store.ledger.derived import MARK_DIGITS, Unit, flat, group_of, receipts_of, same_inputs
from actlas.store.ledger.receipts import Receipts
from actlas.store.objects.base import Objects
from actlas.store.objects.digests import object_digest
from actlas.store.read.reader import StoreReader
from actlas.store.shards.writer import ShardWriter
from actlas.store.version import versions


def commit(
    store: StoreReader,
    unit: Unit,
    attributes: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    attempt: str,
    inputs: Mapping[str, str],
    specs: Mapping[str, ArraySpec] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Receipt:
    """Write one unit's group and return the receipt that stands: the first writer's.

    Parameters
    ----------
    store : StoreReader
    unit : Unit
    attributes : mapping
        Of the group's ``zarr.json``.
    arrays : mapping of str to ndarray
        One-dimensional, unless ``specs`` says how they lie.
    attempt : str
        Names this try, for the receipt and the folder.
    inputs : mapping of str to str
        Keys and seals of what it was made from.
    specs : mapping of str to ArraySpec, optional
        Of arrays that are not flat; with paths relative to the group.

    Raises
    ------
    ConflictError
        The plan at this path is another one by now; or the unit is done, from other inputs.
    RunFaultError
        The disk is full or fails.
    """
    receipts = receipts_of(store, unit.job, unit.n)
    if receipts.exists(unit.number):
        return same_inputs(store, receipts.read(unit.number), inputs)
    store.require_same_plan()
    mark = hashlib.sha256(f"{attempt} {time.time_ns()}".encode()).hexdigest()[:MARK_DIGITS]
    folder = f"{unit.folder}-{mark}"
    try:
        records = [_put(store.objects, f"{folder}/zarr.json", group_metadata(dict(attributes)))]
        for name, values in arrays.items():
            spec = (specs or {}).get(name) or flat(name, len(values), str(values.dtype), name)
            records += _put_array(store.objects, folder, spec, values)
    except BaseException:
        remove(store.objects, folder)
        raise
    receipt = receipts.write(
        Receipt(
            format_version=FORMAT_VERSION,
            plan_sha256=store.plan_sha256,
            job=unit.job,
            shard=unit.number,
            start=unit.start,
            stop=unit.stop,
            attempt=attempt,
            host=socket.gethostname(),
            created_unix_s=time.time(),
            versions=versions(),
            objects=tuple(r.model_copy(update={"attempt": attempt}) for r in records),
            n_nonfinite={},
            run=dict(run or {}),
            inputs=dict(inputs),
        )
    )
    if group_of(receipt) != folder:
        remove(store.objects, folder)
    return receipt


def remove(objects: Objects, folder: str) -> None:
    """Remove a group that no receipt names."""
    for name in sorted(objects.names(folder)):
        if name == "zarr.json":
            continue
        for part in ("c/0/0", "c/0", "zarr.json"):
            objects.delete(f"{folder}/{name}/{part}")
    objects.delete(f"{folder}/zarr.json")
    objects.prune(folder)


def sweep(store: StoreReader, receipts: Receipts, folder: str) -> int:
    """Remove the groups under a folder that receipts have decided against; return how many.

    Only groups of units that have a receipt: one without may still be about to get its own.
    """
    named = {unit: group_of(receipts.read(unit)).rsplit("/", 1)[1] for unit in receipts.done()}
    n_removed = 0
    for name in list(store.objects.names(folder)):
        match = re.fullmatch(r"([0-9]{8})-[0-9a-f]{12}", name)
        if match is not None and named.get(int(match[1]), name) != name:
            remove(store.objects, f"{folder}/{name}")
            n_removed += 1
    return n_removed


def sweep_unit(store: StoreReader, receipt: Receipt) -> int:
    """Remove the groups of a job of one unit that its receipt has decided against."""
    group = group_of(receipt)
    parent, _, name = group.rpartition("/")
    stem = name[: -MARK_DIGITS - 1]
    n_removed = 0
    for other in list(store.objects.names(parent)):
        if other != name and re.fullmatch(re.escape(stem) + "-[0-9a-f]{12}", other):
            remove(store.objects, f"{parent}/{other}")
            n_removed += 1
    return n_removed


def _put(objects: Objects, key: str, metadata: dict[str, Any]) -> ObjectRecord:
    data = metadata_bytes(metadata)
    objects.create(key, [data])
    return _recorded(objects, key, len(data), xxhash.xxh3_128(data).hexdigest())


def _put_array(
    objects: Objects, folder: str, spec: ArraySpec, values: NDArray[Any]
) -> list[ObjectRecord]:
    if spec.n_shards > 1:
        raise ValueError(f"{spec.path}: a derived array is one object, got {spec.n_shards} shards")
    records = [_put(objects, f"{folder}/{spec.metadata_key}", spec.metadata())]
    if len(values):
        writer = ShardWriter(spec, np.ascontiguousarray(values))
        objects.create(key := f"{folder}/{spec.key(0)}", writer.parts())
        records.append(_recorded(objects, key, writer.n_bytes, writer.xxh3))
    return records


def _recorded(objects: Objects, key: str, n_bytes: int, xxh3: str) -> ObjectRecord:
    """Record an object from the bytes at its final name."""
    if object_digest(objects, key) != (n_bytes, xxh3):
        raise RunFaultError(
            f"{objects.url}/{key}: the {n_bytes} bytes that were written are not those that are "
            "read back. The disk or the memory is at fault; run the same command again.",
            path=key,
        )
    return ObjectRecord(key=key, n_bytes=n_bytes, xxh3=xxh3, attempt="")


def ensure_groups(objects: Objects, *folders: str) -> None:
    """Create the plain groups that lie above derived ones."""
    for folder in folders:
        data = metadata_bytes(group_metadata())
        key = f"{folder}/zarr.json"
        if not objects.create(key, [data]) and objects.read(key) != data:
            raise ConflictError(
                f"{objects.url}/{key}: expected a plain group's metadata. Remove that file if "
                "nothing else keeps its data there.",
                path=key,
            )
