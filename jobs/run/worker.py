"""A worker's inside: the store opened, the model loaded, a log of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from actlas.jobs import logs
from actlas.jobs.scheduler.protocols import Rate
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.store import open_store

if TYPE_CHECKING:
    from actlas.pipeline.extract.extract import ComputedShard

ENOUGH_S = 0.3
"""A forward pass measured for less than this is no measure of the others."""


class ShardWorker:
    """Extracts shards of one store with one model."""

    def __init__(
        self, store: str, run: RunOptions, job: str = EXTRACT, *, repair: bool = False
    ) -> None:
        from actlas.pipeline.extract.extract import Extractor
        from actlas.pipeline.extract.extract_pooled import PooledExtractor

        extractor = PooledExtractor if job == POOLED else Extractor
        self._extractor = extractor(open_store(store), run, repair=repair)
        self._how = {"executor": run.executor, "workers": run.workers}

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute and write a shard; its receipt says how."""
        return self.commit(self.compute(shard), attempt)

    def compute(self, shard: int) -> ComputedShard:
        """Compute a shard."""
        before = self._extractor.tokens_per_batch
        computed = self._extractor.compute(shard)
        after = self._extractor.tokens_per_batch
        if after != before:
            text = "the device ran out of memory: a batch has fewer tokens from now on"
            logs.LOGGER.warning(text, extra={"shard": shard, "before": before, "now": after})
        return dataclasses.replace(computed, run={**self._how, **computed.run})

    def commit(self, computed: ComputedShard, attempt: str) -> Receipt:
        """Write what was computed."""
        receipt = self._extractor.commit(computed, attempt)
        extra = {"shard": computed.shard, "attempt": attempt, **computed.run}
        logs.LOGGER.info("committed", extra=extra)
        return receipt

    def close(self) -> None:
        """End the threads that copy from a device, and give their memory back."""
        self._extractor.close()

    def bare_forward_rate(self, shard: int = 0) -> Rate | None:
        """Measure the forward pass alone; None below ``ENOUGH_S``, which would say nothing."""
        rate = self._extractor.bare_forward_rate(shard)
        return rate if rate.seconds >= ENOUGH_S else None


def open_worker(
    store: str, run: RunOptions, job: str = EXTRACT, *, repair: bool = False
) -> ShardWorker:
    """Open a store and load its model; on Ray, in a process of its own with a log of its own."""
    if run.executor == "ray":
        logs.start(store, "worker")
    return ShardWorker(store, run, job, repair=repair)


def open_pooler(store: str, run: RunOptions) -> ShardWorker:
    """Open a worker that makes pooled rows."""
    return open_worker(store, run, POOLED)


def open_mender(store: str, run: RunOptions, job: str = EXTRACT) -> ShardWorker:
    """Open a worker that puts back what is damaged of shards."""
    return open_worker(store, run, job, repair=True)
