"""What an executor is: it brings every shard of a job to a receipt, or to quarantine.

:mod:`actlas.jobs.inline` is the specification, in one loop; :mod:`actlas.jobs.ray_executor` is the
same in parallel. Neither sees what a shard holds: a worker writes it and returns a receipt, and a
few numbers go back to the driver.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from actlas.jobs.ledger import Fault, Ledger, fault_of
from actlas.jobs.logs import LOGGER
from actlas.jobs.signals import Stop
from actlas.pipeline.options import RunOptions
from actlas.store.schema import Receipt


class Rate(Protocol):
    """How fast a worker's model goes when nothing else is done."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens fed per second."""


class Worker(Protocol):
    """All that a worker does. Losing it loses nothing but the shard in hand."""

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute and write a shard, and return its receipt."""

    def bare_forward_rate(self, shard: int = 0) -> Rate | None:
        """Measure the forward pass alone on a shard's batches; None where they are too few."""


MakeWorker = Callable[[str, RunOptions], Worker]
"""Opens the store at a path and loads the model. Called in the worker's own process."""


@dataclass(frozen=True, slots=True)
class Job:
    """The shards to do, and who can do them."""

    store: str
    run: RunOptions
    shards: tuple[int, ...]
    make_worker: MakeWorker


class Done(NamedTuple):
    """A finished shard in a few numbers, from its receipt."""

    shard: int
    n_rows: int
    n_bytes: int
    n_nonfinite: int
    seconds: float
    worker: str
    run: dict[str, float]
    """The numbers of the receipt's ``run``."""
    bare_tokens_per_s: float | None = None
    """Measured once by each worker, after its first shard, as the others work on."""


class Watch(Protocol):
    """Whoever looks on: a display, a log, a test."""

    def say(self, text: str) -> None:
        """One plain line for the user."""

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Tell that a worker is now starting, busy with a shard, idle or gone."""

    def done(self, done: Done) -> None:
        """Tell that a shard has its receipt."""

    def fault(self, fault: Fault, quarantined: bool) -> None:
        """Tell that an attempt failed."""

    def tick(self) -> None:
        """Let a display move on; called now and then."""


class Executor(Protocol):
    """Runs a job until nothing is left to do, or until it is told to stop."""

    def __call__(self, job: Job, ledger: Ledger, watch: Watch, stop: Stop) -> None:
        """Run.

        Raises
        ------
        ActlasError
            What stopped the run where no shard is to blame (a full disk, a wrong model).
        """


class Hand:
    """A worker as an executor sees it: it tries a shard, and a failure is a value, not raised.

    Parameters
    ----------
    worker : Worker
    name : str
        For messages.
    store : str
        Where the store is, for errors of the operating system that name no file.
    """

    def __init__(self, worker: Worker, name: str, store: str) -> None:
        self._worker, self._name, self._store = worker, name, store
        self._measured = False

    def attempt(self, shard: int) -> Done | Fault:
        """Run one shard once."""
        attempt = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        started = time.perf_counter()
        try:
            receipt = self._worker.extract(shard, attempt=attempt)
        except Exception as error:  # noqa: BLE001 - kept whole in the fault, charged by the driver
            return fault_of(error, shard, self._name, self._store)
        seconds = time.perf_counter() - started
        return Done(
            shard=shard,
            n_rows=receipt.stop - receipt.start,
            n_bytes=sum(record.n_bytes for record in receipt.objects),
            n_nonfinite=sum(receipt.n_nonfinite.values()),
            seconds=seconds,
            worker=self._name,
            run={k: v for k, v in receipt.run.items() if isinstance(v, int | float)},
            bare_tokens_per_s=self._measure(shard),
        )

    def _measure(self, shard: int) -> float | None:
        """Measure the bare forward pass once, after the first shard: it is done, whatever comes."""
        if self._measured:
            return None
        self._measured = True
        try:
            rate = self._worker.bare_forward_rate(shard)
        except Exception:  # noqa: BLE001 - a number for the last line, and no part of the work
            LOGGER.exception("the bare forward pass was not measured", extra={"shard": shard})
            return None
        return None if rate is None else rate.tokens_per_s


def named(name: str) -> Executor:
    """Return the executor of a name; only then is its library loaded."""
    if name == "ray":
        from actlas.jobs.ray_executor import run_ray

        return run_ray
    from actlas.jobs.inline import run_inline

    return run_inline
