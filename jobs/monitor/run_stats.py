"""Statistics of a run in progress."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actlas.jobs.scheduler.faults import Fault
from actlas.jobs.scheduler.protocols import STAGES, Done

NOW_S = 30.0
"""Seconds of the window for current rates."""

STATES = ("busy", "idle", "starting", "waiting")
"""States of a worker: busy with a shard, idle, loading its model, waiting for a machine."""

N_WORKERS, N_QUARANTINED, N_CHARACTERS = 64, 16, 200
"""Limits of a heartbeat: workers, quarantined shards, and characters of an error."""


@dataclass(slots=True)
class WorkerState:
    """The state of a worker.

    Attributes
    ----------
    state : str
        One of ``STATES``.
    since : float
        Time of the last change, or of the start of its first shard.
    shards : list of int
        Its shards; the first is being computed.
    """

    state: str
    since: float
    shards: list[int] = field(default_factory=list)


class InFlight(NamedTuple):
    """A shard that a worker is computing, and for how long; its second shard is not counted."""

    shard: int
    worker: str
    seconds: float


@dataclass(slots=True)
class RunStats:
    """The statistics of a run, from the events of its executor.

    The driver's thread writes them; the threads of the display and of the lease read them.

    Attributes
    ----------
    n_rows : int
        Rows of the job in the whole store.
    n_rows_before : int
        Rows that were done when the run began.
    n_shards : int
        Shards that the run has to do.
    """

    n_rows: int
    n_rows_before: int
    n_shards: int
    rows: str = "rows"
    """Unit of the rows for the user: rows, documents, features, or units."""
    unit: str = "shard"
    """Noun for a unit of work: shard, block, or table."""
    clock: Callable[[], float] = time.monotonic
    started: float = 0.0
    n_rows_done: int = 0
    n_shards_done: int = 0
    n_bytes: int = 0
    n_nonfinite: int = 0
    n_tokens_fed: float = 0.0
    n_tokens_padded: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    makers: set[str] = field(default_factory=set)
    bare_tokens_per_s: dict[str, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    quarantined: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    """First line of the error of each quarantined shard."""
    notes: set[str] = field(default_factory=set)
    """What the user should know about how shards were computed."""
    workers: dict[str, WorkerState] = field(default_factory=dict)
    n_gone: int = 0
    stopping: bool = False
    """Whether the run ends after the shards in flight."""
    recent: deque[tuple[float, int, float]] = field(default_factory=deque)
    """Finished shards of the last ``NOW_S`` seconds: time, rows, and tokens fed to the model."""
    first_busy: float | None = None
    last_done: float | None = None

    def __post_init__(self) -> None:
        self.started = self.clock()

    def on_state(self, worker: str, state: str, shard: int | None) -> None:
        """Record a worker's state."""
        now = self.clock()
        if state == "busy" and self.first_busy is None:
            self.first_busy = now
        if state == "gone":
            self.n_gone += self.workers.pop(worker, None) is not None
            return
        at = self.workers.setdefault(worker, WorkerState(state, now))
        if state == "busy" and shard is not None:
            if not at.shards:
                at.since = now
            if shard not in at.shards:
                at.shards.append(shard)
        else:
            at.shards.clear()
            at.since = now
        at.state = state

    def on_done(self, done: Done) -> None:
        """Add a finished shard."""
        self.n_rows_done += done.n_rows
        self.n_shards_done += 1
        self.n_bytes += done.n_bytes
        self.n_nonfinite += done.n_nonfinite
        fed = done.run.get("n_tokens_fed", 0.0)
        self.n_tokens_fed += fed
        self.n_tokens_padded += fed / (1 - done.run.get("padding_share", 0.0))
        for stage in (*STAGES, "write_s"):
            self.stages[stage] += done.run.get(stage, 0.0)
        self.makers.add(done.worker)
        if done.note:
            self.notes.add(done.note)
        if done.bare_tokens_per_s is not None:
            self.bare_tokens_per_s[done.worker] = done.bare_tokens_per_s
        now = self.last_done = self.clock()
        self._take(done.worker, done.shard, now)
        self.recent.append((now, done.n_rows, fed))
        while self.recent and now - self.recent[0][0] > NOW_S:
            self.recent.popleft()

    def on_fault(self, fault: Fault, quarantined: bool) -> None:
        """Count a failed attempt."""
        self.faults[fault.kind] += 1
        if quarantined and fault.shard is not None:
            self.quarantined.append(fault.shard)
            self.errors[fault.shard] = (fault.error.splitlines() or [fault.kind])[0][:N_CHARACTERS]
        if fault.shard is not None:
            self._take(fault.worker, fault.shard, self.clock())

    def _take(self, worker: str, shard: int, now: float) -> None:
        """Remove a shard from a worker; the clock of its next shard starts now."""
        at = self.workers.get(worker)
        if at is None or shard not in at.shards:
            return
        if at.shards[0] == shard:
            at.since = now
        at.shards.remove(shard)
        if not at.shards:
            at.state = "idle"

    def n_in(self) -> dict[str, int]:
        """Return the number of workers in each state that occurs."""
        found = Counter(at.state for at in list(self.workers.values()))
        return {state: found[state] for state in STATES if found[state]}

    def in_flight(self) -> list[InFlight]:
        """Return the shards that are being computed, the longest-running first."""
        now = self.clock()
        at_work = [
            InFlight(shards[0], name, now - at.since)
            for name, at in list(self.workers.items())
            if (shards := list(at.shards))
        ]
        return sorted(at_work, key=lambda flight: -flight.seconds)

    def n_in_flight(self) -> int:
        """Return the number of shards assigned to workers, including second ones."""
        return sum(len(at.shards) for at in list(self.workers.values()))

    def seconds(self) -> float:
        """Return the seconds since the first shard began."""
        since = self.started if self.first_busy is None else self.first_busy
        return max(1e-9, self.clock() - since)

    def seconds_made(self) -> float:
        """Return the seconds from the start of the first shard to the last finished one."""
        if self.last_done is None or self.first_busy is None:
            return self.seconds()
        return max(1e-9, self.last_done - self.first_busy)

    def mean_rate(self) -> float:
        """Return the mean rows per second over :meth:`seconds_made`."""
        return self.n_rows_done / self.seconds_made() if self.n_rows_done else 0.0

    def share_of_bare(self) -> float | None:
        """Return the run's token rate divided by the rate of its workers' bare forward passes.

        The run's rate is over :meth:`seconds_made`, so that waiting and writing count. None if any
        worker that made rows was not measured.
        """
        bare = sum(self.bare_tokens_per_s.values())
        if not bare or self.makers - set(self.bare_tokens_per_s):
            return None
        return self.n_tokens_fed / self.seconds_made() / bare

    def rate_now(self) -> float:
        """Return the rows per second of the last ``NOW_S`` seconds."""
        return self._recently(lambda rows, _: rows)

    def tokens_now(self) -> float:
        """Return the tokens fed to models per second in the last ``NOW_S`` seconds."""
        return self._recently(lambda _, tokens: tokens)

    def mean_tokens(self) -> float:
        """Return the mean tokens fed to models per second over :meth:`seconds_made`."""
        return self.n_tokens_fed / self.seconds_made() if self.n_rows_done else 0.0

    def _recently(self, what: Callable[[int, float], float]) -> float:
        window = min(NOW_S, self.seconds())
        since = self.clock() - window
        return sum(what(rows, fed) for t, rows, fed in list(self.recent) if t >= since) / window

    def share(self) -> float:
        """Return the share of the job's rows that are done."""
        return (self.n_rows_before + self.n_rows_done) / self.n_rows

    def seconds_left(self) -> float | None:
        """Return the estimated seconds to completion; None before the first shard is done."""
        rate = self.mean_rate()
        left = self.n_rows - self.n_rows_before - self.n_rows_done
        return left / rate if rate > 0 else None

    def snapshot(self) -> dict[str, Any]:
        """Return the statistics as plain values of bounded size, for a heartbeat of the lease.

        At most ``N_WORKERS`` workers are listed: busy workers first, and the longest in their state
        first.
        """
        now, wall = self.clock(), time.time()
        listed = sorted(
            self.workers.copy().items(), key=lambda item: (item[1].state != "busy", item[1].since)
        )
        last = self.quarantined[-N_QUARANTINED:]
        return {
            "written_unix_s": round(wall, 3),
            "seconds": round(self.seconds(), 3),
            "of": self.rows,
            "n_rows": self.n_rows,
            "n_rows_done": self.n_rows_before + self.n_rows_done,
            "n_shards_done": self.n_shards_done,
            "n_shards": self.n_shards,
            "rows_per_s_now": round(self.rate_now(), 3),
            "rows_per_s": round(self.mean_rate(), 3),
            "tokens_per_s_now": round(self.tokens_now(), 3),
            "tokens_per_s": round(self.mean_tokens(), 3),
            "seconds_left": self.seconds_left(),
            "stopping": self.stopping,
            "n_workers": len(self.workers),
            "n_workers_gone": self.n_gone,
            "states": self.n_in(),
            "n_in_flight": self.n_in_flight(),
            "workers": [
                {
                    "worker": name[:N_CHARACTERS],
                    "state": at.state,
                    "seconds": round(now - at.since, 3),
                    "shards": list(at.shards)[:8],
                }
                for name, at in listed[:N_WORKERS]
            ],
            "faults": dict(self.faults),
            "n_quarantined": len(self.quarantined),
            "quarantine": [{"shard": n, "error": self.errors.get(n, "")} for n in last],
        }
