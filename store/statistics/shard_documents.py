"""Which rows of a shard are of which document, and in what order one pass takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
