"""Statistics of a shard's rows that combine exactly: moments, within documents too, and norms.

A document's rows lie anywhere in its shard, and a long document lies in several. So a shard has,
besides the moments of all its rows, the sums of squares within the documents that lie wholly in it,
and the plain moments of the part that it has of each of the (at most two) documents that cross its
borders. Those parts are put together when shards are::

    documents     |-- 0 --|--- 1 ---|----------- 2 -----------|- 3 -|
    shards        |------- 0 -------|------- 1 -------|------ 2 ----|
    within        0, 1                -                 3
    left, right   -, 2 begins         2 goes on, -      2 ends, -
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.moments import BLOCK_VALUES, Moments

Array = NDArray[np.float64]

STATISTICS = (
    *("n", "mean", "m2", "min", "max"),
    *("within_m2", "n_documents"),
    *("left_n", "left_mean", "left_m2", "right_n", "right_mean", "right_m2"),
    *("norm_n", "norm_mean", "norm_m2"),
)
"""Along axis 1 of a statistics array, in float64:

- ``n`` finite values, their ``mean``, the sum ``m2`` of squared deviations, ``min``, ``max``
- ``within_m2``: over the documents wholly in the shard, the sum of squared deviations from each
  document's own mean; ``n_documents`` of them have a finite value
- ``left_*``: of the rows of the document that began before this shard (and may go on after it);
  ``right_*``: of the one that begins in it and goes on after it
- ``norm_*``: of the rows' L2 norms, the same for every unit; rows with NaN or infinity left out
"""
EARLIER_STATISTICS = STATISTICS[:5]
"""What stores had before."""
SMALL, LARGE = 1e-30, 1e37
"""Squared norms outside of this are summed again in float64."""


@dataclass(frozen=True)
class Statistics(Moments):
    """Moments of every unit, in all and within documents, and of the rows' norms.

    What a store of an earlier version lacks is None.

    Attributes
    ----------
    within_m2 : ndarray, shape [units]
        The sum of squared deviations of each value from its document's mean.
    n_documents : ndarray, shape [units]
        Documents with a finite value.
    n_norms, mean_norm, norm_m2 : float
        Rows without NaN and infinity, the mean of their L2 norms, and the sum of squared
        deviations from it.
    """

    within_m2: Array | None = None
    n_documents: Array | None = None
    n_norms: float | None = None
    mean_norm: float | None = None
    norm_m2: float | None = None

    @property
    def within_document_variance(self) -> Array | None:
        """The unbiased variance within documents, ``within_m2 / (n - n_documents)``.

        NaN where no document has two values.
        """
        if self.within_m2 is None or self.n_documents is None:
            return None
        freedom = self.n - self.n_documents
        nan = np.full_like(self.within_m2, np.nan)
        return np.divide(self.within_m2, freedom, out=nan, where=freedom > 0)

    @property
    def between_m2(self) -> Array | None:
        """The sum of squared deviations of each value's document mean from the mean: the rest."""
        return None if self.within_m2 is None else np.maximum(self.m2 - self.within_m2, 0)

    @property
    def between_share(self) -> Array | None:
        """The share of the sum of squares that lies between documents; NaN where that is 0."""
        between = self.between_m2
        if between is None:
            return None
        return np.divide(between, self.m2, out=np.full_like(self.m2, np.nan), where=self.m2 > 0)

    @property
    def norm_std(self) -> float | None:
        """The unbiased standard deviation of the rows' norms; NaN below two."""
        if self.norm_m2 is None or self.n_norms is None:
            return None
        return float(np.sqrt(self.norm_m2 / (self.n_norms - 1))) if self.n_norms > 1 else np.nan


@dataclass(frozen=True, slots=True)
class ShardDocuments:
    """Which rows of a shard are of which document.

    Attributes
    ----------
    rows : ndarray of int64
        Those of the documents wholly in it, document after document, the shortest first.
    runs : tuple of (int, int)
        How many documents of which length they are.
    left, right : ndarray of int64
        Rows of the document that crosses the left border; of one that crosses only the right one.
    """

    rows: NDArray[np.int64]
    runs: tuple[tuple[int, int], ...]
    left: NDArray[np.int64]
    right: NDArray[np.int64]

    @classmethod
    def of(
        cls, row_of: NDArray[np.int64], edges: NDArray[np.int64], start: int, stop: int
    ) -> ShardDocuments:
        """Return them from the edges of the documents that touch tokens [start, stop).

        Parameters
        ----------
        row_of : ndarray of int64, shape [stop - start]
            The row in the shard of each of its tokens.
        edges : ndarray of int64, shape [documents + 1]
        """
        left = row_of[: max(0, min(edges[1], stop) - start)] if edges[0] < start else row_of[:0]
        crosses = edges[-1] > stop and edges[-2] >= start
        right = row_of[edges[-2] - start :] if crosses else row_of[:0]
        first, length = edges[:-1] - start, np.diff(edges)
        whole = (first >= 0) & (edges[1:] <= stop) & (length > 0)
        first, length = first[whole], length[whole]
        by_length = np.argsort(length, kind="stable")
        first, length = first[by_length], length[by_length]
        before = np.cumsum(length) - length
        tokens = np.repeat(first - before, length) + np.arange(length.sum())
        lengths, counts = np.unique(length, return_counts=True)
        runs = tuple(zip(counts.tolist(), lengths.tolist(), strict=True))
        return cls(row_of[tokens], runs, left, right)

    def blocks(self, block_rows: int) -> Iterator[tuple[NDArray[np.int64], list[tuple[int, int]]]]:
        """Yield rows of whole documents, and the runs that they are, within a number of rows.

        A document that is longer than that comes alone, and so do those of one token.
        """
        at, stop, runs = 0, 0, list[tuple[int, int]]()
        for n_documents, length in self.runs:
            while n_documents:
                k = min(n_documents, (block_rows - (stop - at)) // length)
                if k <= 0 and runs:
                    yield self.rows[at:stop], runs
                    at, runs = stop, []
                    continue
                k = max(k, 1)
                runs.append((k, length))
                stop, n_documents = stop + k * length, n_documents - k
            if length == 1:
                yield self.rows[at:stop], runs
                at, runs = stop, []
        if runs:
            yield self.rows[at:stop], runs


class Part(NamedTuple):
    """Moments of the rows that a shard has of one document; each of shape [units]."""

    n: Array
    mean: Array
    m2: Array

    def plus(self, other: Part) -> Part:
        """Return those of both."""
        n = self.n + other.n
        share = np.divide(other.n, n, out=np.zeros_like(n), where=n > 0)
        delta = other.mean - self.mean
        return Part(
            n, self.mean + delta * share, self.m2 + other.m2 + delta * delta * self.n * share
        )


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """What a shard's slice of a statistics array holds; ``norms`` has one element.

    Of a store of an earlier version there are only the moments.
    """

    moments: Moments
    within_m2: Array | None = None
    n_documents: Array | None = None
    left: Part | None = None
    right: Part | None = None
    norms: Part | None = None

    def table(self, names: Sequence[str] = STATISTICS) -> Array:
        """Return these statistics, one row each; shape [len(names), units]."""
        named = {name: getattr(self.moments, name) for name in ("n", "mean", "m2", "min", "max")}
        named |= {"within_m2": self.within_m2, "n_documents": self.n_documents}
        for prefix in ("left", "right", "norms"):
            part = getattr(self, prefix)
            named |= {f"{prefix.removesuffix('s')}_{f}": getattr(part, f) for f in Part._fields}
        width = len(self.moments.n)
        return np.stack([np.broadcast_to(named[name], width) for name in names])

    @classmethod
    def from_table(cls, names: Sequence[str], table: Array) -> ShardStatistics:
        """Return the statistics of a stored table; ``names`` are those of its rows."""
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
    def of(cls, rows: NDArray[Any], documents: ShardDocuments) -> ShardStatistics:
        """Return the statistics of a shard's rows [n, units], in whatever order they lie."""
        return _Pass(rows).run(documents)


class _Pass:
    """One pass over rows, document after document, in blocks that stay in the processor's cache."""

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
        """Return rows as floats, and add their norms."""
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
        """Return the moments of rows of one document, and add them to all."""
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
        """Add a block of whole documents to ``within``, to ``found`` (their count), and to all."""
        values = self._take(rows)
        deviation = self.deviation[: len(rows)]
        lowest, highest = values.min(axis=0), values.max(axis=0)  # both NaN where a value is
        if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
            self._whole_of_the_finite(values, runs, within, found)
            return
        # From the block's first row and not from zero: no large mean is squared.
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

    def _whole_of_the_finite(
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


class Border(NamedTuple):
    """The documents that a shard's ``left`` and ``right`` are of; None where there is none."""

    left: int | None
    right: int | None


def combine(shards: Iterable[tuple[Border, ShardStatistics]]) -> Statistics:
    """Return the statistics of all rows of some shards, which come in order.

    Of a document that lies in several of them, the parts are put together first; where a shard
    between them is missing, what there is of it.
    """
    total: Moments | None = None
    within: Array | None = None
    found: Array | None = None
    norms: Part | None = None
    opened: tuple[int, Part] | None = None
    for border, shard in shards:
        total = shard.moments if total is None else Moments.combine([total, shard.moments])
        if shard.left is None or shard.right is None or shard.norms is None:
            continue
        within, found = _sum(within, shard.within_m2), _sum(found, shard.n_documents)
        norms = shard.norms if norms is None else norms.plus(shard.norms)
        for document, part in ((border.left, shard.left), (border.right, shard.right)):
            if document is None:
                continue
            if opened is not None and opened[0] == document:
                opened = document, opened[1].plus(part)
                continue
            if opened is not None:
                within, found = _sum(within, opened[1].m2), _sum(found, opened[1].n > 0)
            opened = document, part
    if total is None:
        raise ValueError("expected statistics of at least one shard, got none")
    if opened is not None:
        within, found = _sum(within, opened[1].m2), _sum(found, opened[1].n > 0)
    moments = {name: getattr(total, name) for name in ("n", "mean", "m2", "min", "max")}
    if norms is None:
        return Statistics(**moments)
    n_norms, mean_norm, norm_m2 = (float(field[0]) for field in norms)
    if not n_norms:
        mean_norm = float("nan")
    return Statistics(
        **moments,
        within_m2=within,
        n_documents=found,
        n_norms=n_norms,
        mean_norm=mean_norm,
        norm_m2=norm_m2,
    )


def _sum(a: Array | None, b: NDArray[Any] | None) -> Array | None:
    return a if b is None else b.astype(np.float64) if a is None else a + b
