"""The driver: who gets which shard, what a fault costs, and when it is too late.

Pure: workers are somewhere behind a :class:`~actlas.jobs.scheduler.protocols.Cluster`, and time is
whatever the given clock says. So the same code runs on Ray and on a simulated cluster in simulated
time. Every event costs the same however many workers and shards there are.

Two shards are in flight per worker, of which one is computed and one written. A worker that errs is
dropped and another started in its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from actlas.jobs.formatting import counted, ranges
from actlas.jobs.redaction import redacted
from actlas.jobs.scheduler.deadlines import Clocks, Limit
from actlas.jobs.scheduler.faults import Fault, FaultKind, Ledger
from actlas.jobs.scheduler.protocols import (
    Answer,
    Cluster,
    Done,
    Event,
    Job,
    Lost,
    Observer,
    Placed,
    Ready,
)
from actlas.jobs.scheduler.queue import ShardQueue
from actlas.jobs.scheduler.start_backoff import StartBackoff
from actlas.jobs.scheduler.stop import Stop
from actlas.store.errors import ActlasError

SOON_S, WAIT_S = 0.01, 0.5
"""How long to wait for events, at least and at most."""

ROOM_S = 2.0
"""How often a cluster is asked how many workers it has room for."""

PATIENCE_S = 30.0
"""How long no worker may have a place before that is said."""

IN_FLIGHT = 2
"""Shards of one worker at once: one is computed, one written."""


@dataclass(slots=True)
class _Worker:
    """A worker and the shards that are with it, in the order in which it got them."""

    name: str
    state: Literal["waiting", "starting", "ready"] = "waiting"
    shards: list[int] = field(default_factory=list)


class Driver:
    """Brings every shard of a job to a receipt or to quarantine, on a cluster.

    Parameters
    ----------
    job : Job
    ledger : Ledger
        Charged for each fault.
    observer : Observer
        Told of everything.
    stop : Stop
        Asked before anything is begun.
    cluster : Cluster
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        observer: Observer,
        stop: Stop,
        cluster: Cluster,
        clock: Callable[[], float],
    ) -> None:
        self._job, self._ledger, self._observer, self._stop = job, ledger, observer, stop
        self._cluster, self._clock = cluster, clock
        self._pending = ShardQueue(job.shards, job.follows)
        self._retries: deque[int] = deque()
        self._alone: set[int] = set()
        """Shards that failed before: nobody else pays for their next fault."""
        self._workers: dict[int, _Worker] = {}
        self._waiting: dict[int, None] = {}
        self._open: tuple[dict[int, None], ...] = tuple({} for _ in range(IN_FLIGHT))
        """Workers that may be given a shard, by how many they have."""
        self._n_workers = self._most = 0
        self._names: deque[str] = deque()
        self._n_flying = 0
        self._loading, self._working = Clocks(), Clocks()
        self._limit = Limit(job.run.deadline_floor_s)
        self._room, self._asked, self._placed = 1, float("-inf"), clock()
        self._said_waiting = False
        self._starts = StartBackoff(observer.log)
        self._error: ActlasError | None = None

    def run(self) -> None:
        """Go on until nothing is in flight and nothing may be begun.

        Raises
        ------
        ActlasError
            What stopped the run where no shard is to blame.
        """
        try:
            while self._n_flying or self._may_begin():
                if self._may_begin():
                    self._staff()
                    self._dispatch()
                self._say_that_all_wait()
                for event in self._cluster.wait(self._timeout()):
                    if event.worker in self._workers:  # not dropped meanwhile
                        self._handle(event)
                self._enforce_deadlines()
                self._observer.tick()
        finally:
            for number in list(self._workers):
                self._drop(number)
        if self._error is not None:
            raise self._error

    def _may_begin(self) -> bool:
        return bool(self._n_pending()) and not self._stop.requested and self._error is None

    def _n_pending(self) -> int:
        return len(self._pending) + len(self._retries)

    def _timeout(self) -> float:
        """Return how long to wait for events: no longer than to the next deadline or start."""
        now = self._clock()
        next_late = self._working.left(self._limit.value(), now)
        return max(SOON_S, min(WAIT_S, next_late, self._starts.left(now)))

    # Workers

    def _staff(self) -> None:
        """Start workers while there are places and work for them; take back those that wait."""
        places, useful = self._n_places(), self._n_pending() + self._n_flying
        while len(self._workers) < min(places - self._n_held(), useful):
            self._n_workers += 1
            number = self._n_workers - 1
            name = self._names.popleft() if self._names else f"worker {len(self._workers)}"
            self._workers[number] = _Worker(name)
            self._most = max(self._most, len(self._workers))
            self._waiting[number] = None
            self._observer.state(name, "waiting")
            self._cluster.start(number, name)
        while len(self._workers) > min(places, useful) and self._waiting:
            self._drop(next(reversed(self._waiting)))

    def _n_places(self) -> int:
        """Return how many workers there may be: as many as asked for, or as there is room for.

        With ``auto`` one is wanted where there is no room at all: waiting, it asks for a machine.
        """
        asked = self._job.run.workers
        if isinstance(asked, int):
            return asked
        now = self._clock()
        if now - self._asked >= ROOM_S:
            self._room, self._asked = self._cluster.room(), now
        return max(1, self._room)

    def _n_held(self) -> int:
        """Return how many workers are not started yet, for others failed to, while some work."""
        some = len(self._workers) > len(self._waiting)
        return self._starts.n_held(self._clock()) if some else 0

    def _say_that_all_wait(self) -> None:
        now = self._clock()
        if len(self._waiting) < len(self._workers):
            self._placed, self._said_waiting = now, False
        elif not self._said_waiting and now - self._placed > PATIENCE_S:
            self._said_waiting = True
            self._observer.log(
                f"no worker has found a place for {PATIENCE_S:.0f} s: no machine has room for "
                "what --cpus-per-worker and --gpus-per-worker ask for. Waiting for one that has "
                "(Ctrl-C stops)"
            )

    def _drop(self, number: int) -> None:
        """End a worker. What it was at besides goes back to the queue, at nobody's charge."""
        self._cluster.kill(number)
        worker = self._workers.pop(number)
        self._waiting.pop(number, None)
        self._close(number, worker)
        self._loading.stop(number)
        self._working.stop(number)
        self._n_flying -= len(worker.shards)
        self._pending.leave(number)
        self._pending.give_back(worker.shards)
        self._names.append(worker.name)
        self._observer.state(worker.name, "gone")

    # Shards

    def _dispatch(self) -> None:
        """Give shards to those who have the fewest, none of them a second before all have one.

        A shard that failed before is alone with its worker, and the next who has none gets it.
        """
        for n, willing in enumerate(self._open):
            while willing and (self._pending or (self._retries and not n)):
                number = next(iter(willing))
                worker = self._workers[number]
                self._close(number, worker)
                if self._retries and not n:
                    shard = self._retries.popleft()
                else:
                    shard = self._pending.take(number)
                worker.shards.append(shard)
                self._n_flying += 1
                self._reopen(number, worker)
                if not n:
                    self._working.start(number, self._clock())
                self._observer.state(worker.name, "busy", shard)
                self._cluster.send(number, shard)

    def _close(self, number: int, worker: _Worker) -> None:
        if len(worker.shards) < IN_FLIGHT:
            self._open[len(worker.shards)].pop(number, None)

    def _reopen(self, number: int, worker: _Worker) -> None:
        """Let a worker be given shards, as many as it may have."""
        n = len(worker.shards)
        if n < IN_FLIGHT and not (n and worker.shards[0] in self._alone):
            self._open[n][number] = None

    # Events

    def _handle(self, event: Event) -> None:
        number, worker = event.worker, self._workers[event.worker]
        match event:
            case Placed():
                if worker.state == "waiting":
                    del self._waiting[number]
                    worker.state = "starting"
                    self._loading.start(number, self._clock())
                    self._observer.state(worker.name, "starting")
            case Ready():
                self._waiting.pop(number, None)
                self._loading.stop(number)
                worker.state = "ready"
                self._starts.ready()
                self._reopen(number, worker)
                self._observer.state(worker.name, "idle")
            case Answer(outcome=Done() as done):
                self._finish(number, worker, done)
            case Answer(outcome=Fault() as fault):
                # A process in which something went wrong is not trusted again.
                self._give_up(number, fault, () if fault.shard is None else (fault.shard,))
            case Lost(kind=kind, error=error, traceback=traceback, shard=shard):
                self._lose(number, kind, error, traceback, shard)

    def _finish(self, number: int, worker: _Worker, done: Done) -> None:
        assert done.shard in worker.shards, f"{worker.name} was not given shard {done.shard}"
        self._close(number, worker)
        worker.shards.remove(done.shard)
        self._n_flying -= 1
        self._alone.discard(done.shard)
        self._limit.add(done.seconds)
        self._reopen(number, worker)
        self._working.stop(number)
        if worker.shards:  # it was behind the other: its own clock begins now
            self._working.start(number, self._clock())
        self._observer.done(done)
        if not worker.shards:
            self._observer.state(worker.name, "idle")

    def _lose(
        self, number: int, kind: FaultKind, error: str, traceback: str, shard: int | None = None
    ) -> None:
        """Drop a worker that is lost, and charge what it was at.

        Of two shards in a process that died either may have killed it. Both are charged, and from
        then on each is alone with its worker.
        """
        worker = self._workers[number]
        lost = tuple(worker.shards) if shard is None else (shard,)
        fault = Fault(None, kind, redacted(error), redacted(traceback), worker.name)
        self._give_up(number, fault, lost)

    def _give_up(self, number: int, fault: Fault, shards: tuple[int, ...]) -> None:
        """Drop a worker and charge these of its shards; the start, where it had none."""
        started = self._workers[number].state == "ready"
        self._take_away(number, shards)
        for shard in shards:
            self._blame(fault._replace(shard=shard))
        if not started:
            self._failed_start(fault)

    def _take_away(self, number: int, shards: tuple[int, ...]) -> None:
        """Drop a worker, and keep these of its shards out of the queue."""
        worker = self._workers[number]
        self._close(number, worker)
        for shard in shards:
            worker.shards.remove(shard)
        self._n_flying -= len(shards)
        self._drop(number)

    def _blame(self, fault: Fault) -> None:
        """Charge a shard, or end the run where no shard is to blame."""
        assert fault.shard is not None
        if fault.stops is not None:
            self._error = self._error or fault.stops
            return
        in_quarantine = self._ledger.charge(fault)
        if in_quarantine:
            self._alone.discard(fault.shard)
        else:
            self._alone.add(fault.shard)
            self._retries.append(fault.shard)
        self._observer.fault(fault, in_quarantine)

    def _failed_start(self, fault: Fault) -> None:
        self._observer.fault(fault, False)
        loading = len(self._loading), self._loading.since()
        n_ready = len(self._workers) - len(self._waiting) - len(self._loading)
        error = fault.stops or self._starts.failed(
            fault, self._clock(), n_ready, loading, self._most
        )
        self._error = self._error or error

    # Deadlines

    def _enforce_deadlines(self) -> None:
        """Give up workers that have been at their first shard, or at loading, for too long.

        What lies behind the first is not on the clock: only when that is answered does its own
        begin. So every shard's clock runs at some time, and no neighbour's work is on it.
        """
        now, limit = self._clock(), self._limit.value()
        forgiven: list[int] = []
        while late := self._working.over(limit, now):
            number, ran = late
            shard = self._workers[number].shards[0]
            if self._limit.forgives():
                self._forgive(number, shard)
                forgiven.append(shard)
            else:
                words = f"TimeoutError: not done after {ran:.0f} s; {self._limit.words()}"
                self._lose(number, "task", words, words, shard)
        if forgiven:
            self._limit.reached()
            self._observer.log(
                f"not done after {limit:.0f} s: {counted(len(forgiven), 'shard')} "
                f"({ranges(sorted(forgiven))}), tried again later, at nobody's charge. From now on "
                f"{self._limit.words()}"
            )
        limit = max(self._job.run.start_limit_s, self._job.run.deadline_floor_s)
        while late := self._loading.over(limit, now):
            number, ran = late
            words = f"TimeoutError: the model was not loaded after {ran:.0f} s (--start-limit-s)"
            self._lose(number, "task", words, words)

    def _forgive(self, number: int, shard: int) -> None:
        """Drop a worker whose shard takes long, and have the others done before that."""
        self._take_away(number, (shard,))
        if shard in self._alone:
            self._retries.append(shard)
        else:
            self._pending.put_last(shard)
