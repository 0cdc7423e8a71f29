"""The driver: assigns shards to workers, charges faults to shards, and enforces deadlines.

The driver is pure: workers live behind a :class:`~actlas.jobs.scheduler.protocols.Cluster`, and
time is the given clock's. The same code therefore runs on Ray and on a simulated cluster in
simulated time. The cost of an event does not depend on the number of workers or shards.

Each worker has two shards in flight: one is computed while the other is written. A worker with a
fault is dropped, and another is started in its place.

An answer may be lost: a connection that breaks while its peer has nothing to send is not noticed,
and the answer that was on its way is gone. A worker whose answer is due is therefore pinged, which
finds the broken connection, or brings the answer again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from actlas.jobs.formatting import counted, ranges
from actlas.jobs.redaction import redacted
from actlas.jobs.scheduler.deadlines import Clocks, Limit, Silence
from actlas.jobs.scheduler.faults import Fault, FaultBudget
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
from actlas.jobs.scheduler.roster import IN_FLIGHT, Member, Roster
from actlas.jobs.scheduler.start_backoff import Patience, StartBackoff
from actlas.jobs.scheduler.stop import Stop
from actlas.store.errors import ActlasError

SOON_S, WAIT_S = 0.01, 0.5
"""Shortest and longest wait for events, in seconds."""

ROOM_S = 2.0
"""Seconds between two questions to the cluster how many workers it has room for."""


class Driver:
    """Brings every shard of a job to a receipt or to quarantine, on a cluster.

    Parameters
    ----------
    job : Job
        The job.
    budget : FaultBudget
        Counts the faults of each shard.
    observer : Observer
        Receives every event.
    stop : Stop
        Tells whether the user wants the run to stop; read before anything is begun.
    cluster : Cluster
        Runs the workers.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        budget: FaultBudget,
        observer: Observer,
        stop: Stop,
        cluster: Cluster,
        clock: Callable[[], float],
    ) -> None:
        self._job, self._budget, self._observer, self._stop = job, budget, observer, stop
        self._cluster, self._clock = cluster, clock
        self._queue = ShardQueue(job.shards, job.follows)
        self._retries: deque[int] = deque()
        self._alone: set[int] = set()
        """Shards that failed before; each runs alone, so that no other shard pays for its fault."""
        self._workers = Roster()
        self._n_in_flight = 0
        self._loading, self._working, self._silence = Clocks(), Clocks(), Silence()
        self._limit = Limit(job.run.deadline_floor_s)
        self._room, self._room_asked = 1, float("-inf")
        self._patience = Patience(observer.log, clock())
        self._backoff = StartBackoff(observer.log)
        self._error: ActlasError | None = None

    def run(self) -> None:
        """Run until nothing is in flight and nothing more may be begun.

        Raises
        ------
        ActlasError
            An error that no shard caused and that ends the run.
        """
        try:
            while self._n_in_flight or self._may_begin():
                if self._may_begin():
                    self._start_workers()
                    self._send_shards()
                self._patience.look(len(self._workers), len(self._workers.waiting), self._clock())
                for event in self._cluster.wait(self._timeout()):
                    if event.worker in self._workers:  # not stopped meanwhile
                        self._handle(event)
                        self._listen(event.worker)
                for number in self._silence.over(self._clock()):
                    self._cluster.ping(number)
                self._enforce_deadlines()
                self._observer.tick()
        finally:
            for number in self._workers:
                self._stop_worker(number)
        if self._error is not None:
            raise self._error

    def _may_begin(self) -> bool:
        return bool(self._n_queued()) and not self._stop.requested and self._error is None

    def _n_queued(self) -> int:
        return len(self._queue) + len(self._retries)

    def _timeout(self) -> float:
        """Return the longest wait for events: until the next deadline or start."""
        now = self._clock()
        next_late = self._working.left(self._limit.value(), now)
        return max(SOON_S, min(WAIT_S, next_late, self._backoff.left(now)))

    # Workers

    def _start_workers(self) -> None:
        """Start workers while there is room and work for them; stop waiting ones that are not."""
        room, useful = self._n_wanted(), self._n_queued() + self._n_in_flight
        while len(self._workers) < min(room - self._n_held_back(), useful):
            number = self._workers.add()
            name = self._workers[number].name
            self._observer.state(name, "waiting")
            self._cluster.start(number, name)
            self._listen(number)
        while len(self._workers) > min(room, useful) and self._workers.waiting:
            self._stop_worker(next(reversed(self._workers.waiting)))

    def _n_wanted(self) -> int:
        """Return the number of workers to have: the given number, or the cluster's room.

        With ``auto`` it is at least 1: a waiting worker asks an autoscaler for a machine.
        """
        workers = self._job.run.workers
        if isinstance(workers, int):
            return workers
        now = self._clock()
        if now - self._room_asked >= ROOM_S:
            self._room, self._room_asked = self._cluster.room(), now
        return max(1, self._room)

    def _n_held_back(self) -> int:
        """Return the number of workers whose start is delayed after failures, while others work."""
        some_placed = len(self._workers) > len(self._workers.waiting)
        return self._backoff.n_held_back(self._clock()) if some_placed else 0

    def _stop_worker(self, number: int, withheld: Sequence[int] = ()) -> None:
        """End a worker. Its shards return to the queue without a charge, except the withheld."""
        self._cluster.kill(number)
        worker = self._workers.remove(number)
        assert set(withheld) <= set(worker.shards), f"{worker.name} has {worker.shards}"
        for clocks in (self._loading, self._working, self._silence):
            clocks.stop(number)
        self._n_in_flight -= len(worker.shards)
        self._queue.leave(number)
        self._queue.give_back([shard for shard in worker.shards if shard not in withheld])
        self._observer.state(worker.name, "gone")

    def _listen(self, number: int) -> None:
        """Measure from now on how long a worker is silent, if an answer of it is due."""
        if number in self._workers:
            self._silence.listen(number, self._workers[number].due, self._clock())

    # Shards

    def _send_shards(self) -> None:
        """Send shards to the workers with the fewest; none gets a second before all have one.

        A shard that failed before runs alone, on the next worker without a shard.
        """
        for n in range(IN_FLIGHT):
            while self._queue or (self._retries and not n):
                number = self._workers.able(n)
                if number is None:
                    break
                self._send(number, self._retries.popleft() if self._retries and not n else None)

    def _send(self, number: int, shard: int | None) -> None:
        """Send a shard to a worker; None for the queue's next one."""
        worker = self._workers[number]
        self._workers.close(number)
        if shard is None:
            shard = self._queue.take(number)
        worker.shards.append(shard)
        self._n_in_flight += 1
        self._reopen(number)
        if len(worker.shards) == 1:
            self._working.start(number, self._clock())
        self._observer.state(worker.name, "busy", shard)
        self._cluster.send(number, shard)
        self._listen(number)

    def _reopen(self, number: int) -> None:
        shards = self._workers[number].shards
        self._workers.reopen(number, alone=bool(shards) and shards[0] in self._alone)

    # Events

    def _handle(self, event: Event) -> None:
        number, worker = event.worker, self._workers[event.worker]
        match event:
            case Placed():
                if worker.state == "waiting":
                    del self._workers.waiting[number]
                    worker.state = "starting"
                    self._loading.start(number, self._clock())
                    self._observer.state(worker.name, "starting")
            case Ready():
                self._workers.waiting.pop(number, None)
                self._loading.stop(number)
                worker.state = "ready"
                self._backoff.ready()
                self._reopen(number)
                self._observer.state(worker.name, "idle")
            case Answer(outcome=Done() as done):
                self._finish(number, worker, done)
            case Answer(outcome=Fault() as fault):
                # A process with a fault is not trusted again.
                self._fail(number, fault, charged=[] if fault.shard is None else [fault.shard])
            case Lost(kind=kind, error=error, traceback=traceback, shard=shard):
                # Of two shards in a process that died, either may be the cause: both are charged,
                # and each runs alone from then on.
                fault = Fault(None, kind, redacted(error), redacted(traceback), worker.name)
                self._fail(number, fault, charged=worker.shards if shard is None else [shard])

    def _finish(self, number: int, worker: Member, done: Done) -> None:
        assert done.shard in worker.shards, f"{worker.name} was not given shard {done.shard}"
        self._workers.close(number)
        worker.shards.remove(done.shard)
        self._n_in_flight -= 1
        self._alone.discard(done.shard)
        self._limit.add(done.seconds)
        self._reopen(number)
        self._working.stop(number)
        if worker.shards:  # the second shard's clock starts when the first is done
            self._working.start(number, self._clock())
        self._observer.done(done)
        if not worker.shards:
            self._observer.state(worker.name, "idle")

    # Faults

    def _fail(self, number: int, fault: Fault, *, charged: Sequence[int]) -> None:
        """Stop a worker after a fault, and charge some of its shards.

        If the worker never became ready, the fault counts as a failed start.

        Parameters
        ----------
        number : int
            Number of the worker.
        fault : Fault
            The fault.
        charged : sequence of int
            Those of the worker's shards that are charged. The others return to the queue.
        """
        shards = tuple(charged)
        was_ready = self._workers[number].state == "ready"
        self._stop_worker(number, withheld=shards)
        for shard in shards:
            self._charge(shard, fault)
        if not was_ready:
            self._start_failed(fault)

    def _charge(self, shard: int, fault: Fault) -> None:
        """Charge a shard for a fault, or end the run if no shard caused the fault."""
        if fault.stops is not None:
            self._error = self._error or fault.stops
            return
        charged = fault._replace(shard=shard)
        in_quarantine = self._budget.charge(charged)
        if in_quarantine:
            self._alone.discard(shard)
        else:
            self._alone.add(shard)
            self._retries.append(shard)
        self._observer.fault(charged, in_quarantine)

    def _start_failed(self, fault: Fault) -> None:
        """Count a failed start, and end the run if there were too many."""
        self._observer.fault(fault, False)
        loading = len(self._loading), self._loading.since()
        n_ready = len(self._workers) - len(self._workers.waiting) - len(self._loading)
        error = fault.stops or self._backoff.failed(
            fault, self._clock(), n_ready, loading, self._workers.n_most
        )
        self._error = self._error or error

    # Deadlines

    def _enforce_deadlines(self) -> None:
        """Stop the workers that exceed the time for their first shard, or for loading the model.

        The clock of a worker's second shard starts when the first is done. So the time of each
        shard is measured, without that of the shard before it.
        """
        now, limit = self._clock(), self._limit.value()
        forgiven: list[int] = []
        while late := self._working.over(limit, now):
            number, seconds = late
            shard = self._workers[number].shards[0]
            if self._limit.forgives():
                self._retry_later(number, shard)
                forgiven.append(shard)
            else:
                error = f"TimeoutError: not done after {seconds:.0f} s; {self._limit.words()}"
                self._fail(number, self._timed_out(number, error), charged=[shard])
        if forgiven:
            self._limit.reached()
            self._observer.log(
                f"not done after {limit:.0f} s: {counted(len(forgiven), 'shard')} "
                f"({ranges(sorted(forgiven))}); they are retried later, without a charge. From now "
                f"on {self._limit.words()}"
            )
        limit = max(self._job.run.start_limit_s, self._job.run.deadline_floor_s)
        while late := self._loading.over(limit, now):
            number, seconds = late
            error = f"TimeoutError: model not loaded after {seconds:.0f} s (--start-limit-s)"
            worker = self._workers[number]
            self._fail(number, self._timed_out(number, error), charged=worker.shards)

    def _timed_out(self, number: int, error: str) -> Fault:
        return Fault(None, "task", error, error, self._workers[number].name)

    def _retry_later(self, number: int, shard: int) -> None:
        """Stop a worker whose shard takes long; the shard is retried after the others."""
        self._stop_worker(number, withheld=[shard])
        if shard in self._alone:
            self._retries.append(shard)
        else:
            self._queue.put_last(shard)
