"""Extraction of pooled rows: one row per document, without storing the rows of tokens."""

from __future__ import annotations

import torch

from actlas.pipeline.extract.computed import ComputedPooledShard
from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.extract.inputs import range_batches
from actlas.pipeline.extract.pooling import Pooler
from actlas.pipeline.forward.batching import Batch, Inputs
from actlas.pipeline.forward.run import Clock
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt
from actlas.store.ledger.receipts import POOLED
from actlas.store.read.reader import StoreReader
from actlas.store.verify.repair_shard import repair_pooled
from actlas.store.write.commit import commit_pooled


class PooledExtractor(Extractor):
    """An extractor of pooled rows, with a model that is loaded once.

    A shard is a range of whole documents: no document is computed twice, and a document of several
    windows is pooled over all of them. Parameters and errors are those of
    :class:`~actlas.pipeline.extract.extract.Extractor`.
    """

    def __init__(
        self, store: StoreReader, run: RunOptions, *, model: str | None = None, repair: bool = False
    ) -> None:
        super().__init__(store, run, model=model)
        self._commit_pooled = repair_pooled if repair else commit_pooled

    def batches(self, shard: int) -> list[Batch]:
        """Return the batches of a shard, in the order in which they run."""
        first, last = self.store.documents.starts(*self.store.covered(shard, POOLED))[[0, -1]]
        return range_batches(
            self.store, int(first), int(last), self.tokens_per_batch, self.strategy
        )

    def commit(self, computed: ComputedPooledShard, attempt: str) -> Receipt:  # type: ignore[override]
        """Write a computed shard and return its receipt."""
        return self._commit_pooled(
            self.store,
            computed.shard,
            computed.pooled,
            attempt=attempt,
            run=computed.run,
            on_nonfinite=self.run.on_nonfinite,
        )

    def _compute(self, shard: int) -> ComputedPooledShard:  # type: ignore[override]
        plan = self.plan
        start = self.store.documents.starts(*self.store.covered(shard, POOLED))
        pooler = Pooler(plan.hookpoints, plan.pools, start)
        batches, clock = self.batches(shard), Clock()

        def consume(name: str, gathered: torch.Tensor, inputs: Inputs) -> None:
            pooler.accumulate(name, gathered, inputs.token)

        self._forward(batches, plan.hookpoints, consume, clock)
        return ComputedPooledShard(shard, pooler.finish(), self._record(batches, clock, 0.0))
