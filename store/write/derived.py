"""Derived data: groups of arrays made from a store's rows, committed as shards are.

Two attempts at one unit may differ in the last bits, and a group is several objects, so the first
writer of each object cannot win alone: every attempt writes a group of its own, and the receipt,
create-only, says which one counts::

    features/sae/tokens/00000003-1f0c…/{data,indices,indptr}      written first
    ledger/receipts/encode.sae/00000003.json                       last: names that group

A group that no receipt names was written by a worker that was killed or came second. It is never
read, and may be removed.
"""

from __future__ import annotations

import hashlib
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
from actlas.store.ledger.derived import flat, group_of, same_inputs
from actlas.store.ledger.finished import note_finished
from actlas.store.ledger.job_kind import MARK_DIGITS, JobKind, Unit, receipts_of
from actlas.store.ledger.plan_file import require_plan
from actlas.store.ledger.receipts import PlannedStore
from actlas.store.objects.base import Objects
from actlas.store.objects.digests import object_digest
from actlas.store.shards.writer import ShardWriter
from actlas.store.version import versions


def commit(
    store: PlannedStore,
    unit: Unit,
    attributes: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    attempt: str,
    inputs: Mapping[str, str],
    specs: Mapping[str, ArraySpec] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Receipt:
    """Write the group of a unit, and return the valid receipt: that of the first writer.

    Parameters
    ----------
    store : PlannedStore
        The store.
    unit : Unit
        The unit of work.
    attributes : mapping
        The attributes of the group's ``zarr.json``.
    arrays : mapping of str to ndarray
        The arrays by name; one-dimensional, unless ``specs`` has their specs.
    attempt : str
        The name of this attempt, for the receipt and the folder.
    inputs : mapping of str to str
        The keys and seals of the records that the arrays were made from.
    specs : mapping of str to ArraySpec, optional
        The specs of arrays that are not flat, with paths relative to the group.
    run : mapping, optional
        Numbers and texts for the receipt: times, counts, the device.

    Raises
    ------
    ConflictError
        The plan at this path was replaced; or the unit is done, from other inputs.
    RunFaultError
        The disk is full, or a write failed.
    """
    receipts = receipts_of(store, unit.job, unit.n)
    if receipts.exists(unit.number):
        standing = same_inputs(store, receipts.read(unit.number), inputs)
        _note_if_single(store, unit)
        return standing
    require_plan(store.objects, store.plan_sha256)
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
    _note_if_single(store, unit)
    return receipt


def _note_if_single(store: PlannedStore, unit: Unit) -> None:
    """Record that a job of one unit is finished, now that the unit has its receipt."""
    if unit.n == 1:
        note_finished(store.objects, store.plan_sha256, unit.job, unit.n)


def remove(objects: Objects, folder: str) -> None:
    """Remove a group that no receipt names.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    folder : str
        The folder of the group.
    """
    for name in sorted(objects.names(folder)):
        if name == "zarr.json":
            continue
        for part in ("c/0/0", "c/0", "zarr.json"):
            objects.delete(f"{folder}/{name}/{part}")
    objects.delete(f"{folder}/zarr.json")
    objects.prune(folder)


def sweep(store: PlannedStore, kind: JobKind, subject: str) -> int:
    """Remove the groups of a job that lost to another attempt's; return how many.

    Only groups of units with a receipt are removed: an attempt at another unit may still be about
    to write its receipt.

    Parameters
    ----------
    store : PlannedStore
        The store.
    kind : JobKind
        The kind of the job.
    subject : str
        The subject of the job: the name of a set of features, a hookpoint.
    """
    receipts, parent = kind.receipts(store, subject), kind.parent(subject)
    standing = {unit: group_of(receipts.read(unit)) for unit in receipts.done()}
    n_removed = 0
    for name in list(store.objects.names(parent)):
        unit, group = kind.unit_in(name, subject), f"{parent}/{name}"
        if unit is not None and standing.get(unit, group) != group:
            remove(store.objects, group)
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
        record = _recorded(objects, key, writer.n_bytes, writer.xxh3)
        records.append(record.model_copy(update={"chunk_crc32c": tuple(writer.chunk_crc32c)}))
    return records


def _recorded(objects: Objects, key: str, n_bytes: int, xxh3: str) -> ObjectRecord:
    """Return the record of an object, after reading back the bytes at its final name."""
    if object_digest(objects, key) != (n_bytes, xxh3):
        raise RunFaultError(
            f"{objects.url}/{key}: the {n_bytes} bytes that were written differ from those read "
            "back. The disk or the memory is faulty; run the same command again.",
            path=key,
        )
    return ObjectRecord(key=key, n_bytes=n_bytes, xxh3=xxh3, attempt="")


def ensure_groups(store: PlannedStore, kind: JobKind, subject: str) -> None:
    """Create the plain groups above the data of a job, before its first unit.

    Parameters
    ----------
    store : PlannedStore
        The store.
    kind : JobKind
        The kind of the job.
    subject : str
        The subject of the job.

    Raises
    ------
    ConflictError
        A group's metadata exists and is not a plain group's.
    """
    objects, data = store.objects, metadata_bytes(group_metadata())
    for folder in kind.groups(subject):
        key = f"{folder}/zarr.json"
        if not objects.create(key, [data]) and objects.read(key) != data:
            raise ConflictError(
                f"{objects.url}/{key}: expected the metadata of a plain group, found another file. "
                "Remove it if no other program keeps its data there.",
                path=key,
            )
