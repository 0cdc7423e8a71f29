"""The executor on plain Ray Core: the driver owns the queue and every retry.

Two shards in flight per actor, of which one is computed and one written; results of a few hundred
bytes, no restarts by Ray. (Ray Data's
pools drop a failing row silently or retry it for ever; ``ray.util.ActorPool`` leaves units never
run.) An actor that errs in Ray's own sense is dropped and another started in its place.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actlas.jobs.executors import Done, Job, MakeWorker, Watch
from actlas.jobs.hand import Hand
from actlas.jobs.ledger import Fault, FaultKind, Ledger, fault_of
from actlas.jobs.ray_cluster import alive_nodes, connected, reservation, worker_options
from actlas.jobs.signals import Stop
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ActlasError, RunFaultError

WAIT_S = 0.5
IN_FLIGHT = 2
"""Shards of one worker at once: one is computed, one written."""
DEADLINE_MEDIANS = 10
STARTS: dict[FaultKind, int] = {"task": 3, "process": 6, "node": 20}
"""How often in a row workers may fail to start before the run is given up."""


class Ready(NamedTuple):
    """A worker has loaded its model."""

    node: str
    pid: int


class RayWorker:
    """What lives in an actor's process. Its constructor does nothing that could fail."""

    def prepare(
        self, make_worker: MakeWorker, store: str, run: RunOptions, name: str, shard: int
    ) -> Ready | Fault:
        """Open the store, load the model, and measure it on a shard."""
        import ray

        self._in_turn = threading.Lock()
        try:
            self._hand = Hand(make_worker(store, run), name, store)
        except Exception as error:  # noqa: BLE001 - the driver raises it, without Ray's traces
            return fault_of(error, None, name, store)
        self._hand.measure(shard)
        return Ready(ray.get_runtime_context().get_node_id(), os.getpid())

    def attempt(self, shard: int) -> Done | Fault:
        """Run one shard: compute it when it is its turn, and wait until it is written."""
        with self._in_turn:
            written = self._hand.begin(shard)
        return written.result()


@dataclass(slots=True)
class _Slot:
    """One place for a worker, who fills it now, and the shards that are with it, by dispatch."""

    name: str
    actor: Any
    ready: Ready | None = None
    shards: dict[int, float] = field(default_factory=dict)


class _Flight(NamedTuple):
    """A call under way: of an attempt at a shard, or of a worker's start."""

    slot: _Slot
    shard: int | None


def run_ray(job: Job, ledger: Ledger, watch: Watch, stop: Stop) -> None:
    """Run every shard on Ray actors."""
    watch.say("starting Ray" if job.run.address is None else f"joining Ray at {job.run.address}")
    with connected(job.run), stop:
        from ray.exceptions import RayError

        try:
            _Driver(job, ledger, watch, stop).run()
        except (RayError, ConnectionError) as error:
            raise RunFaultError(
                f"Ray itself failed: {_words('task', error)}. Its head may be lost. Nothing done "
                "is lost: when Ray is back, run the same command again."
            ) from error


class _Driver:
    def __init__(self, job: Job, ledger: Ledger, watch: Watch, stop: Stop) -> None:
        import ray

        self._ray = ray
        self._job, self._ledger, self._watch, self._stop = job, ledger, watch, stop
        self._options = reservation(job.run)
        self._run = worker_options(job.run)
        self._actor_class: Any = ray.remote(RayWorker)
        self._queue = deque(job.shards)
        self._alone: set[int] = set()
        self._names = deque(f"worker {i}" for i in range(job.run.workers))
        self._slots: list[_Slot] = []
        self._flying: dict[Any, _Flight] = {}
        self._seconds: list[float] = []
        self._failed_starts: Counter[FaultKind] = Counter()
        self._error: ActlasError | None = None

    def run(self) -> None:
        """Go on until nothing is in flight and nothing may be begun."""
        from ray.exceptions import RayError

        try:
            while self._n_busy() or self._may_begin():
                if self._may_begin():
                    self._staff()
                    self._dispatch()
                self._collect()
                self._enforce_deadline()
                self._watch.tick()
        finally:
            for slot in list(self._slots):
                with suppress(RayError):  # a Ray that failed has no workers left to end
                    self._drop(slot)
        if self._error is not None:
            raise self._error

    def _may_begin(self) -> bool:
        return bool(self._queue) and not self._stop.requested and self._error is None

    def _n_busy(self) -> int:
        return sum(len(slot.shards) for slot in self._slots)

    def _staff(self) -> None:
        """Start workers while there are places for them and more shards than workers."""
        while self._names and len(self._slots) < self._n_wanted():
            name = self._names.popleft()
            actor = self._actor_class.options(**self._options, max_concurrency=IN_FLIGHT).remote()
            slot, job = _Slot(name, actor), self._job
            reference = actor.prepare.remote(
                job.make_worker, job.store, self._run, name, job.shards[0]
            )
            self._slots.append(slot)
            self._flying[reference] = _Flight(slot, None)
            self._watch.state(name, "starting")

    def _n_wanted(self) -> int:
        return min(self._run.workers, len(self._queue) + self._n_busy())

    def _dispatch(self) -> None:
        """Give shards to those who have the fewest, none of them a second before all have one.

        A shard that failed before is alone with its worker: nobody else pays for its next fault.
        """
        for n in range(IN_FLIGHT):
            for slot in self._slots:
                if not self._queue:
                    return
                if slot.ready is None or len(slot.shards) != n:
                    continue
                if n and (self._queue[0] in self._alone or self._alone.intersection(slot.shards)):
                    continue
                shard = self._queue.popleft()
                slot.shards[shard] = time.monotonic()
                self._flying[slot.actor.attempt.remote(shard)] = _Flight(slot, shard)
                self._watch.state(slot.name, "busy", shard)

    def _collect(self) -> None:
        if not self._flying:
            return
        ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=WAIT_S)
        if ready:  # and whatever else is there by now
            ready, _ = self._ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
        for reference in ready:
            if reference in self._flying:  # not dropped with its worker meanwhile
                self._receive(reference, self._flying.pop(reference))

    def _receive(self, reference: Any, flight: _Flight) -> None:
        from ray.exceptions import RayError, RayTaskError

        try:
            answer: Ready | Done | Fault = self._ray.get(reference)
        except RayTaskError as error:
            self._lose(flight, "task", error)
        except RayError as error:
            self._lose(flight, self._kind_of(error, flight.slot), error)
        else:
            self._heed(flight, answer)

    def _heed(self, flight: _Flight, answer: Ready | Done | Fault) -> None:
        slot, shard = flight
        if isinstance(answer, Ready):
            slot.ready = answer
            self._failed_starts.clear()
        elif isinstance(answer, Fault):
            slot.shards.pop(shard, None) if shard is not None else None
            self._drop(slot)  # a process in which something went wrong is not trusted again
            if shard is None:
                self._failed_start(answer)
            else:
                self._blame(answer)
            return
        else:
            assert answer.shard == shard
            del slot.shards[shard]
            self._alone.discard(shard)
            self._seconds.append(answer.seconds)
            self._watch.done(answer)
        if not slot.shards:
            self._watch.state(slot.name, "idle")

    def _blame(self, fault: Fault) -> None:
        """Charge a shard, or end the run where no shard is to blame."""
        assert fault.shard is not None
        if fault.stops is not None:
            self._error = self._error or fault.stops
            return
        in_quarantine = self._ledger.charge(fault)
        self._watch.fault(fault, in_quarantine)
        if not in_quarantine:
            self._alone.add(fault.shard)
            self._queue.append(fault.shard)

    def _failed_start(self, fault: Fault) -> None:
        self._failed_starts[fault.kind] += 1
        self._watch.fault(fault, False)
        if fault.stops is not None:
            self._error = self._error or fault.stops
        elif self._failed_starts[fault.kind] >= STARTS[fault.kind]:
            self._error = self._error or ActlasError(
                f"workers failed to start {self._failed_starts[fault.kind]} times in a row, at "
                f"last with {fault.error}\n{fault.traceback}"
            )

    def _lose(self, flight: _Flight, kind: FaultKind, error: Exception) -> None:
        """Drop a worker that errs, and charge what it was at.

        Of two shards in a process that died either may have killed it. Both are charged, and from
        then on each is alone with its worker.
        """
        slot, shard = flight
        words = _words(kind, error)
        if shard is None:
            self._drop(slot)
            self._failed_start(Fault(None, kind, words, str(error), slot.name))
            return
        lost = [shard] if kind == "task" else list(slot.shards)
        for one in lost:
            slot.shards.pop(one, None)
        self._drop(slot)
        for one in lost:
            self._blame(Fault(one, kind, words, str(error), slot.name))

    def _kind_of(self, error: Exception, slot: _Slot) -> FaultKind:
        """Tell a process that died on a living machine from a machine that is lost.

        ``ActorUnavailableError`` is how the loss of a machine shows first.
        """
        from ray.exceptions import ActorUnavailableError

        if isinstance(error, ActorUnavailableError) or getattr(error, "preempted", False):
            return "node"
        alive = {node["NodeID"] for node in alive_nodes()}
        return "node" if slot.ready is not None and slot.ready.node not in alive else "process"

    def _enforce_deadline(self) -> None:
        median = statistics.median(self._seconds) if self._seconds else 0.0
        limit = max(self._run.deadline_floor_s, DEADLINE_MEDIANS * median)
        now = time.monotonic()
        for slot in list(self._slots):
            shard, since = next(iter(slot.shards.items()), (None, now))
            if now - since <= limit:
                continue
            late = TimeoutError(
                f"not done after {now - since:.0f} s; the limit is {limit:.0f} s, the "
                f"median so far {median:.1f} s (--deadline-floor-s)"
            )
            self._lose(_Flight(slot, shard), "task", late)

    def _drop(self, slot: _Slot) -> None:
        """End a worker. What it was at besides goes back to the queue, at nobody's charge."""
        self._ray.kill(slot.actor, no_restart=True)
        self._slots.remove(slot)
        self._flying = {
            ref: flight for ref, flight in self._flying.items() if flight.slot is not slot
        }
        self._queue.extendleft(slot.shards)
        self._names.append(slot.name)
        self._watch.state(slot.name, "gone")


def _words(kind: FaultKind, error: Exception) -> str:
    if kind == "process":
        return "its process died (killed, crashed, or out of memory)"
    if kind == "node":
        return "its machine was lost"
    first = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {first}"
