"""The driver's workers: their names, states and shards, and the workers that can take a shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

IN_FLIGHT = 2
"""Shards of a worker at the same time: one is computed, one is written."""


@dataclass(slots=True)
class Member:
    """A worker and its shards, in the order in which they were sent."""

    name: str
    state: Literal["waiting", "starting", "ready"] = "waiting"
    shards: list[int] = field(default_factory=list)

    @property
    def due(self) -> bool:
        """Whether an answer of the worker is due: to its start, or to a shard."""
        return self.state != "ready" or bool(self.shards)


class Roster:
    """The current workers by number. Every operation takes constant time.

    Attributes
    ----------
    n_most : int
        Largest number of workers at the same time so far.
    waiting : dict
        Numbers of the workers without a place on a machine, in the order of their start.
    """

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}
        self._open: tuple[dict[int, None], ...] = tuple({} for _ in range(IN_FLIGHT))
        """Workers that can take another shard, by their number of shards."""
        self._names: deque[str] = deque()
        """Names of workers that are gone, which the next workers get."""
        self._n_started = 0
        self.n_most = 0
        self.waiting: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, number: int) -> bool:
        return number in self._members

    def __getitem__(self, number: int) -> Member:
        return self._members[number]

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._members))

    def add(self) -> int:
        """Add a waiting worker, and return its number, which is never used again."""
        number = self._n_started
        self._n_started += 1
        name = self._names.popleft() if self._names else f"worker {len(self._members)}"
        self._members[number] = Member(name)
        self.waiting[number] = None
        self.n_most = max(self.n_most, len(self._members))
        return number

    def remove(self, number: int) -> Member:
        """Remove a worker and return it."""
        self.close(number)
        member = self._members.pop(number)
        self.waiting.pop(number, None)
        self._names.append(member.name)
        return member

    def close(self, number: int) -> None:
        """Offer a worker no more shards; to be called before its shards change."""
        n = len(self._members[number].shards)
        if n < IN_FLIGHT:
            self._open[n].pop(number, None)

    def reopen(self, number: int, *, alone: bool) -> None:
        """Offer a worker shards up to its limit.

        Parameters
        ----------
        number : int
            Number of the worker.
        alone : bool
            Whether its shard must be its only one.
        """
        n = len(self._members[number].shards)
        if n < IN_FLIGHT and not (n and alone):
            self._open[n][number] = None

    def able(self, n_shards: int) -> int | None:
        """Return a worker that has ``n_shards`` shards and can take another; None without one."""
        return next(iter(self._open[n_shards]), None)
