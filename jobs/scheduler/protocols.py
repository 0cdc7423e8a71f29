"""Protocols of jobs, workers, executors and clusters.

An executor brings every shard of a job to a receipt or to quarantine.
:mod:`actlas.jobs.executors.inline` is the specification in one loop, and
:mod:`actlas.jobs.executors.ray` does the same in parallel. Neither sees the contents of a shard: a
worker writes them and returns a receipt, and a few numbers go back to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from actlas.jobs.scheduler.faults import Fault, FaultBudget, FaultKind
from actlas.jobs.scheduler.stop import Stop
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt


class Rate(Protocol):
    """Speed of a model's forward pass alone."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens fed per second."""


class Worker(Protocol):
    """A worker. If it is lost, only the shards in flight must be computed again."""

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute and write a shard, and return its receipt."""


@runtime_checkable
class MeasuredWorker(Worker, Protocol):
    """A worker with a model whose bare forward pass can be measured."""

    def bare_forward_rate(self, shard: int = 0) -> Rate | None:
        """Measure the forward pass alone on a shard's batches; None if there are too few."""


@runtime_checkable
class StagedWorker(Worker, Protocol):
    """A worker that can write a shard while it computes the next."""

    def compute(self, shard: int) -> Any:
        """Compute a shard."""

    def commit(self, computed: Any, attempt: str) -> Receipt:
        """Write a computed shard, in another thread, and return its receipt."""

    def close(self) -> None:
        """Release the resources other than the model."""


MakeWorker = Callable[[str, RunOptions], Worker]
"""Opens the store at a path and loads the model, in the worker's own process."""


@dataclass(frozen=True, slots=True)
class Job:
    """Shards to compute, and the factory of workers.

    Attributes
    ----------
    store : str
        Path or URL of the store.
    run : RunOptions
        Options of the run.
    shards : tuple of int
        The shards.
    make_worker : callable
        Makes a worker.
    follows : collection of int, or mapping of int to int
        Shards that are best done by the worker that did the one before: see
        :class:`actlas.jobs.scheduler.queue.ShardQueue`.
    damage_stops : bool
        Whether damaged input ends the run, for jobs of which every shard reads the same input.
    """

    store: str
    run: RunOptions
    shards: tuple[int, ...]
    make_worker: MakeWorker
    follows: Collection[int] | Mapping[int, int] = frozenset()
    damage_stops: bool = False


class Done(NamedTuple):
    """Numbers of a finished shard, from its receipt."""

    shard: int
    n_rows: int
    n_bytes: int
    n_nonfinite: int
    seconds: float
    worker: str
    run: dict[str, float]
    """Numbers of the receipt's ``run`` field, such as seconds by stage."""
    bare_tokens_per_s: float | None = None
    """Speed of the bare forward pass, which each worker measures once before its first shard."""
    note: str = ""
    """What the user should know about how the shard was computed; empty for nothing."""


class Observer(Protocol):
    """Receiver of a run's events: a display, a log, a test."""

    def log(self, text: str) -> None:
        """Show one line to the user."""

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Receive a worker's state: waiting, starting, busy (with a shard), idle or gone."""

    def done(self, done: Done) -> None:
        """Receive a finished shard."""

    def fault(self, fault: Fault, quarantined: bool) -> None:
        """Receive a failed attempt."""

    def tick(self) -> None:
        """Refresh a display; called regularly."""


class Executor(Protocol):
    """Runs a job until nothing is left to do or a stop is requested."""

    def __call__(self, job: Job, budget: FaultBudget, observer: Observer, stop: Stop) -> None:
        """Run the job.

        Raises
        ------
        ActlasError
            An error that no shard caused, such as a full disk or a wrong model.
        """


class Placed(NamedTuple):
    """A worker has a place on a machine: its process runs and loads the model."""

    worker: int


class Ready(NamedTuple):
    """A worker has loaded its model."""

    worker: int


class Answer(NamedTuple):
    """A worker has finished a shard, or reports a fault of a shard or of its start."""

    worker: int
    outcome: Done | Fault


class Lost(NamedTuple):
    """A worker is lost. ``shard`` is the only one to charge, if that is known."""

    worker: int
    kind: FaultKind
    error: str
    traceback: str
    shard: int | None = None


Event = Placed | Ready | Answer | Lost


class Cluster(Protocol):
    """Runs workers. The driver numbers them, and never uses a number twice."""

    def room(self) -> int:
        """Return the number of workers that the live machines can hold together."""

    def start(self, worker: int, name: str) -> None:
        """Begin to start a worker; it waits for a place where there is none."""

    def send(self, worker: int, shard: int) -> None:
        """Give a shard to a worker that is ready, behind those that it has."""

    def ping(self, worker: int) -> None:
        """Ask a silent worker for its answers again; no answer becomes a second event."""

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Wait for events, and return all that have happened by then, in order."""

    def kill(self, worker: int) -> None:
        """End a worker at once; no event of it follows."""


STAGES = {
    "forward_s": "forward pass",
    "gather_s": "gathering",
    "input_s": "waiting for input",
    "copy_wait_s": "waiting for copies",
    "write_wait_s": "waiting for writes",
}
"""Stages of a computing worker's time, with their names for the user."""
