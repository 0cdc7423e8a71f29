"""Which token lies in which row: worked out from the plan and its documents alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.statistics.shard_documents import ShardDocuments
from actlas.store.statistics.total import Border

if TYPE_CHECKING:
    from actlas.store.store import Store


class Placement:
    """Where the tokens of a store's documents lie.

    Parameters
    ----------
    store : Store
        Its documents are read when a question needs them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows_kept = lru_cache(maxsize=16)(self._rows_of)

    def row_of(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row in which each token ``t`` of the corpus lies; shape of ``t``."""
        rows = np.empty_like(t)
        shard_of = t // self._store.plan.shard_rows
        for shard in np.unique(shard_of):
            start, _ = self._store.shard_range(int(shard))
            mask = shard_of == shard
            rows[mask] = start + self._rows_kept(int(shard))[t[mask] - start]
        return rows

    def columns(self, shard: int) -> dict[str, NDArray[Any]]:
        """Return the row columns that a shard must have."""
        plan, documents = self._store.plan, self._store.documents
        start, stop = self._store.shard_range(shard)
        t = layout.shard_tokens(plan.order, plan.seed, start, stop)
        doc_idx = documents.find(t)
        columns: dict[str, NDArray[Any]] = {
            "token_id": documents.token_ids(start, stop)[t - start],
            "doc_idx": doc_idx.astype(np.int64),
            "pos_idx": (t - documents.start[doc_idx]).astype(np.int32),
        }
        if plan.keep_special:
            columns["special"] = documents.special(start, stop)[t - start].astype(np.int8)
        for name in plan.token_columns:
            columns[name] = documents.token_column(name, start, stop)[t - start]
        return columns

    def documents(self, shard: int) -> ShardDocuments:
        """Return which rows of a shard are of which document."""
        start, stop = self._store.shard_range(shard)
        documents = self._store.documents
        first, last = documents.find(start), documents.find(stop - 1)
        edges = documents.starts(first, last + 1)
        return ShardDocuments.of(self._rows_of(shard), edges, start, stop)

    def borders(self, shard: int) -> Border:
        """Return the documents that cross a shard's borders."""
        start, stop = self._store.shard_range(shard)
        documents = self._store.documents
        first, last = documents.find(start), documents.find(stop - 1)
        left = first if documents.starts(first, first)[0] < start else None
        crosses = documents.starts(last, last + 1)[1] > stop
        return Border(left, last if crosses and last != left else None)

    def _rows_of(self, shard: int) -> NDArray[np.int64]:
        """Return the row in its shard of each of a shard's tokens."""
        plan = self._store.plan
        return layout.shard_rows_of(plan.order, plan.seed, *self._store.shard_range(shard))
