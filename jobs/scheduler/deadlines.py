"""Deadlines of shards: running clocks, and a limit that follows the median duration."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

MEDIANS = 10
"""A shard may take this many times the median duration."""

PING_S = 10.0
"""Seconds without an answer that is due, after which a worker is pinged."""

KNOWN = 2
"""Finished shards after which the median is used; one is not enough, as a last shard is short."""

FREE_ROUNDS = 3
"""Times that late shards are retried without a charge before the median is known."""


class Median:
    """Running median of a stream of numbers.

    Examples
    --------
    >>> median = Median()
    >>> median.value()
    0.0
    >>> for number in (5.0, 1.0, 9.0, 2.0):
    ...     median.add(number)
    >>> median.value()
    3.5
    """

    def __init__(self) -> None:
        self._low: list[float] = []
        """Heap of the smaller half, negated, so that its largest number comes first."""
        self._high: list[float] = []

    def add(self, number: float) -> None:
        """Add a number."""
        heapq.heappush(self._high, -heapq.heappushpop(self._low, -number))
        if len(self._high) > len(self._low):
            heapq.heappush(self._low, -heapq.heappop(self._high))

    def value(self) -> float:
        """Return the median; 0 before the first number."""
        if not self._low:
            return 0.0
        if len(self._low) > len(self._high):
            return -self._low[0]
        return (self._high[0] - self._low[0]) / 2


class Limit:
    """Time limit of a shard: ten times the median duration so far, but at least a floor.

    Before two shards are done their duration is unknown, and too low a floor would quarantine all
    shards. Until then the limit doubles whenever shards reach it, at most three times, and these
    shards are forgiven, that is, not charged. Afterwards they are charged.

    Parameters
    ----------
    floor_s : float
        Smallest limit in seconds (``--deadline-floor-s``).

    Examples
    --------
    >>> limit = Limit(300)
    >>> while limit.forgives():
    ...     limit.reached()
    >>> limit.value()
    2400.0
    >>> limit.add(1.0)
    >>> limit.value()
    2400.0
    >>> limit.add(99.0)
    >>> limit.value(), limit.forgives()
    (500.0, False)
    """

    def __init__(self, floor_s: float) -> None:
        self._floor_s = float(floor_s)
        self._median = Median()
        self._n_done = 0
        self._n_rounds = 0

    def add(self, seconds: float) -> None:
        """Add the duration of a finished shard in seconds."""
        self._median.add(seconds)
        self._n_done += 1

    def value(self) -> float:
        """Return the limit in seconds."""
        if self._known:
            return max(self._floor_s, MEDIANS * self._median.value())
        return self._floor_s * 2.0**self._n_rounds

    def forgives(self) -> bool:
        """Return whether a shard that reaches the limit is not charged."""
        return not self._known and self._n_rounds < FREE_ROUNDS

    @property
    def _known(self) -> bool:
        return self._n_done >= KNOWN

    def reached(self) -> None:
        """Double the limit after one or more shards reached it and were forgiven."""
        assert self.forgives()
        self._n_rounds += 1

    def words(self) -> str:
        """Return the limit and its reason for a message."""
        known = f"the median so far {self._median.value():.1f} s"
        why = known if self._known else f"fewer than {KNOWN} shards of this run are done so far"
        return f"the limit is {self.value():.0f} s, {why} (--deadline-floor-s)"


class Clocks:
    """Start times by key, the earliest first. Every operation takes constant time."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def start(self, key: int, now: float) -> None:
        """Start or restart a clock. ``now`` must not decrease between calls."""
        self._since.pop(key, None)
        self._since[key] = now

    def stop(self, key: int) -> None:
        """Stop a clock if it runs."""
        self._since.pop(key, None)

    def over(self, limit_s: float, now: float) -> tuple[int, float] | None:
        """Return the key and the seconds of the longest-running clock if it exceeds the limit."""
        key = next(iter(self._since), None)
        if key is None:
            return None
        ran = now - self._since[key]
        return (key, ran) if ran > limit_s else None

    def since(self) -> float:
        """Return the earliest start time; infinity without clocks."""
        return next(iter(self._since.values()), math.inf)

    def left(self, limit_s: float, now: float) -> float:
        """Return the seconds until the first clock exceeds the limit."""
        return self.since() + limit_s - now


class Silence:
    """Clocks of the workers from which an answer is due, which run out every ``PING_S``."""

    def __init__(self) -> None:
        self._clocks = Clocks()

    def listen(self, key: int, due: bool, now: float) -> None:
        """Restart a worker's clock if an answer is due, and otherwise stop it."""
        if due:
            self._clocks.start(key, now)
        else:
            self._clocks.stop(key)

    def stop(self, key: int) -> None:
        """Stop the clock of a worker that is gone."""
        self._clocks.stop(key)

    def over(self, now: float) -> Iterator[int]:
        """Yield the workers whose clocks have run out, and restart these clocks."""
        while late := self._clocks.over(PING_S, now):
            self._clocks.start(late[0], now)
            yield late[0]
