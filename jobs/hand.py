"""A worker as an executor sees it: it tries shards, and a failure is a value, not raised."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

from actlas.jobs.executors import Done, StagedWorker, Worker
from actlas.jobs.ledger import Fault, fault_of
from actlas.jobs.logs import LOGGER
from actlas.jobs.turns import Turns
from actlas.store.schema import Receipt


class Hand:
    """One worker, which writes a shard while it computes the next.

    At most two shards are in its memory: the one that is computed and the one that is written.

    Parameters
    ----------
    worker : Worker
        Where it can compute and commit apart, writing goes on beside.
    name : str
        For messages.
    store : str
        Where the store is, for errors of the operating system that name no file.
    turns : Turns, optional
        Waited for before a shard is written. A worker that cannot compute and commit apart has
        its turn for both.
    """

    def __init__(self, worker: Worker, name: str, store: str, turns: Turns | None = None) -> None:
        self._worker, self._name, self._store = worker, name, store
        self._turns = turns
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="actlas-writer")
        self._writing: Future[Done | Fault] | None = None
        self._bare: float | None = None

    def measure(self, shard: int) -> None:
        """Measure the bare forward pass, before the first shard; whatever comes of it."""
        try:
            rate = self._worker.bare_forward_rate(shard)
        except Exception:  # noqa: BLE001 - a number for the last line, and no part of the work
            LOGGER.exception("the bare forward pass was not measured", extra={"shard": shard})
            return
        self._bare = None if rate is None else rate.tokens_per_s

    def attempt(self, shard: int) -> Done | Fault:
        """Run one shard once."""
        return self.begin(shard).result()

    def begin(self, shard: int) -> Future[Done | Fault]:
        """Compute a shard here and now; return what will be known once it is written.

        One shard at a time: who calls from several threads calls in turn.
        """
        attempt = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        worker, started = self._worker, time.perf_counter()
        if not isinstance(worker, StagedWorker):
            return _known(
                self._tried(shard, started, 0, lambda: worker.extract(shard, attempt=attempt))
            )
        try:
            computed = worker.compute(shard)
        except Exception as error:  # noqa: BLE001 - kept whole in the fault, charged by the driver
            return _known(fault_of(error, shard, self._name, self._store))
        began = time.perf_counter()
        if self._writing is not None:
            self._writing.exception()  # Waits: no third shard comes into memory.
        waited = time.perf_counter() - began
        box = [computed]
        del computed

        def write() -> Done | Fault:
            return self._tried(shard, started, waited, lambda: worker.commit(box.pop(), attempt))

        self._writing = self._writer.submit(write)
        return self._writing

    def close(self) -> None:
        """Wait for what is being written: who ends a run gives up its lease after that."""
        self._writer.shutdown(wait=True)
        if isinstance(self._worker, StagedWorker):
            self._worker.close()

    def _tried(
        self, shard: int, started: float, waited_s: float, make: Callable[[], Receipt]
    ) -> Done | Fault:
        try:
            with nullcontext(0.0) if self._turns is None else self._turns.turn() as turn_wait_s:
                began = time.perf_counter()
                receipt = make()
        except Exception as error:  # noqa: BLE001 - kept whole in the fault, charged by the driver
            return fault_of(error, shard, self._name, self._store)
        now = time.perf_counter()
        numbers = {k: v for k, v in receipt.run.items() if isinstance(v, int | float)}
        bare, self._bare = self._bare, None
        return Done(
            shard=shard,
            n_rows=receipt.stop - receipt.start,
            n_bytes=sum(record.n_bytes for record in receipt.objects),
            n_nonfinite=sum(receipt.n_nonfinite.values()),
            seconds=now - started,
            worker=self._name,
            run={
                **numbers,
                "write_s": now - began,
                "write_wait_s": waited_s,
                "turn_wait_s": turn_wait_s,
            },
            bare_tokens_per_s=bare,
        )


def _known(outcome: Done | Fault) -> Future[Done | Fault]:
    future: Future[Done | Fault] = Future()
    future.set_result(outcome)
    return future
