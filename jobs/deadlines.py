"""How long is too long: clocks that run, and a limit that follows the median."""

from __future__ import annotations

import heapq
import math

MEDIANS = 10


class Median:
    """The median of numbers as they come.

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
        """The smaller half, negated: a heap with the largest first."""
        self._high: list[float] = []

    def add(self, number: float) -> None:
        """Take another number in."""
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


class Clocks:
    """Since when each of many things has been under way; the one for longest is at hand."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def start(self, key: int, now: float) -> None:
        """Start a clock, or start it anew. ``now`` never goes back from call to call."""
        self._since.pop(key, None)
        self._since[key] = now

    def stop(self, key: int) -> None:
        """Stop a clock, where it runs."""
        self._since.pop(key, None)

    def over(self, limit_s: float, now: float) -> tuple[int, float] | None:
        """Return whose clock has run for longest and for how long, if that is over the limit."""
        key = next(iter(self._since), None)
        if key is None:
            return None
        ran = now - self._since[key]
        return (key, ran) if ran > limit_s else None

    def left(self, limit_s: float, now: float) -> float:
        """Return the seconds until the first clock is over the limit."""
        first = next(iter(self._since.values()), math.inf)
        return first + limit_s - now
