"""When a line of progress is due where lines cannot be replaced: in files, pipes and logs."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable

AT_S = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Seconds from the start at which the first lines are due."""

EVERY_S = 60.0
"""Seconds between the lines after those."""


class Pace:
    """Says when a line of progress is due: often at first, once a minute later.

    A work of a few seconds prints nothing, one of an hour about 65 lines.

    Parameters
    ----------
    clock : callable
        Returns the present time in seconds; by default that of a clock that never goes back.

    Examples
    --------
    >>> now = iter([0.0, 1.0, 2.5, 4.0, 31.0, 59.0, 130.0, 179.0, 180.0])
    >>> pace = Pace(lambda: next(now))
    >>> [pace.due() for _ in range(8)]
    [False, True, False, True, False, True, False, True]
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._next = AT_S[0]

    def due(self) -> bool:
        """Return whether a line is due now; if so, the next one is due later."""
        seconds = self._clock() - self._began
        if seconds < self._next:
            return False
        place = bisect_right(AT_S, seconds)
        self._next = AT_S[place] if place < len(AT_S) else (seconds // EVERY_S + 1) * EVERY_S
        return True
