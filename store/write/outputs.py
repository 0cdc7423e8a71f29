"""What a shard of a job consists of: its arrays, how they are checked, and in which order written.

:func:`actlas.store.write.commit.commit` writes either kind by either policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import HookpointError, NonFiniteError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.catalog import LOSS
from actlas.store.format.schema import ObjectRecord, Pool
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.read.reader import StoreReader
from actlas.store.statistics.shard import ShardStatistics
from actlas.store.write.array_writer import ArrayWriter

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped

DenseRows = Mapping[str, "Shaped[NDArray[Any], 'rows units']"]
"""By hookpoint, in the plan's dtype, the rows in their stored order."""

PooledRows = Mapping[tuple[str, Pool], "Float32[NDArray[np.float32], 'documents units']"]
"""By hookpoint and pooling; NaN for documents without tokens."""

NonFiniteCounts = dict[str, int]
"""NaN and infinite values by hookpoint."""


class WrittenShard(NamedTuple):
    """What a shard's receipt says of its arrays."""

    records: list[ObjectRecord]
    n_nonfinite: NonFiniteCounts


class Outputs(Protocol):
    """The arrays of one shard of a job."""

    @property
    def job(self) -> str:
        """The job's name."""

    def check_shapes(self, store: StoreReader, shard: int) -> None:
        """Raise where the arrays are not those of the plan's shard."""

    def computed(self, store: StoreReader) -> Iterator[tuple[ArraySpec, NDArray[Any]]]:
        """Yield the arrays that a model gave, with their specs."""

    def write(self, writer: ArrayWriter, *, refuse_nonfinite: bool) -> WrittenShard:
        """Write every array."""


@dataclass(frozen=True, slots=True)
class DenseOutputs:
    """A shard of extraction: row columns, activations, losses, statistics.

    Attributes
    ----------
    activations : mapping of hookpoint to ndarray, shape [rows of the shard, units]
        In the plan's dtype, the rows in their stored order.
    loss : ndarray of float32, shape [rows of the shard], or None
        The next-token loss of each row, in nats: where the plan has it.
    """

    activations: DenseRows
    loss: NDArray[np.float32] | None = None

    @property
    def job(self) -> str:
        """The job's name."""
        return EXTRACT

    def check_shapes(self, store: StoreReader, shard: int) -> None:
        """Raise where the arrays are not those of the plan's shard.

        Raises
        ------
        HookpointError
            The hookpoints are not the plan's.
        ValueError
            A shape or a dtype is not the plan's.
        """
        if (self.loss is not None) != store.plan.with_loss:
            got = "none" if self.loss is None else "a loss"
            wanted = "a loss" if store.plan.with_loss else "none"
            raise ValueError(f"shard {shard}: got {got} of each row, the plan has {wanted}")
        if set(self.activations) != set(store.arrays.activations):
            raise HookpointError(
                f"shard {shard}: got activations of {', '.join(sorted(self.activations))}, the "
                f"plan has {', '.join(store.arrays.activations)}."
            )
        start, stop = store.shard_range(shard)
        for name, rows in self.activations.items():
            spec = store.arrays.activations[name]
            if rows.shape != (stop - start, spec.shape[1]) or rows.dtype != spec.numpy_dtype:
                raise ValueError(
                    f"shard {shard}, {name}: got {rows.dtype} {rows.shape}, expected {spec.dtype} "
                    f"({stop - start}, {spec.shape[1]})"
                )

    def computed(self, store: StoreReader) -> Iterator[tuple[ArraySpec, NDArray[Any]]]:
        """Yield the arrays that a model gave, with their specs."""
        for name, rows in self.activations.items():
            yield store.arrays.activations[name], rows

    def write(self, writer: ArrayWriter, *, refuse_nonfinite: bool) -> WrittenShard:
        """Write the row columns, then each hookpoint's activations and statistics.

        The row columns come first: an attempt that disagrees about them writes nothing else.

        Raises
        ------
        NonFiniteError
            There are NaN or infinite values, and they are refused; nothing is written.
        ConflictError
            An object that is there does not match, and the policy does not replace it.
        """
        store, shard = writer.store, writer.shard
        n_threads = writer.policy.n_threads
        with ThreadPoolExecutor(n_threads, thread_name_prefix="actlas-commit") as threads:
            statistics_of = partial(ShardStatistics.of, documents=store.shard_documents(shard))
            computed = threads.map(statistics_of, self.activations.values())
            found = dict(zip(self.activations, computed, strict=True))
            if refuse_nonfinite:
                for name, statistics in found.items():
                    count = _n_nonfinite(statistics, len(self.activations[name]))
                    unit = int(statistics.moments.n.argmin())
                    _refuse_nonfinite(name, shard, count, unit, store.plan.dtype)
            try:
                columns = store.shard_columns(shard)
                specs = [store.arrays.rows[name] for name in columns]
                records = list(threads.map(writer.exact, specs, columns.values()))
                if self.loss is not None:
                    records.append(writer.losses(store.arrays.rows[LOSS], self.loss))

                def write(name: str) -> list[ObjectRecord]:
                    spec = store.arrays.activations[name]
                    stored, dense = writer.computed(spec, self.activations[name])
                    if stored is not None:
                        found[name] = statistics_of(stored)
                    table = found[name].table(store.arrays.statistics_names)[None]
                    return [dense, writer.statistics(store.arrays.statistics[name], table)]

                for written in threads.map(write, self.activations):
                    records += written
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        start, stop = store.shard_range(shard)
        counts = {name: _n_nonfinite(s, stop - start) for name, s in found.items()}
        return WrittenShard(records, counts)


@dataclass(frozen=True, slots=True)
class PooledOutputs:
    """A shard of pooled rows: a range of whole documents.

    Attributes
    ----------
    pooled : mapping of (hookpoint, pooling) to ndarray of float32, shape [documents, units]
        NaN for documents without tokens.
    """

    pooled: PooledRows

    @property
    def job(self) -> str:
        """The job's name."""
        return POOLED

    def check_shapes(self, store: StoreReader, shard: int) -> None:
        """Raise where the arrays are not those of the plan's shard.

        Raises
        ------
        ValueError
            Hookpoints, poolings, a shape or a dtype are not the plan's.
        """
        start, stop = store.covered(shard, POOLED)
        if set(self.pooled) != set(store.arrays.pooled):
            raise ValueError(
                f"shard {shard}: got pooled rows of {sorted(self.pooled)}, the plan has "
                f"{sorted(store.arrays.pooled)}"
            )
        for key, rows in self.pooled.items():
            expected = stop - start, store.arrays.pooled[key].shape[1]
            if rows.shape != expected or rows.dtype != np.float32:
                raise ValueError(
                    f"shard {shard}, {' '.join(key)}: got {rows.dtype} {rows.shape}, expected "
                    f"float32 {expected}"
                )

    def computed(self, store: StoreReader) -> Iterator[tuple[ArraySpec, NDArray[Any]]]:
        """Yield the arrays that a model gave, with their specs."""
        for key, rows in self.pooled.items():
            yield store.arrays.pooled[key], rows

    def write(self, writer: ArrayWriter, *, refuse_nonfinite: bool) -> WrittenShard:
        """Write every hookpoint's pooled rows.

        Raises
        ------
        NonFiniteError
            Documents that have tokens have NaN or infinite values, and these are refused; nothing
            is written.
        ConflictError
            An object that is there does not match, and the policy does not replace it.
        """
        store, shard = writer.store, writer.shard
        empty = np.diff(store.documents.starts(*store.covered(shard, POOLED))) == 0
        if refuse_nonfinite:
            for (name, pooling), rows in self.pooled.items():
                bad = ~np.isfinite(rows[~empty])
                unit = int(bad.any(axis=0).argmax())
                _refuse_nonfinite(f"{name}, {pooling}", shard, int(bad.sum()), unit, "float32")
        n_threads = writer.policy.n_threads
        with ThreadPoolExecutor(n_threads, thread_name_prefix="actlas-commit") as threads:
            specs = [store.arrays.pooled[key] for key in self.pooled]
            written = list(threads.map(writer.computed, specs, self.pooled.values()))
        counts = {hookpoint.name: 0 for hookpoint in store.plan.hookpoints}
        for (name, _), rows, (stored, _) in zip(
            self.pooled, self.pooled.values(), written, strict=True
        ):
            final = rows if stored is None else stored
            counts[name] += int((~np.isfinite(final[~empty])).sum())
        return WrittenShard([record for _, record in written], counts)


def _n_nonfinite(statistics: ShardStatistics, n_rows: int) -> int:
    return int(n_rows * len(statistics.moments.n) - statistics.moments.n.sum())


def _refuse_nonfinite(name: str, shard: int, count: int, unit: int, dtype: str) -> None:
    if count:
        raise NonFiniteError(
            f"{name}: {count:,} activations of shard {shard} are NaN or infinite in "
            f"{dtype}, first in unit {unit}. Compute or store in a wider dtype "
            "(--model-dtype, --dtype), or let them pass with run.on_nonfinite=record.",
            hookpoint=name,
            shard=shard,
            count=count,
        )
