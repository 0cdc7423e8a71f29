"""What an executor is: it brings every shard of a job to a receipt, or to quarantine.

:mod:`actlas.jobs.executors.inline` is the specification, in one loop;
:mod:`actlas.jobs.executors.ray` is the same in parallel. Neither sees what a shard
holds: a worker writes it and returns a receipt, and a few numbers go back to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from actlas.jobs.scheduler.faults import Fault, FaultKind, Ledger
from actlas.jobs.scheduler.stop import Stop
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt


class Rate(Protocol):
    """How fast a worker's model goes when nothing else is done."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens fed per second."""


class Worker(Protocol):
    """All that a worker does. Losing it loses nothing but the shard in hand."""

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute and write a shard, and return its receipt."""


@runtime_checkable
class MeasuredWorker(Worker, Protocol):
    """A worker with a model whose bare forward pass can be measured."""

    def bare_forward_rate(self, shard: int = 0) -> Rate | None:
        """Measure the forward pass alone on a shard's batches; None where they are too few."""


@runtime_checkable
class StagedWorker(Worker, Protocol):
    """A worker whose shards can be written while the next is computed."""

    def compute(self, shard: int) -> Any:
        """Compute a shard."""

    def commit(self, computed: Any, attempt: str) -> Receipt:
        """Write what was computed, in another thread, and return its receipt."""

    def close(self) -> None:
        """Let go of what is held beside the model."""


MakeWorker = Callable[[str, RunOptions], Worker]
"""Opens the store at a path and loads the model. Called in the worker's own process."""


@dataclass(frozen=True, slots=True)
class Job:
    """The shards to do, and who can do them.

    Attributes
    ----------
    follows : collection of int, or mapping of int to int
        Shards that are best done by the worker that did the one before: see
        :class:`actlas.jobs.scheduler.queue.ShardQueue`.
    """

    store: str
    run: RunOptions
    shards: tuple[int, ...]
    make_worker: MakeWorker
    follows: Collection[int] | Mapping[int, int] = frozenset()


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
    """Measured once by each worker, before its first shard."""


class Observer(Protocol):
    """Whoever looks on: a display, a log, a test."""

    def log(self, text: str) -> None:
        """One plain line for the user."""

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Tell that a worker is waiting for a place, starting, busy with a shard, idle or gone."""

    def done(self, done: Done) -> None:
        """Tell that a shard has its receipt."""

    def fault(self, fault: Fault, quarantined: bool) -> None:
        """Tell that an attempt failed."""

    def tick(self) -> None:
        """Let a display move on; called now and then."""


class Executor(Protocol):
    """Runs a job until nothing is left to do, or until it is told to stop."""

    def __call__(self, job: Job, ledger: Ledger, observer: Observer, stop: Stop) -> None:
        """Run.

        Raises
        ------
        ActlasError
            What stopped the run where no shard is to blame (a full disk, a wrong model).
        """


class Placed(NamedTuple):
    """A worker has a place: its process runs, and it loads its model."""

    worker: int


class Ready(NamedTuple):
    """A worker has loaded its model."""

    worker: int


class Answer(NamedTuple):
    """A worker is done with a shard, for good or ill; or could not start, which is a fault too."""

    worker: int
    outcome: Done | Fault


class Lost(NamedTuple):
    """A worker is no more. ``shard`` where one alone is to blame, not whatever it was at."""

    worker: int
    kind: FaultKind
    error: str
    traceback: str
    shard: int | None = None


Event = Placed | Ready | Answer | Lost


class Cluster(Protocol):
    """Where workers live. They are numbered by the driver, and no number is used twice."""

    def room(self) -> int:
        """Return how many workers the living machines can hold together."""

    def start(self, worker: int, name: str) -> None:
        """Begin to start a worker; it waits for a place where there is none."""

    def send(self, worker: int, shard: int) -> None:
        """Give a shard to a worker that is ready, behind those that it has."""

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Wait until something happens, and return all that has happened by then, in order."""

    def kill(self, worker: int) -> None:
        """End a worker at once, whatever it does; nothing is heard of it afterwards."""


STAGES = {
    "forward_s": "forward pass",
    "gather_s": "gathering",
    "input_s": "waiting for input",
    "copy_wait_s": "waiting for copies",
    "write_wait_s": "waiting for writes",
}
"""What a worker that computes does with its time, one after the other."""
