"""A worker's inside: the store opened, the model loaded, a log of its own."""

from __future__ import annotations

import dataclasses

from actlas.jobs import logs
from actlas.jobs.executors import Rate
from actlas.pipeline.options import RunOptions
from actlas.store.schema import Receipt
from actlas.store.store import open_store

ENOUGH_S = 0.3
"""A forward pass measured for less than this is no measure of the others."""


class ShardWorker:
    """Extracts shards of one store with one model."""

    def __init__(self, store: str, run: RunOptions) -> None:
        from actlas.pipeline.extract import Extractor

        self._extractor = Extractor(open_store(store), run)
        self._how = {"executor": run.executor, "workers": run.workers}

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute and write a shard; its receipt says how."""
        computed = self._extractor.compute(shard)
        computed = dataclasses.replace(computed, run={**self._how, **computed.run})
        receipt = self._extractor.commit(computed, attempt)
        logs.LOGGER.info("committed", extra={"shard": shard, "attempt": attempt, **computed.run})
        return receipt

    def bare_forward_rate(self, shard: int = 0) -> Rate | None:
        """Measure the forward pass alone; None below ``ENOUGH_S``, which would say nothing."""
        rate = self._extractor.bare_forward_rate(shard)
        return rate if rate.seconds >= ENOUGH_S else None


def open_worker(store: str, run: RunOptions) -> ShardWorker:
    """Open a store and load its model; on Ray, in a process of its own with a log of its own."""
    if run.executor == "ray":
        logs.start(store, "worker")
    return ShardWorker(store, run)
