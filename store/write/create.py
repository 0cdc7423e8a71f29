"""Creating a store: its metadata, its documents, and the plan, which is written last.

On a file system the store is created beside its final path and renamed there whole, so that a store
either exists with its plan or does not exist. A bucket has no renaming: every object is created
once there, the root's metadata (which holds the whole plan) first and the plan's own object last. A
prefix without the plan's object is not a store yet; planning the same again continues it, and
planning anything else is refused at the first object.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator

import numpy as np
from typing_extensions import Buffer

from actlas.store.errors import ActlasError, StoreExistsError
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.recorded import WHOLE_BYTES
from actlas.store.format.schema import ModelFiles, Plan, PlanFile
from actlas.store.format.sealing import seal, unseal
from actlas.store.format.zarr_json import (
    group_metadata,
    ledger_metadata,
    metadata_bytes,
    root_metadata,
)
from actlas.store.ledger.guards import checksums_key
from actlas.store.ledger.model_files import MODEL_FILES_COPY_KEY, MODEL_FILES_KEY
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.objects import faults, leftovers
from actlas.store.objects.base import Objects, is_url, open_objects
from actlas.store.objects.conditions import require_conditions
from actlas.store.objects.digests import object_sha256
from actlas.store.objects.local import LocalObjects, sync_folder
from actlas.store.shards.chunks import index_bytes
from actlas.store.shards.writer import ShardWriter
from actlas.store.write.document_columns import (
    DocumentColumns,
    ImageColumns,
    check_counts,
    document_rows,
)
from actlas.store.write.staging import refuse_existing, workplace


def create(
    path: str | os.PathLike[str],
    plan: Plan,
    columns: DocumentColumns,
    images: ImageColumns | None = None,
    model_files: ModelFiles | None = None,
) -> None:
    """Write a new store's metadata, documents and plan.

    Parameters
    ----------
    path : path
        A path that does not exist or is an empty folder; or a bucket's URL with nothing below it
        except objects of the same plan, from a planning that was interrupted.
    plan : Plan
        What every row is.
    columns : DocumentColumns
        The documents; their counts must match the plan's.
    images : ImageColumns, optional
        The documents' images, where the plan has an image processor.
    model_files : ModelFiles, optional
        The files of the model's folder, with which a later run compares those that it finds.

    Raises
    ------
    StoreExistsError
        ``path`` is occupied; it is left as it is.
    RunFaultError
        The disk is full or fails. Nothing is left behind, unless the very last step failed: the
        message then says so. Where an object store fails, planning the same again continues.
    """
    check_counts(plan, columns, images)
    refuse_existing(path)
    final = workplace(path)
    leftovers.sweep(final, leftovers.PLANNING)
    if is_url(path):
        write(open_objects(path), plan, columns, images, model_files)
        return
    staging = leftovers.beside(final, leftovers.PLANNING)
    planned = False
    try:
        try:
            write(LocalObjects(staging, named=final), plan, columns, images, model_files)
            staging.rename(final)
            planned = True
            sync_folder(final.parent)
        finally:
            leftovers.remove(staging)
    except OSError as error:
        if isinstance(error, ActlasError):
            raise
        fault = faults.write_fault(error, final)
        if planned:
            raise type(fault)(
                f"{fault} The plan is complete by now: `actlas extract {final}` continues with it.",
                **fault.details,
            ) from error
        refuse_existing(final)  # another planner was faster
        raise fault from error


def write(
    objects: Objects,
    plan: Plan,
    columns: DocumentColumns,
    images: ImageColumns | None = None,
    model_files: ModelFiles | None = None,
) -> None:
    """Write every object of a new store, the plan last.

    Objects that an interrupted planning left are kept where they are the same to the byte.

    Raises
    ------
    StoreExistsError
        Another object is there, or another planner finished meanwhile.
    """
    labels = columns.label_names if columns.label is not None else None
    arrays = StoreArrays(plan, labels, columns.source_names, columns.token_column_names)
    written: dict[str, tuple[str, int]] = {}

    def put(key: str, parts: Iterable[Buffer]) -> bool:
        digest = hashlib.sha256()
        n_bytes = 0

        def passing() -> Iterator[Buffer]:
            nonlocal n_bytes
            for part in parts:
                digest.update(part)
                n_bytes += memoryview(part).nbytes
                yield part

        created = objects.create(key, passing())
        written[key] = digest.hexdigest(), n_bytes
        if not created and object_sha256(objects, key) != written[key]:
            raise StoreExistsError(
                f"{objects.url}/{key}: the planning of another plan was begun here, and not "
                "finished. Plan with the same options to continue it; or remove everything "
                "below this prefix, or give another prefix.",
                path=objects.url,
                begun=True,
            )
        return created

    root = metadata_bytes(root_metadata(plan))
    if put("zarr.json", [root]):  # an object that is found there shows it as well
        require_conditions(objects, "zarr.json", root + b"\n")
    put("ledger/zarr.json", [metadata_bytes(ledger_metadata())])
    if model_files is not None:
        for key in (MODEL_FILES_KEY, MODEL_FILES_COPY_KEY):
            put(key, [seal(model_files)])
    for group in arrays.groups:
        put(f"{group}/zarr.json", [metadata_bytes(group_metadata())])
    for spec in arrays.all().values():
        put(spec.metadata_key, [metadata_bytes(spec.metadata())])
    for name, spec in arrays.documents.items():
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            writer = ShardWriter(spec, document_rows(columns, images, name, spec, start, stop))
            put(spec.key(shard), writer.parts())
            if (
                writer.n_bytes - index_bytes(spec) > WHOLE_BYTES
            ):  # a reader of one chunk must not read all of them
                checksums = np.array(writer.chunk_crc32c, dtype="<u4").tobytes()
                put(checksums_key(spec.key(shard)), [checksums])
    plan_file = PlanFile(plan=plan, objects=written, created_unix_s=time.time(), has_copy=True)
    sealed = seal(plan_file)
    if not objects.create(PLAN_COPY_KEY, [sealed]):
        sealed = _begun_plan(objects, plan_file)
    if not objects.create(PLAN_KEY, [sealed]):
        raise StoreExistsError(
            f"{objects.url}: another planner has finished here.", path=objects.url
        )


def _begun_plan(objects: Objects, ours: PlanFile) -> bytes:
    """Return the sealed plan that an interrupted planning had already copied."""
    sealed = objects.read(PLAN_COPY_KEY)
    theirs = unseal(sealed, PlanFile, f"{objects.url}/{PLAN_COPY_KEY}")
    if theirs.model_copy(update={"created_unix_s": ours.created_unix_s}) != ours:
        raise StoreExistsError(
            f"{objects.url}/{PLAN_COPY_KEY}: this is another plan. Remove everything below "
            "this prefix, or give another prefix.",
            path=objects.url,
            begun=True,
        )
    return sealed
