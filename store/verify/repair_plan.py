"""Repairing a store's plan, and the metadata that follows from it.

The plan has a copy, and it holds the sha256 of every other file repaired here, so each file is
proved to be the one that was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from actlas.store.errors import CorruptDataError, FormatError, RunFaultError, of_one_object
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import FeaturesSpec, ModelFiles, PlanFile
from actlas.store.format.sealing import unseal
from actlas.store.format.zarr_json import (
    group_metadata,
    ledger_metadata,
    metadata_bytes,
    root_metadata,
)
from actlas.store.ledger.feature_sets import copies, copy_key, names, read_description, spec_key
from actlas.store.ledger.model_files import MODEL_FILES_COPY_KEY, MODEL_FILES_KEY
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.objects.base import Objects
from actlas.store.read.reader import StoreReader
from actlas.store.statistics.shard import EARLIER_STATISTICS, STATISTICS
from actlas.store.verify.damage import raise_if_outside

ROOT_KEY = "zarr.json"

Record = TypeVar("Record")


def repair_plan(objects: Objects) -> list[str]:
    """Restore the plan, its copy and the root's metadata; return the keys that were written.

    Raises
    ------
    CorruptDataError
        Neither the plan nor its copy can be read, or they are two different plans.
    """
    found = {key: _read_record(objects, key, _plan_of) for key in (PLAN_KEY, PLAN_COPY_KEY)}
    whole = {key: plan for key, plan in found.items() if plan is not None}
    if not whole:
        raise CorruptDataError(
            f"{objects.url}: neither {PLAN_KEY} nor its copy can be read, and without a plan "
            "nothing here can be verified. Restore one of them from a backup, or extract again.",
            path=objects.url,
        )
    if len({data for data, _ in whole.values()}) > 1:
        raise CorruptDataError(
            f"{objects.url}: {PLAN_KEY} and {PLAN_COPY_KEY} are two different plans, each whole. "
            "Receipts name theirs by plan_sha256: remove the other.",
            path=objects.url,
        )
    data, plan_file = next(iter(whole.values()))
    written = []
    for key in (PLAN_KEY, PLAN_COPY_KEY):
        if key not in whole and (key == PLAN_KEY or plan_file.has_copy):
            objects.replace(key, data)
            written.append(key)
    root = metadata_bytes(root_metadata(plan_file.plan))
    if _put_back(objects, plan_file, ROOT_KEY, root):
        written.append(ROOT_KEY)
    return written


def repair_metadata(store: StoreReader, keys: Iterable[str]) -> list[str]:
    """Restore metadata that follows from the plan; return the keys that were written.

    The names of labels, sources and token columns are only in the metadata of their arrays. Such
    metadata is restored only where another array has the same names. The record of the model's
    files is restored from its copy, and the copy from the record.
    """
    wanted = set(keys)
    written = []
    for key, data in _metadata(store):
        if key in wanted and _put_back(store.objects, store.plan_file, key, data):
            written.append(key)
            wanted.remove(key)
    pair = (MODEL_FILES_KEY, MODEL_FILES_COPY_KEY)
    for key, other in (pair, pair[::-1]):
        whole = _read_record(store.objects, other, _model_files_of) if key in wanted else None
        if whole is not None and _put_back(store.objects, store.plan_file, key, whole[0]):
            written.append(key)
    return written


def repair_descriptions(store: StoreReader) -> list[str]:
    """Restore descriptions of features and their copies from each other; return the keys.

    Where neither can be read, or both can and they differ, they are left as they are.
    """
    written = []
    for name in sorted({*names(store), *copies(store)}):
        keys = (spec_key(name), copy_key(name))
        described_in = partial(_description_of, name=name)
        found = {key: _read_record(store.objects, key, described_in) for key in keys}
        whole = [record for record in found.values() if record is not None]
        if len(whole) == 1:
            [(data, described)] = whole
            lost = keys[0] if found[keys[0]] is None else keys[1]
            if lost == keys[0] or described.has_copy or store.objects.size(lost) is not None:
                store.objects.replace(lost, data)
                written.append(lost)
    return written


def put_back_from(store: StoreReader, other: StoreReader, keys: Iterable[str]) -> list[str]:
    """Restore objects from another store of the same documents; return the keys written."""
    written = []
    for key in keys:
        try:
            data = other.objects.read(key)
        except FileNotFoundError:
            continue
        if _put_back(store.objects, store.plan_file, key, data):
            written.append(key)
    return written


def _read_record(
    objects: Objects, key: str, record_of: Callable[[bytes, str], Record]
) -> tuple[bytes, Record] | None:
    """Return a sealed record with its bytes, or None if it cannot be read or is another's."""
    try:
        data = objects.read(key)
        return data, record_of(data, f"{objects.url}/{key}")
    except (FileNotFoundError, FormatError, CorruptDataError):
        return None
    except RunFaultError as error:
        raise_if_outside(error)
        return None


def _description_of(data: bytes, where: str, *, name: str) -> FeaturesSpec:
    return read_description(data, name, where)


def _plan_of(data: bytes, where: str) -> PlanFile:
    return unseal(data, PlanFile, where)


def _model_files_of(data: bytes, where: str) -> ModelFiles:
    return unseal(data, ModelFiles, where)


def _put_back(objects: Objects, plan_file: PlanFile, key: str, data: bytes) -> bool:
    """Replace an object by these bytes; return whether it was replaced.

    It is left where it is whole, and where the plan's sha256 is not that of the bytes.
    """
    expected = plan_file.objects.get(key)
    if expected is None or (hashlib.sha256(data).hexdigest(), len(data)) != expected:
        return False
    try:
        if objects.read(key) == data:
            return False
    except (FileNotFoundError, FormatError, CorruptDataError):
        pass  # missing, too long, or a link: not the file that was written
    except RunFaultError as error:
        if not of_one_object(error):
            raise
    objects.replace(key, data)
    return True


def _metadata(store: StoreReader) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the bytes of each ``zarr.json`` that follows from the plan."""
    plan = store.plan
    yield ROOT_KEY, metadata_bytes(root_metadata(plan))
    yield "ledger/zarr.json", metadata_bytes(ledger_metadata())
    labels = _names(store, "documents/label")
    columns = {}
    for name in plan.token_columns:
        columns[name] = _names(store, f"documents/{name}") or _names(store, f"rows/{name}") or ()
    sources = _names(store, "documents/source") or ()
    for statistics in (STATISTICS, EARLIER_STATISTICS):
        arrays = StoreArrays(plan, labels, sources, columns, statistics)
        for group in arrays.groups:
            yield f"{group}/zarr.json", metadata_bytes(group_metadata())
        for spec in arrays.all().values():
            yield spec.metadata_key, metadata_bytes(spec.metadata())


def _names(store: StoreReader, path: str) -> tuple[str, ...] | None:
    """Return the names in an array's attributes, where its metadata is whole."""
    key = f"{path}/zarr.json"
    expected = store.plan_file.objects.get(key)
    try:
        data = store.objects.read(key)
    except FileNotFoundError:
        return None
    if expected is None or hashlib.sha256(data).hexdigest() != expected[0]:
        return None
    body: dict[str, Any] = json.loads(data)
    return tuple(body.get("attributes", {}).get("names", ()))
