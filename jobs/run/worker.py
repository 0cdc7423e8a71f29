"""Workers that extract: each opens the store, loads the model, and keeps a log of its own."""

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
    from actlas.pipeline.extract.computed import ComputedShard

MIN_MEASURED_S = 0.3
"""The bare forward pass must run for so many seconds, for its speed to be reported."""


class ShardWorker:
    """Extracts shards of one store with one model.

    Parameters
    ----------
    store : str
        The path or URL of the store.
    run : RunOptions
        Device, batch sizes, threads.
    job : str
        ``extract`` or ``pooled``.
    repair : bool
        Whether damaged shards are replaced, instead of missing ones written.
    """

    def __init__(
        self, store: str, run: RunOptions, job: str = EXTRACT, *, repair: bool = False
    ) -> None:
        from actlas.pipeline.extract.extract import Extractor
        from actlas.pipeline.extract.extract_pooled import PooledExtractor

        extractor = PooledExtractor if job == POOLED else Extractor
        self._extractor = extractor(open_store(store), run, repair=repair)
        self._run = {"executor": run.executor, "workers": run.workers}

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute and write a shard, and return its receipt.

        Parameters
        ----------
        shard : int
            The number of the shard.
        attempt : str
            The name of this attempt, for the receipt.
        """
        return self.commit(self.compute(shard), attempt)

    def compute(self, shard: int) -> ComputedShard:
        """Compute a shard and return it, in memory.

        Parameters
        ----------
        shard : int
            The number of the shard.
        """
        before = self._extractor.tokens_per_batch
        computed = self._extractor.compute(shard)
        after = self._extractor.tokens_per_batch
        if after != before:
            text = "the device ran out of memory: the next batches have fewer tokens"
            logs.LOGGER.warning(text, extra={"shard": shard, "before": before, "now": after})
        return dataclasses.replace(computed, run={**self._run, **computed.run})

    def commit(self, computed: ComputedShard, attempt: str) -> Receipt:
        """Write a computed shard, and return its receipt.

        Parameters
        ----------
        computed : ComputedShard
            The shard in memory.
        attempt : str
            The name of this attempt, for the receipt.
        """
        receipt = self._extractor.commit(computed, attempt)
        extra = {"shard": computed.shard, "attempt": attempt, **computed.run}
        logs.LOGGER.info("committed", extra=extra)
        return receipt

    def close(self) -> None:
        """End the threads that copy from the device, and free their memory."""
        self._extractor.close()

    def bare_forward_rate(self, shard: int = 0) -> Rate | None:
        """Measure the forward pass alone; None if it ran for less than ``MIN_MEASURED_S``.

        Parameters
        ----------
        shard : int
            The shard whose batches are computed.
        """
        rate = self._extractor.bare_forward_rate(shard)
        return rate if rate.seconds >= MIN_MEASURED_S else None


def open_worker(
    store: str, run: RunOptions, job: str = EXTRACT, *, repair: bool = False
) -> ShardWorker:
    """Open a store and load its model; on Ray, the worker's process has a log of its own.

    Parameters
    ----------
    store : str
        The path or URL of the store.
    run : RunOptions
        Device, batch sizes, threads.
    job : str
        ``extract`` or ``pooled``.
    repair : bool
        Whether damaged shards are replaced, instead of missing ones written.
    """
    if run.executor == "ray":
        logs.start(store, "worker")
    return ShardWorker(store, run, job, repair=repair)


def open_pooler(store: str, run: RunOptions) -> ShardWorker:
    """Open a worker that extracts pooled rows; see :func:`open_worker`."""
    return open_worker(store, run, POOLED)


def open_repairer(store: str, run: RunOptions, job: str = EXTRACT) -> ShardWorker:
    """Open a worker that replaces damaged shards; see :func:`open_worker`."""
    return open_worker(store, run, job, repair=True)
