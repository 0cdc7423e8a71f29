"""A cluster as the driver sees it: calls that it makes, and events that it hears of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from actlas.jobs.executors import Done
from actlas.jobs.ledger import Fault, FaultKind


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
