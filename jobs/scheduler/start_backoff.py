"""Failed starts of workers: the delay before the next start, and the limit that ends a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from actlas.jobs.formatting import counted, duration
from actlas.jobs.scheduler.faults import Fault, FaultKind
from actlas.store.errors import ActlasError

MAX_FAILURES: dict[FaultKind, int] = {"task": 3, "process": 6, "node": 20}
"""Failed starts in a row, without another worker at work, that end the run."""

FIRST_S, LAST_S = 2.0, 300.0
"""First and longest delay of a start while others work, in seconds; it doubles each time."""


PATIENCE_S = 30.0
"""Seconds without room for any worker before a message to the user."""


class StartBackoff:
    """Counts failures to start in a row, and delays further starts.

    A broken GPU does not end a run in which other workers work: it only delays the next start, each
    time for longer. Workers that have been loading since before the first failure count as others.
    Without other workers the next start follows at once, and a few failures end the run.

    Parameters
    ----------
    log : callable
        Receives one line when starts begin to be delayed.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._failed: Counter[FaultKind] = Counter()
        """Failures by cause while no other worker was at work."""
        self._first = math.inf
        """Time of the first of these failures."""
        self._n_held_back = 0
        self._delay_s, self._until = 0.0, -math.inf

    def ready(self) -> None:
        """Forget all failures, because a worker has loaded its model."""
        self._failed.clear()
        self._first = math.inf
        self._n_held_back, self._delay_s, self._until = 0, 0.0, -math.inf

    def failed(
        self, fault: Fault, now: float, n_ready: int, loading: tuple[int, float], most: int
    ) -> ActlasError | None:
        """Count a failed start, and return the error that ends the run if there were too many.

        Parameters
        ----------
        fault : Fault
            The fault.
        now : float
            Time in seconds.
        n_ready : int
            Number of workers that have loaded their model.
        loading : (int, float)
            Number of workers that are loading, and the time when the first of them began.
        most : int
            Largest number of workers at the same time so far.
        """
        n_loading, since = loading
        if n_ready:
            self._failed.clear()
            self._first = math.inf
        else:
            self._failed[fault.kind] += 1
            self._first = min(self._first, now)
        if n_ready or (n_loading and since < self._first):
            self._delay(fault, now, n_ready + n_loading)
            return None
        self._n_held_back = 0
        n, limit = self._failed[fault.kind], MAX_FAILURES[fault.kind]
        if fault.kind == "node":  # one lost machine can take many workers with it
            limit = max(limit, 3 * most)
        if n < limit:
            return None
        return ActlasError(
            f"workers failed to start {n} times in a row, the last time with {fault.error}\n"
            f"{fault.traceback}"
        )

    def n_held_back(self, now: float) -> int:
        """Return the number of workers that must not be started yet, while others work."""
        if now >= self._until:
            self._n_held_back = 0
        return self._n_held_back

    def left(self, now: float) -> float:
        """Return the seconds until they may be started; infinity if there are none."""
        return self._until - now if self._n_held_back and now < self._until else math.inf

    def _delay(self, fault: Fault, now: float, n_others: int) -> None:
        self._n_held_back += 1
        if now < self._until:
            return  # it failed together with an earlier one
        first = not self._delay_s
        self._delay_s = FIRST_S if first else min(2 * self._delay_s, LAST_S)
        self._until = now + self._delay_s
        if first:
            reason = (fault.error.splitlines() or [fault.kind])[0]
            self._log(
                f"a worker could not start ({reason}): the run continues with "
                f"{counted(n_others, 'worker')}; the next start is tried in {duration(FIRST_S)}, "
                f"then at growing intervals of up to {duration(LAST_S)}"
            )


class Patience:
    """Tells the user once that no worker has a place on a machine.

    Parameters
    ----------
    log : callable
        Receives the line.
    now : float
        Time in seconds.
    """

    def __init__(self, log: Callable[[str], None], now: float) -> None:
        self._log, self._last_placed, self._logged = log, now, False

    def look(self, n_workers: int, n_waiting: int, now: float) -> None:
        """Log if all workers have waited for long.

        Parameters
        ----------
        n_workers, n_waiting : int
            Number of workers, and of those without a place.
        now : float
            Time in seconds.
        """
        if n_waiting < n_workers:
            self._last_placed, self._logged = now, False
        elif not self._logged and now - self._last_placed > PATIENCE_S:
            self._logged = True
            self._log(
                f"no worker could be placed for {PATIENCE_S:.0f} s: no machine has the resources "
                "of --cpus-per-worker and --gpus-per-worker free. Waiting for one (Ctrl-C stops)"
            )
