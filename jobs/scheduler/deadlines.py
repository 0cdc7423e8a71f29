"""How long is too long: clocks that run, and a limit that follows the median."""

from __future__ import annotations

import heapq
import math

MEDIANS = 10

KNOWN = 2
"""After so many shards one is known to be a whole one: the last of a store is shorter."""

FREE_ROUNDS = 3
"""How often shards may take too long at nobody's charge, before any is done."""


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


class Limit:
    """How long a shard may take: ten times the median so far, and never less than a floor.

    Before two shards are done nobody knows how long one takes (the last of a store is shorter than
    the others), and a floor that is too low would put all of them in quarantine. Until then the
    limit doubles each time that shards have reached it, three times, and these are not to blame;
    from then on they are.

    Parameters
    ----------
    floor_s : float

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
        """Take in how long a shard took."""
        self._median.add(seconds)
        self._n_done += 1

    def value(self) -> float:
        """Return the seconds."""
        if self._known:
            return max(self._floor_s, MEDIANS * self._median.value())
        return self._floor_s * 2.0**self._n_rounds

    def forgives(self) -> bool:
        """Say whether a shard that reaches it is not to blame."""
        return not self._known and self._n_rounds < FREE_ROUNDS

    @property
    def _known(self) -> bool:
        return self._n_done >= KNOWN

    def reached(self) -> None:
        """Double it: shards have reached it, any number at once, and are forgiven."""
        assert self.forgives()
        self._n_rounds += 1

    def words(self) -> str:
        """Return it for a message."""
        known = f"the median so far {self._median.value():.1f} s"
        why = known if self._known else f"fewer than {KNOWN} shards of this run are done so far"
        return f"the limit is {self.value():.0f} s, {why} (--deadline-floor-s)"


class Clocks:
    """Since when each of many things has been under way; the one for longest is at hand."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._since)

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

    def since(self) -> float:
        """Return when the first clock was started; infinity where none runs."""
        return next(iter(self._since.values()), math.inf)

    def left(self, limit_s: float, now: float) -> float:
        """Return the seconds until the first clock is over the limit."""
        return self.since() + limit_s - now
