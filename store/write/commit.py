"""Committing a shard: its arrays create-only, then its statistics, then its receipt.

The first writer wins. A later one reads back what is there: row columns must be its own, and the
checksums and statistics of its receipt come from the bytes at the final names, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import HookpointError
from actlas.store.format.catalog import LOSS
from actlas.store.format.schema import ObjectRecord, Receipt
from actlas.store.ledger.receipts import EXTRACT
from actlas.store.read.reader import StoreReader
from actlas.store.statistics.shard import ShardStatistics
from actlas.store.write.array_writer import ArrayWriter, refuse_nonfinite, write_receipt


def commit_shard(
    store: StoreReader,
    shard: int,
    activations: Mapping[str, NDArray[Any]],
    *,
    attempt: str,
    run: Mapping[str, Any] | None = None,
    on_nonfinite: str = "record",
    loss: NDArray[np.float32] | None = None,
) -> Receipt:
    """Write one shard of a store and return the receipt that stands.

    Parameters
    ----------
    store : StoreReader
        The store.
    shard : int
        Which shard.
    activations : mapping of hookpoint to ndarray, shape [rows of the shard, units]
        In the plan's dtype, the rows in their stored order.
    attempt : str
        Names this try, for the receipt.
    run : mapping
        How it was made, for the receipt.
    on_nonfinite : {"record", "refuse"}
        What to do with NaN and infinity.
    loss : ndarray of float32, shape [rows of the shard], optional
        Of the token that follows each row: where the plan has it.

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
    check_shapes(store, shard, activations, loss)
    receipts = store.receipts()
    if receipts.exists(shard):
        return receipts.read(shard)
    store.require_same_plan()
    writer = ArrayWriter(store, shard, attempt)
    records, n_nonfinite = write_arrays(
        store, shard, activations, writer, on_nonfinite=on_nonfinite, loss=loss
    )
    return write_receipt(
        store,
        EXTRACT,
        shard,
        store.shard_range(shard),
        records,
        attempt=attempt,
        n_nonfinite=n_nonfinite,
        run=run,
    )


def write_arrays(
    store: StoreReader,
    shard: int,
    activations: Mapping[str, NDArray[Any]],
    writer: ArrayWriter,
    *,
    on_nonfinite: str,
    loss: NDArray[np.float32] | None,
) -> tuple[list[ObjectRecord], dict[str, int]]:
    """Write all arrays of a shard; return their records, and NaN and infinities by hookpoint."""
    with ThreadPoolExecutor(writer.threads, thread_name_prefix="actlas-commit") as pool:
        statistics_of = partial(ShardStatistics.of, documents=store.shard_documents(shard))
        found = dict(zip(activations, pool.map(statistics_of, activations.values()), strict=True))
        if on_nonfinite == "refuse":
            for name, statistics in found.items():
                count = _n_nonfinite(statistics, len(activations[name]))
                unit = int(statistics.moments.n.argmin())
                refuse_nonfinite(name, shard, count, unit, store.plan.dtype)
        try:
            # Columns first: who is wrong about which row is which writes nothing else.
            columns = store.shard_columns(shard)
            specs = [store.arrays.rows[name] for name in columns]
            records = list(pool.map(writer.exact, specs, columns.values()))
            if loss is not None:
                records.append(writer.losses(store.arrays.rows[LOSS], loss))

            def write(name: str) -> list[ObjectRecord]:
                stored, dense = writer.computed(store.arrays.activations[name], activations[name])
                if stored is not None:
                    found[name] = statistics_of(stored)
                table = found[name].table(store.arrays.statistics_names)[None]
                return [dense, writer.derived(store.arrays.statistics[name], table)]

            for written in pool.map(write, activations):
                records += written
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    start, stop = store.shard_range(shard)
    return records, {name: _n_nonfinite(s, stop - start) for name, s in found.items()}


def check_shapes(
    store: StoreReader,
    shard: int,
    activations: Mapping[str, NDArray[Any]],
    loss: NDArray[np.float32] | None,
) -> None:
    """Raise where the arrays are not those of the plan's shard."""
    if (loss is not None) != store.plan.with_loss:
        raise ValueError(f"shard {shard}: a loss where the plan has one, and only there")
    if set(activations) != set(store.arrays.activations):
        raise HookpointError(
            f"shard {shard}: got activations of {', '.join(sorted(activations))}, the plan has "
            f"{', '.join(store.arrays.activations)}."
        )
    start, stop = store.shard_range(shard)
    for name, rows in activations.items():
        spec = store.arrays.activations[name]
        if rows.shape != (stop - start, spec.shape[1]) or rows.dtype != spec.numpy_dtype:
            raise ValueError(
                f"shard {shard}, {name}: got {rows.dtype} {rows.shape}, expected {spec.dtype} "
                f"({stop - start}, {spec.shape[1]})"
            )


def _n_nonfinite(statistics: ShardStatistics, n_rows: int) -> int:
    return int(n_rows * len(statistics.moments.n) - statistics.moments.n.sum())
