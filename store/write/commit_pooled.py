"""Committing pooled rows: ranges of whole documents, by the protocol of extraction's shards."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.schema import ObjectRecord, Pool, Receipt
from actlas.store.ledger.receipts import POOLED
from actlas.store.read.reader import StoreReader
from actlas.store.write.array_writer import ArrayWriter, refuse_nonfinite, write_receipt

PooledRows = Mapping[tuple[str, Pool], NDArray[np.float32]]
"""By hookpoint and pool, [documents of the shard, units]."""


def commit_pooled(
    store: StoreReader,
    shard: int,
    pooled: PooledRows,
    *,
    attempt: str,
    run: Mapping[str, Any] | None = None,
    on_nonfinite: str = "record",
) -> Receipt:
    """Write one shard of pooled rows and return the receipt that stands.

    By the protocol of :func:`actlas.store.write.commit.commit_shard`.

    Parameters
    ----------
    store : StoreReader
    shard : int
    pooled : mapping of (hookpoint, pool) to ndarray of float32, shape [documents, units]
        NaN for documents without tokens.
    attempt : str
    run : mapping
        How it was made, for the receipt.
    on_nonfinite : {"record", "refuse"}
        What to do with NaN and infinity in documents that have tokens.

    Raises
    ------
    NonFiniteError
        There are some, and they are refused; nothing is written.
    ConflictError
        What lies under a final name is not what this plan and model give, or is damaged; or the
        plan at this path is another one by now.
    RunFaultError
        The disk is full or fails.
    """
    check_pooled_shapes(store, shard, pooled)
    receipts = store.receipts(POOLED)
    if receipts.exists(shard):
        return receipts.read(shard)
    store.require_same_plan()
    writer = ArrayWriter(store, shard, attempt)
    records, n_nonfinite = write_pooled(store, shard, pooled, writer, on_nonfinite=on_nonfinite)
    return write_receipt(
        store,
        POOLED,
        shard,
        store.covered(shard, POOLED),
        records,
        attempt=attempt,
        n_nonfinite=n_nonfinite,
        run=run,
    )


def write_pooled(
    store: StoreReader, shard: int, pooled: PooledRows, writer: ArrayWriter, *, on_nonfinite: str
) -> tuple[list[ObjectRecord], dict[str, int]]:
    """Write all arrays of a shard; return their records, and NaN and infinities by hookpoint."""
    empty = np.diff(store.documents.starts(*store.covered(shard, POOLED))) == 0
    if on_nonfinite == "refuse":
        for (name, pool), rows in pooled.items():
            bad = ~np.isfinite(rows[~empty])
            unit = int(bad.any(axis=0).argmax())
            refuse_nonfinite(f"{name}, {pool}", shard, int(bad.sum()), unit, "float32")
    with ThreadPoolExecutor(writer.threads, thread_name_prefix="actlas-commit") as pool_of_threads:
        specs = [store.arrays.pooled[key] for key in pooled]
        written = list(pool_of_threads.map(writer.computed, specs, pooled.values()))
    n_nonfinite = {hookpoint.name: 0 for hookpoint in store.plan.hookpoints}
    for (name, _), rows, (stored, _) in zip(pooled, pooled.values(), written, strict=True):
        final = rows if stored is None else stored
        n_nonfinite[name] += int((~np.isfinite(final[~empty])).sum())
    return [record for _, record in written], n_nonfinite


def check_pooled_shapes(store: StoreReader, shard: int, pooled: PooledRows) -> None:
    """Raise where the arrays are not those of the plan's shard."""
    start, stop = store.covered(shard, POOLED)
    if set(pooled) != set(store.arrays.pooled):
        raise ValueError(
            f"shard {shard}: got pooled rows of {sorted(pooled)}, the plan has "
            f"{sorted(store.arrays.pooled)}"
        )
    for key, rows in pooled.items():
        expected = stop - start, store.arrays.pooled[key].shape[1]
        if rows.shape != expected or rows.dtype != np.float32:
            raise ValueError(
                f"shard {shard}, {' '.join(key)}: got {rows.dtype} {rows.shape}, expected float32 "
                f"{expected}"
            )
