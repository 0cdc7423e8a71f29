"""Who works on a store, seen from elsewhere: whether it lives, and what it said last."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from actlas.jobs.snapshot import Snapshot
from actlas.store import lease
from actlas.store.objects import Objects

FRESH_S = 20.0
"""A beat so young by its writer's clock needs no second look."""
STILL_S = 4 * lease.BEAT_S
"""A watched counter that stands still for so long, by our own clock, is perhaps a dead driver's."""
SECOND_LOOK_S = lease.BEAT_S + 2.0


class Holding(NamedTuple):
    """A store's driver as it was last seen.

    Attributes
    ----------
    holder : dict or None
        Host and process; None where nobody holds the lease.
    alive : bool
        Whether it was seen to live.
    n_beats : int
        How often it has beaten.
    moved_s : float
        When, by our own clock, that number was first seen.
    heard : bool
        Whether the number was seen to move there, so that this is when it was last heard of. At a
        first look nobody knows how old it is, but by its writer's clock.
    """

    holder: dict[str, Any] | None
    alive: bool
    n_beats: int
    moved_s: float
    snapshot: Snapshot
    heard: bool = False

    def heard_s_ago(self) -> float | None:
        """Return the seconds since its counter was seen to move, by our own clock."""
        return time.monotonic() - self.moved_s if self.heard else None


def look(objects: Objects, before: Holding | None = None) -> Holding:
    """Look at who holds the lease.

    Clocks of other machines may be wrong, so an old beat proves nothing: then the counter is
    watched, for ``SECOND_LOOK_S``, or since the look ``before``.
    """
    now = _once(objects)
    if now.holder is None or lease.beside_us(now.holder):
        return now  # a holder on this machine is known to live
    if before is not None and before.holder == now.holder:
        if now.n_beats != before.n_beats:
            return now._replace(alive=True, heard=True)
        still = now.moved_s - before.moved_s
        alive = before.alive and still < STILL_S
        return now._replace(alive=alive, moved_s=before.moved_s, heard=before.heard)
    said = now.snapshot.written_unix_s or _number(now.holder.get("since_unix_s"))
    if abs(time.time() - said) < FRESH_S:
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


def _once(objects: Objects) -> Holding:
    holder = lease.holder(objects)
    beat = lease.last_beat(objects) if holder is not None else None
    snapshot = Snapshot({} if beat is None else beat.run)
    count = 0 if beat is None else beat.n_beats
    return Holding(holder, holder is not None, count, time.monotonic(), snapshot)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
