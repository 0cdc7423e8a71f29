"""What a driver's beat says of its run, read by whoever looks on: :meth:`Tally.snapshot`.

A store may be a stranger's, so nothing in it is believed to have its type.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from actlas.jobs.formatting import printable
from actlas.store.ledger import lease, lease_holder
from actlas.store.objects.base import Objects

N_CHARACTERS = 200


class Snapshot:
    """The fields of a beat that are what they should be; the others count as not said."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        self._run = run
        self.written_unix_s = self.number("written_unix_s")
        self.n_rows = self.number("n_rows")
        self.stopping = self._run.get("stopping") is True

    def number(self, name: str) -> float:
        """Return a number that is finite and not below 0, else 0."""
        return _number(self._run.get(name))

    def text(self, name: str) -> str:
        """Return a short text, printable."""
        return _text(self._run.get(name))

    def counts(self, name: str) -> dict[str, int]:
        """Return named counts."""
        found = self._run.get(name)
        pairs = list(found.items())[:16] if isinstance(found, dict) else []
        return {_text(key): int(_number(n)) for key, n in pairs if _number(n)}

    def workers(self) -> list[dict[str, Any]]:
        """Return workers with what they are at and for how long; the longest at a shard first."""
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
        """Return it as plain values, every one of its type."""
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
"""A beat so young by its writer's clock needs no second look."""

STILL_S = 4 * lease.HEARTBEAT_S
"""A watched counter that stands still for so long, by our own clock, is perhaps a dead driver's."""

SECOND_LOOK_S = lease.HEARTBEAT_S + 2.0


class HolderState(NamedTuple):
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


def observe_holder(objects: Objects, before: HolderState | None = None) -> HolderState:
    """Look at who holds the lease.

    Clocks of other machines may be wrong, so an old beat proves nothing: then the counter is
    watched, for ``SECOND_LOOK_S``, or since the look ``before``.
    """
    now = _once(objects)
    if now.holder is None or lease_holder.is_local(now.holder):
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


def _once(objects: Objects) -> HolderState:
    holder = lease.holder(objects)
    beat = lease.last_heartbeat(objects) if holder is not None else None
    snapshot = Snapshot({} if beat is None else beat.run)
    count = 0 if beat is None else beat.n_beats
    return HolderState(holder, holder is not None, count, time.monotonic(), snapshot)
