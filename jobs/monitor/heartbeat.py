"""A driver's last heartbeat as another process reads it, and the state of the lease holder.

:meth:`actlas.jobs.monitor.run_stats.RunStats.snapshot` makes the contents of a heartbeat. A store
may come from an untrusted source, so the type of every field is checked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from actlas.jobs.formatting import printable
from actlas.store.ledger import lease
from actlas.store.objects import processes
from actlas.store.objects.base import Objects

N_CHARACTERS = 200
"""Largest number of characters of a text in a heartbeat that are shown."""


class Snapshot:
    """The valid fields of a heartbeat; invalid fields count as absent.

    Parameters
    ----------
    run : mapping
        The heartbeat's fields, of any type.
    """

    def __init__(self, run: Mapping[str, Any]) -> None:
        self._run = run
        self.written_unix_s = self.number("written_unix_s")
        self.n_rows = self.number("n_rows")
        self.stopping = self._run.get("stopping") is True

    def number(self, name: str) -> float:
        """Return a number that is finite and not negative, otherwise 0."""
        return _number(self._run.get(name))

    def text(self, name: str) -> str:
        """Return a text, printable and shortened."""
        return _text(self._run.get(name))

    def counts(self, name: str) -> dict[str, int]:
        """Return counts by name."""
        found = self._run.get(name)
        pairs = list(found.items())[:16] if isinstance(found, dict) else []
        return {_text(key): int(_number(n)) for key, n in pairs if _number(n)}

    def workers(self) -> list[dict[str, Any]]:
        """Return the workers with their states, seconds and shards, as the driver ordered them."""
        found = self._run.get("workers")
        return [
            {
                "worker": _text(one.get("worker")),
                "state": _text(one.get("state")),
                "seconds": _number(one.get("seconds")),
                "shards": _whole(one.get("shards")),
            }
            for one in (found[:64] if isinstance(found, list) else [])
            if isinstance(one, dict)
        ]

    def plain(self) -> dict[str, Any]:
        """Return the fields of :class:`~actlas.jobs.run.reports.progress.RunProgress`."""
        numbers = (
            "written_unix_s", "seconds", "rows_per_s_now", "rows_per_s", "tokens_per_s_now",
            "tokens_per_s",
        )  # fmt: skip
        counts = (
            "n_rows", "n_rows_done", "n_shards", "n_shards_done", "n_workers", "n_workers_gone",
            "n_in_flight", "n_quarantined",
        )  # fmt: skip
        left = self._run.get("seconds_left")
        return {
            "job": self.text("job"),
            "of": self.text("of"),
            "stopping": self.stopping,
            **{name: self.number(name) for name in numbers},
            **{name: int(self.number(name)) for name in counts},
            "seconds_left": None if left is None else _number(left),
            "states": self.counts("states"),
            "faults": self.counts("faults"),
            "workers": self.workers(),
        }


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value < 1e18 and math.isfinite(value) else 0.0


def _text(value: object) -> str:
    return printable(value[:N_CHARACTERS]) if isinstance(value, str) else ""


def _whole(value: object) -> list[int]:
    found = value[:8] if isinstance(value, list) else []
    return [n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 10**12]


FRESH_S = 20.0
"""A heartbeat younger than this, by its writer's clock, needs no second look; in seconds."""

STILL_S = 4 * lease.HEARTBEAT_S
"""A driver whose counter does not change for this long, by our clock, is perhaps dead; seconds."""

SECOND_LOOK_S = lease.HEARTBEAT_S + 2.0
"""Seconds to wait for the counter of an old heartbeat to change."""


class HolderState(NamedTuple):
    """The lease holder (driver) of a store, as it was last observed.

    Attributes
    ----------
    holder : dict or None
        Host and process of the holder; None if the lease is free.
    alive : bool
        Whether the holder is alive.
    n_beats : int
        The heartbeat counter.
    changed_s : float
        Time when this value of the counter was first seen, by this machine's monotonic clock.
    snapshot : Snapshot
        The contents of the last heartbeat.
    heard : bool
        Whether the counter was seen to change at that time. Otherwise the age of the heartbeat is
        known only by the writer's clock.
    """

    holder: dict[str, Any] | None
    alive: bool
    n_beats: int
    changed_s: float
    snapshot: Snapshot
    heard: bool = False

    def heard_s_ago(self) -> float | None:
        """Return the seconds since the counter was seen to change; None if it was not."""
        return time.monotonic() - self.changed_s if self.heard else None


def observe_holder(objects: Objects, before: HolderState | None = None) -> HolderState:
    """Return the state of the lease holder.

    The clocks of other machines may be wrong, so an old heartbeat proves nothing. Its counter is
    then watched for ``SECOND_LOOK_S`` seconds, or compared with ``before``.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    before : HolderState, optional
        The state as it was last observed.
    """
    now = _once(objects)
    if now.holder is None or processes.state_of(now.holder) == "running":
        return now  # known without its heartbeat
    if before is not None and before.holder == now.holder:
        if now.n_beats != before.n_beats:
            return now._replace(alive=True, heard=True)
        still = now.changed_s - before.changed_s
        alive = before.alive and still < STILL_S
        return now._replace(alive=alive, changed_s=before.changed_s, heard=before.heard)
    written = now.snapshot.written_unix_s or _number(now.holder.get("since_unix_s"))
    if abs(time.time() - written) < FRESH_S:
        return now
    deadline = time.monotonic() + SECOND_LOOK_S
    while time.monotonic() < deadline:
        time.sleep(0.5)
        later = _once(objects)
        if later.holder != now.holder:
            return later
        if later.n_beats != now.n_beats:
            return later._replace(heard=True)
    return now._replace(alive=False)


def _once(objects: Objects) -> HolderState:
    holder = lease.holder(objects)
    beat = lease.last_heartbeat(objects) if holder is not None else None
    snapshot = Snapshot({} if beat is None else beat.run)
    count = 0 if beat is None else beat.n_beats
    return HolderState(holder, holder is not None, count, time.monotonic(), snapshot)
