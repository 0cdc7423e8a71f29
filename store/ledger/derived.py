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
"""The number of elements of an inner chunk of a flat array."""


def flat(path: str, n: int, dtype: str, dimension: str) -> ArraySpec:
    """Return the spec of a one-dimensional array that is one object.

    Parameters
    ----------
    path : str
        The path of the array.
    n : int
        The number of elements.
    dtype : str
        The dtype.
    dimension : str
        The name of the dimension.
    """
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

    Parameters
    ----------
    receipt : Receipt
        The receipt of a unit of a derived job.

    Raises
    ------
    FormatError
        The receipt names no object, or one outside the folders of derived data.
    """
    folder = receipt.objects[0].key.rpartition("/")[0] if receipt.objects else ""
    return group_named(folder, receipt)


def group_named(folder: object, receipt: Receipt) -> str:
    """Return a folder that a receipt names as a group, after checking that it is one.

    Parameters
    ----------
    folder : object
        The folder; a damaged receipt may name anything.
    receipt : Receipt
        The receipt, for the message.

    Raises
    ------
    FormatError
        The folder is not one that an attempt at a derived job writes.
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
    """Return a receipt if it was written for these inputs.

    Parameters
    ----------
    store : PlannedStore
        The store, for the message.
    receipt : Receipt
        The receipt of a unit of a derived job.
    inputs : mapping of str to str
        The keys and seals of the present inputs.

    Raises
    ------
    ConflictError
        The receipt was written for other inputs.
    """
    if receipt.inputs != inputs:
        differ = sorted(set(receipt.inputs.items()) ^ set(inputs.items()))
        key = receipt_key(receipt.job, receipt.shard)
        raise ConflictError(
            f"{store.path}/{key}: this data was made from another {differ[0][0]} than the present "
            f"one. `actlas repair {store.path}` removes stale data, and makes features and their "
            "index again; `actlas verify` lists it.",
            path=key,
        )
    return receipt


def input_seal(objects: Objects, key: str) -> str:
    """Return the seal of a record in the store.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    key : str
        The key of the record.

    Raises
    ------
    FileNotFoundError
        The store has no such record.
    """
    return seal_of(objects.read(key))


def extract_inputs(store: PlannedStore, shards: range) -> dict[str, str]:
    """Return the keys and seals of the extraction receipts of some shards.

    Parameters
    ----------
    store : PlannedStore
        The store.
    shards : range
        The shards.
    """
    keys = [store.receipts(EXTRACT).key(shard) for shard in shards]
    return {key: input_seal(store.objects, key) for key in keys}
