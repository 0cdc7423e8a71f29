"""Derived data in the ledger: the groups of arrays that receipts name, and their inputs."""

from __future__ import annotations

from collections.abc import Mapping

from actlas.store.errors import ConflictError, FormatError
from actlas.store.format.array_spec import COLUMN_COMPRESSION, ArraySpec
from actlas.store.format.layout import ceil_div
from actlas.store.format.schema import Receipt
from actlas.store.format.sealing import seal_of
from actlas.store.ledger.job_kinds import is_group
from actlas.store.ledger.receipts import EXTRACT, PlannedStore, receipt_key
from actlas.store.objects.base import Objects

FLAT_CHUNK = 65_536
"""Elements of an inner chunk of a flat array."""


def flat(path: str, n: int, dtype: str, dimension: str) -> ArraySpec:
    """Return the spec of a one-dimensional array that is one object."""
    return ArraySpec(
        path=path,
        shape=(n,),
        dtype=dtype,
        shard_rows=max(1, ceil_div(n, FLAT_CHUNK)) * FLAT_CHUNK,
        chunk_rows=FLAT_CHUNK,
        compression=COLUMN_COMPRESSION,
        dimensions=(dimension,),
    )


def group_of(receipt: Receipt) -> str:
    """Return the folder of the group that a receipt names.

    Raises
    ------
    FormatError
        It names none, or a folder where no derived data lies.
    """
    folder = receipt.objects[0].key.rpartition("/")[0] if receipt.objects else ""
    return group_named(folder, receipt)


def group_named(folder: object, receipt: Receipt) -> str:
    """Return a group's folder as a receipt names it, which lies where derived data does.

    Raises
    ------
    FormatError
        It does not.
    """
    if isinstance(folder, str) and is_group(folder):
        return folder
    raise FormatError(
        f"the receipt of {receipt.job} {receipt.shard} names {str(folder)[:200]!r} as its group; "
        "expected a folder of derived data that an attempt wrote.",
        job=receipt.job,
        shard=receipt.shard,
    )


def same_inputs(store: PlannedStore, receipt: Receipt, inputs: Mapping[str, str]) -> Receipt:
    """Return a receipt that was written for these inputs.

    Raises
    ------
    ConflictError
        What it was made from is there no longer.
    """
    if receipt.inputs != inputs:
        differ = sorted(set(receipt.inputs.items()) ^ set(inputs.items()))
        key = receipt_key(receipt.job, receipt.shard)
        raise ConflictError(
            f"{store.path}/{key}: what it stands for was made from another {differ[0][0]} than "
            "lies there now. `actlas verify` names all that is stale: remove those receipts, then "
            "run the same command again.",
            path=key,
        )
    return receipt


def input_seal(objects: Objects, key: str) -> str:
    """Return the seal of a record as it lies there now.

    Raises
    ------
    FileNotFoundError
        There is no such record.
    """
    return seal_of(objects.read(key))


def extract_inputs(store: PlannedStore, shards: range) -> dict[str, str]:
    """Return the extract receipts of some shards as inputs."""
    keys = [store.receipts(EXTRACT).key(shard) for shard in shards]
    return {key: input_seal(store.objects, key) for key in keys}
