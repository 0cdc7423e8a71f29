"""Workers that fail to start: when another is tried, and when it is enough."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from actlas.jobs.formatting import counted, duration
from actlas.jobs.scheduler.faults import Fault, FaultKind
from actlas.store.errors import ActlasError

STARTS: dict[FaultKind, int] = {"task": 3, "process": 6, "node": 20}
"""How often in a row workers may fail to start, with no other at work, before the run ends."""

FIRST_S, LAST_S = 2.0, 300.0
"""How long another start is put off while others work: at first, doubled each time; at most."""


class StartBackoff:
    """Failures to start in a row, and what follows from them.

    One broken GPU ends no run in which others work: it only puts off the next start, for longer
    each time. Those count as others, too, that have been loading since before the first failure.
    Where there are none, another is started at once, and a few failures are enough.

    Parameters
    ----------
    say : callable
        Told, once in a row, that starts are put off.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._failed: Counter[FaultKind] = Counter()
        """While there were no others."""
        self._first = math.inf
        """When the first of these was."""
        self._n_held = 0
        self._delay_s, self._until = 0.0, -math.inf

    def ready(self) -> None:
        """Forgive what was: a worker has loaded its model."""
        self._failed.clear()
        self._first = math.inf
        self._n_held, self._delay_s, self._until = 0, 0.0, -math.inf

    def failed(
        self, fault: Fault, now: float, n_ready: int, loading: tuple[int, float], most: int
    ) -> ActlasError | None:
        """Take note of a failure, and return what to end the run with where it is enough.

        Parameters
        ----------
        fault : Fault
        now : float
            Seconds.
        n_ready : int
            Workers that have loaded their model.
        loading : (int, float)
            How many load theirs, and since when the first of them does.
        most : int
            How many workers there ever were at once.
        """
        n_loading, since = loading
        if n_ready:
            self._failed.clear()
            self._first = math.inf
        else:
            self._failed[fault.kind] += 1
            self._first = min(self._first, now)
        if n_ready or (n_loading and since < self._first):
            self._put_off(fault, now, n_ready + n_loading)
            return None
        self._n_held = 0
        n, limit = self._failed[fault.kind], STARTS[fault.kind]
        if fault.kind == "node":  # one machine that is lost may take many along
            limit = max(limit, 3 * most)
        if n < limit:
            return None
        return ActlasError(
            f"workers failed to start {n} times in a row, at last with {fault.error}\n"
            f"{fault.traceback}"
        )

    def n_held(self, now: float) -> int:
        """Return how many workers are not to be started yet, while others work."""
        if now >= self._until:
            self._n_held = 0
        return self._n_held

    def left(self, now: float) -> float:
        """Return the seconds until they may be."""
        return self._until - now if self._n_held and now < self._until else math.inf

    def _put_off(self, fault: Fault, now: float, n_others: int) -> None:
        self._n_held += 1
        if now < self._until:
            return  # it failed beside the one before
        first = not self._delay_s
        self._delay_s = FIRST_S if first else min(2 * self._delay_s, LAST_S)
        self._until = now + self._delay_s
        if first:
            what = (fault.error.splitlines() or [fault.kind])[0]
            self._say(
                f"a worker could not start ({what}): the run goes on with "
                f"{counted(n_others, 'worker')}, and tries another in {duration(FIRST_S)}, then "
                f"less and less often, at last every {duration(LAST_S)}, until one starts"
            )
