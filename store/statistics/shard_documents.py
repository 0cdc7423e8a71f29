"""``ShardDocuments``: which rows of a shard belong to which document, in the order of one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jaxtyping import Int64


@dataclass(frozen=True, slots=True)
class ShardDocuments:
    """Which rows of a shard belong to which document.

    Attributes
    ----------
    rows : ndarray of int64
        The rows of the documents completely in the shard, by document, the shortest first.
    runs : tuple of (int, int)
        Pairs of a number of consecutive documents and their common length in ``rows``.
    left, right : ndarray of int64
        The rows of the document that crosses the left border, and of the one that crosses only the
        right border; empty if there is none.
    """

    rows: Int64[NDArray[np.int64], " rows"]
    runs: tuple[tuple[int, int], ...]
    left: Int64[NDArray[np.int64], " left"]
    right: Int64[NDArray[np.int64], " right"]

    @classmethod
    def of(
        cls,
        row_of: Int64[NDArray[np.int64], " tokens"],
        edges: Int64[NDArray[np.int64], " edges"],
        start: int,
        stop: int,
    ) -> ShardDocuments:
        """Return the documents of the shard with tokens [start, stop).

        Parameters
        ----------
        row_of : ndarray of int64, shape [stop - start]
            The row in the shard of each of its tokens.
        edges : ndarray of int64, shape [documents + 1]
            The first token of each document that touches the shard, and the end of the last one.
        start, stop : int
            The shard's tokens, half-open.
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
        """Yield blocks of complete documents: their rows and their runs.

        A document longer than a block is yielded alone, and documents of one token are yielded
        apart from longer ones.

        Parameters
        ----------
        block_rows : int
            The maximum number of rows of a block.
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
