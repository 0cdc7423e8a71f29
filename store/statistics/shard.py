"""``ShardStatistics``: one shard's moments, sums of squares within documents, and row norms.

They combine exactly over shards. A document's rows may lie anywhere in its shard, and a long
document lies in several shards. Therefore a shard's statistics have, besides the moments of all its
rows, the sums of squares within the documents that lie completely in it, and the moments of its
part of each of the (at most two) documents that cross its borders. These parts are combined when
shards are::

    documents     |-- 0 --|--- 1 ---|----------- 2 -----------|- 3 -|
    shards        |------- 0 -------|------- 1 -------|------ 2 ----|
    within        0, 1                -                 3
    left, right   -, 2 begins         2 goes on, -      2 ends, -
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.statistics.moments import BLOCK_VALUES, Moments
from actlas.store.statistics.shard_documents import ShardDocuments

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

Array = NDArray[np.float64]

STATISTICS = (
    *("n", "mean", "m2", "min", "max"),
    *("within_m2", "n_documents"),
    *("left_n", "left_mean", "left_m2", "right_n", "right_mean", "right_m2"),
    *("norm_n", "norm_mean", "norm_m2"),
)
"""The statistics along axis 1 of a statistics array, in float64:

- ``n`` finite values, their ``mean``, the sum ``m2`` of squared deviations, ``min``, ``max``
- ``within_m2``: over the documents completely in the shard, the sum of squared deviations from each
  document's own mean; ``n_documents`` of them have a finite value
- ``left_*``: moments of the rows of the document that began before this shard (and may continue
  after it); ``right_*``: moments of the document that begins in this shard and continues after it
- ``norm_*``: moments of the rows' L2 norms, the same for every unit; rows with NaN or infinity are
  excluded
"""

EARLIER_STATISTICS = STATISTICS[:5]
"""The statistics in stores of earlier versions."""

SMALL, LARGE = 1e-30, 1e37
"""Squared norms outside (SMALL, LARGE) are computed again in float64."""


class Part(NamedTuple):
    """Moments of some rows, such as a shard's part of one document; each of shape [units].

    Attributes
    ----------
    n : ndarray of float64
        The number of finite values.
    mean, m2 : ndarray of float64
        The mean, and the sum of squared deviations from it.
    """

    n: Array
    mean: Array
    m2: Array

    def plus(self, other: Part) -> Part:
        """Return the moments of the rows of both parts."""
        n = self.n + other.n
        share = np.divide(other.n, n, out=np.zeros_like(n), where=n > 0)
        delta = other.mean - self.mean
        return Part(
            n, self.mean + delta * share, self.m2 + other.m2 + delta * delta * self.n * share
        )


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """The statistics of one shard: its slice of a statistics array.

    Stores of earlier versions have only the moments; the other attributes are then None.

    Attributes
    ----------
    moments : Moments
        The moments of all rows; shape [units].
    within_m2 : ndarray of float64, shape [units]
        The sum of squared deviations within the documents that lie completely in the shard.
    n_documents : ndarray of float64, shape [units]
        The number of these documents with a finite value.
    left, right : Part
        The moments of the shard's part of the document that crosses its left or right border.
    norms : Part, of shape [1]
        The moments of the rows' L2 norms.
    """

    moments: Moments
    within_m2: Float64[Array, " units"] | None = None
    n_documents: Float64[Array, " units"] | None = None
    left: Part | None = None
    right: Part | None = None
    norms: Part | None = None

    def table(self, names: Sequence[str] = STATISTICS) -> Float64[Array, "statistics units"]:
        """Return these statistics as a table; shape [len(names), units]."""
        named = {name: getattr(self.moments, name) for name in ("n", "mean", "m2", "min", "max")}
        named |= {"within_m2": self.within_m2, "n_documents": self.n_documents}
        for prefix in ("left", "right", "norms"):
            part = getattr(self, prefix)
            named |= {f"{prefix.removesuffix('s')}_{f}": getattr(part, f) for f in Part._fields}
        width = len(self.moments.n)
        return np.stack([np.broadcast_to(named[name], width) for name in names])

    @classmethod
    def from_table(
        cls, names: Sequence[str], table: Float64[Array, "statistics units"]
    ) -> ShardStatistics:
        """Return the statistics of a stored table.

        Parameters
        ----------
        names : sequence of str
            The statistic in each row of the table.
        table : ndarray of float64, shape [len(names), units]
            A shard's slice of a statistics array.
        """
        named = dict(zip(names, table, strict=True))
        moments = Moments(*(named[name] for name in ("n", "mean", "m2", "min", "max")))
        if not set(STATISTICS) <= set(names):
            return cls(moments)
        left, right, norms = (
            Part(*(named[f"{prefix}_{f}"] for f in Part._fields))
            for prefix in ("left", "right", "norm")
        )
        norms = Part(*(field[:1] for field in norms))
        return cls(moments, named["within_m2"], named["n_documents"], left, right, norms)

    @classmethod
    def of(
        cls, rows: Float[NDArray[Any], "rows units"], documents: ShardDocuments
    ) -> ShardStatistics:
        """Return the statistics of a shard's rows.

        Parameters
        ----------
        rows : ndarray, shape [n, units]
            The shard's activations, in the order of its rows.
        documents : ShardDocuments
            Which of these rows belong to which document.
        """
        return _Pass(rows).run(documents)


class _Pass:
    """One pass over a shard's rows, by document, in blocks that stay in the CPU's cache."""

    def __init__(self, rows: NDArray[Any]) -> None:
        n_units = rows.shape[1]
        self.block_rows = max(16, BLOCK_VALUES // max(1, n_units))
        self.words = rows.view(f"u{rows.dtype.itemsize}")
        self.dtype = rows.dtype
        self.n_units = n_units
        shape = min(self.block_rows, len(rows)), n_units
        self.taken = np.empty(shape, self.words.dtype)
        self.values = np.empty(shape, np.float32 if rows.dtype.itemsize < 8 else np.float64)
        self.deviation = np.empty(shape, np.float64)
        self.moments: list[Moments] = []
        self.norms = Part(*np.zeros((3, 1)))

    def run(self, documents: ShardDocuments) -> ShardStatistics:
        within, n_documents = np.zeros(self.n_units), np.zeros(self.n_units)
        for rows, runs in documents.blocks(self.block_rows):
            if len(rows) > self.block_rows:
                part = self._part(rows)
                within += part.m2
                n_documents += part.n > 0
            else:
                self._whole(rows, runs, within, n_documents)
        left, right = self._part(documents.left), self._part(documents.right)
        total = Moments.combine(self.moments)
        return ShardStatistics(total, within, n_documents, left, right, self.norms)

    def _take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows as floats, and add their norms to the shard's."""
        taken, values = self.taken[: len(rows)], self.values[: len(rows)]
        np.take(self.words, rows, axis=0, out=taken, mode="clip")
        values[...] = taken.view(self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", values, values)
        odd = ~((squares > SMALL) & (squares < LARGE))
        squares = squares.astype(np.float64)
        if odd.any():
            wide = values[odd].astype(np.float64)
            squares[odd] = np.einsum("ij,ij->i", wide, wide)
        norms = np.sqrt(squares[np.isfinite(squares)])
        if len(norms):
            mean = norms.mean()
            m2 = ((norms - mean) ** 2).sum()
            self.norms = self.norms.plus(Part(*np.array([[len(norms)], [mean], [m2]])))
        return values

    def _part(self, rows: NDArray[np.int64]) -> Part:
        """Return the moments of one document's rows, and add them to the shard's."""
        part = Part(*np.zeros((3, self.n_units)))
        for at in range(0, len(rows), self.block_rows):
            values = self._take(rows[at : at + self.block_rows])
            moments = Moments.of_block(values, self.deviation[: len(values)])
            self.moments.append(moments)
            part = part.plus(Part(moments.n, moments.mean, moments.m2))
        return part

    def _whole(
        self, rows: NDArray[np.int64], runs: Sequence[tuple[int, int]], within: Array, found: Array
    ) -> None:
        """Add a block of complete documents to ``within``, ``found`` (a count) and the moments."""
        values = self._take(rows)
        deviation = self.deviation[: len(rows)]
        lowest, highest = values.min(axis=0), values.max(axis=0)  # both NaN if a value is NaN
        if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
            self._whole_with_nonfinite(values, runs, within, found)
            return
        # Deviations are taken from the first row, not from zero: no large mean is squared.
        np.subtract(values, values[0], out=deviation, dtype=np.float64)
        total, of_means, at = np.zeros(self.n_units), np.zeros(self.n_units), 0
        for n_documents, length in runs:
            stop = at + n_documents * length
            sums = deviation[at:stop]
            if length > 1:
                sums = sums.reshape(n_documents, length, self.n_units).sum(axis=1)
                of_means += np.einsum("ij,ij->j", sums, sums) / length
            total += sums.sum(axis=0)
            found += n_documents
            at = stop
        np.multiply(deviation, deviation, out=deviation)
        squares = deviation.sum(axis=0)
        n, mean = len(rows), total / len(rows)
        if runs[-1][1] > 1:
            within += np.maximum(squares - of_means, 0)
        self.moments.append(
            Moments(
                np.full(self.n_units, n, np.float64),
                mean + values[0],
                np.maximum(squares - n * mean * mean, 0),
                lowest.astype(np.float64),
                highest.astype(np.float64),
            )
        )

    def _whole_with_nonfinite(
        self, values: NDArray[Any], runs: Sequence[tuple[int, int]], within: Array, found: Array
    ) -> None:
        moments = Moments.of_block(values, self.deviation[: len(values)])
        self.moments.append(moments)
        finite = np.isfinite(values)
        deviation = np.where(finite, values, moments.mean) - moments.mean
        at = 0
        for n_documents, length in runs:
            stop = at + n_documents * length
            shape = n_documents, length, self.n_units
            n = finite[at:stop].reshape(shape).sum(axis=1).astype(np.float64)
            own = deviation[at:stop].reshape(shape)
            mean = np.divide(own.sum(axis=1), n, out=np.zeros_like(n), where=n > 0)
            apart = np.where(finite[at:stop].reshape(shape), own - mean[:, None], 0)
            within += np.einsum("ijk,ijk->k", apart, apart)
            found += (n > 0).sum(axis=0)
            at = stop
