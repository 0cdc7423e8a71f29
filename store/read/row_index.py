"""``RowIndex``: which token lies in which row, computed from the plan and the documents."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.format.schema import Plan
from actlas.store.statistics.shard_documents import ShardDocuments
from actlas.store.statistics.total import Border

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped


class TokenSource(Protocol):
    """The tokens of the documents in the plan's order, from a store or from a draft of a plan."""

    @property
    def start(self) -> NDArray[np.int64]:
        """The first kept token of each document, and the end of the last; shape [documents + 1]."""

    def token_ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the ids of tokens [start, stop); shape [stop - start]."""

    def special(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return whether the tokenizer added each of tokens [start, stop); None if none is kept."""

    def token_column(self, name: str, start: int, stop: int) -> NDArray[np.int32]:
        """Return a token column's codes for tokens [start, stop); -1 stands for no value."""


class RowIndex:
    """Maps the tokens of the corpus to the rows of a store, and back.

    Parameters
    ----------
    plan : Plan
        Defines the order of the rows, its seed, and the shards.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows_kept = lru_cache(maxsize=16)(self._rows_of)

    def row_of(self, t: Int64[NDArray[np.int64], " tokens"]) -> Int64[NDArray[np.int64], " tokens"]:
        """Return the row in which each token ``t`` of the corpus lies; shape of ``t``."""
        rows = np.empty_like(t)
        shard_of = t // self._plan.shard_rows
        for shard in np.unique(shard_of):
            start, _ = self._plan.shard_range(int(shard))
            mask = shard_of == shard
            rows[mask] = start + self._rows_kept(int(shard))[t[mask] - start]
        return rows

    def columns(
        self, shard: int, documents: TokenSource
    ) -> dict[str, Shaped[NDArray[Any], " rows"]]:
        """Return the columns that a shard must have by name; each of shape [rows of the shard].

        Parameters
        ----------
        shard : int
            The shard's number.
        documents : Documents
            The store's documents.
        """
        plan = self._plan
        start, stop = plan.shard_range(shard)
        t = layout.shard_tokens(plan.order, plan.seed, start, stop)
        doc_idx = _find(documents, t)
        columns: dict[str, NDArray[Any]] = {
            "token_id": documents.token_ids(start, stop)[t - start],
            "doc_idx": doc_idx.astype(np.int64),
            "pos_idx": (t - documents.start[doc_idx]).astype(np.int32),
        }
        if plan.keep_special:
            special = np.asarray(documents.special(start, stop))
            columns["special"] = special[t - start].astype(np.int8)
        for name in plan.token_columns:
            columns[name] = documents.token_column(name, start, stop)[t - start]
        return columns

    def shard_documents(self, shard: int, documents: TokenSource) -> ShardDocuments:
        """Return which rows of a shard belong to which document."""
        start, stop = self._plan.shard_range(shard)
        first, last = _find(documents, np.array([start, stop - 1])).tolist()
        edges = documents.start[first : last + 2]
        return ShardDocuments.of(self._rows_of(shard), edges, start, stop)

    def borders(self, shard: int, documents: TokenSource) -> Border:
        """Return the documents that cross a shard's borders."""
        start, stop = self._plan.shard_range(shard)
        first, last = _find(documents, np.array([start, stop - 1])).tolist()
        left = first if documents.start[first] < start else None
        crosses = documents.start[last + 1] > stop
        return Border(left, last if crosses and last != left else None)

    def _rows_of(self, shard: int) -> NDArray[np.int64]:
        """Return the row in its shard of each of a shard's tokens; shape [rows of the shard]."""
        plan = self._plan
        return layout.shard_rows_of(plan.order, plan.seed, *plan.shard_range(shard))


def _find(documents: TokenSource, t: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the document of each token ``t``; shape of ``t``."""
    return np.searchsorted(documents.start, t, side="right") - 1
