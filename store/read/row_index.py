"""Which token lies in which row: computed from the plan and the documents alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.format.schema import Plan
from actlas.store.read.documents import Documents
from actlas.store.statistics.shard_documents import ShardDocuments
from actlas.store.statistics.total import Border


class RowIndex:
    """Maps the tokens of the corpus to the rows of a store, and back.

    Parameters
    ----------
    plan : Plan
        Gives the order of the rows, its seed, and the shards.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows_kept = lru_cache(maxsize=16)(self._rows_of)

    def row_of(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row in which each token ``t`` of the corpus lies; shape of ``t``."""
        rows = np.empty_like(t)
        shard_of = t // self._plan.shard_rows
        for shard in np.unique(shard_of):
            start, _ = self._plan.shard_range(int(shard))
            mask = shard_of == shard
            rows[mask] = start + self._rows_kept(int(shard))[t[mask] - start]
        return rows

    def columns(self, shard: int, documents: Documents) -> dict[str, NDArray[Any]]:
        """Return the row columns that a shard must have, by name; shape [rows of the shard]."""
        plan = self._plan
        start, stop = plan.shard_range(shard)
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

    def shard_documents(self, shard: int, documents: Documents) -> ShardDocuments:
        """Return which rows of a shard belong to which document."""
        start, stop = self._plan.shard_range(shard)
        first, last = documents.find(start), documents.find(stop - 1)
        edges = documents.starts(first, last + 1)
        return ShardDocuments.of(self._rows_of(shard), edges, start, stop)

    def borders(self, shard: int, documents: Documents) -> Border:
        """Return the documents that cross a shard's borders."""
        start, stop = self._plan.shard_range(shard)
        first, last = documents.find(start), documents.find(stop - 1)
        left = first if documents.starts(first, first)[0] < start else None
        crosses = documents.starts(last, last + 1)[1] > stop
        return Border(left, last if crosses and last != left else None)

    def _rows_of(self, shard: int) -> NDArray[np.int64]:
        """Return the row in its shard of each of a shard's tokens; shape [rows of the shard]."""
        plan = self._plan
        return layout.shard_rows_of(plan.order, plan.seed, *plan.shard_range(shard))
