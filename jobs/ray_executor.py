"""The executor on plain Ray Core: the driver owns the queue and every retry.

One shard in flight per actor, results of a few hundred bytes, no restarts by Ray. (Ray Data's
pools drop a failing row silently or retry it for ever; ``ray.util.ActorPool`` leaves units never
run.) An actor that errs in Ray's own sense is dropped and another started in its place.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from actlas.jobs.executors import Done, Hand, Job, MakeWorker, Watch
from actlas.jobs.ledger import Fault, FaultKind, Ledger, fault_of
from actlas.jobs.ray_cluster import alive_nodes, connected, reservation, worker_options
from actlas.jobs.signals import Stop
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ActlasError, RunFaultError

WAIT_S = 0.5
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
        self, make_worker: MakeWorker, store: str, run: RunOptions, name: str
    ) -> Ready | Fault:
        """Open the store and load the model."""
        import ray

        try:
            self._hand = Hand(make_worker(store, run), name, store)
        except Exception as error:  # noqa: BLE001 - the driver raises it, without Ray's traces
            return fault_of(error, None, name, store)
        return Ready(ray.get_runtime_context().get_node_id(), os.getpid())

    def attempt(self, shard: int) -> Done | Fault:
        """Run one shard."""
        return self._hand.attempt(shard)


@dataclass(slots=True)
class _Slot:
    """One place for a worker, and who fills it now."""

    name: str
    actor: Any
    since: float
    shard: int | None = None
    ready: Ready | None = None


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
        self._names = deque(f"worker {i}" for i in range(job.run.workers))
        self._idle: list[_Slot] = []
        self._flying: dict[Any, _Slot] = {}
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
            for slot in [*self._idle, *self._flying.values()]:
                with suppress(RayError):  # a Ray that failed has no workers left to end
                    self._drop(slot)
        if self._error is not None:
            raise self._error

    def _may_begin(self) -> bool:
        return bool(self._queue) and not self._stop.requested and self._error is None

    def _n_busy(self) -> int:
        return sum(slot.shard is not None for slot in self._flying.values())

    def _staff(self) -> None:
        """Start workers while there are places for them and more shards than workers."""
        while self._names and len(self._idle) + len(self._flying) < self._n_wanted():
            name = self._names.popleft()
            actor = self._actor_class.options(**self._options).remote()
            slot = _Slot(name, actor, time.monotonic())
            job = self._job
            reference = actor.prepare.remote(job.make_worker, job.store, self._run, name)
            self._flying[reference] = slot
            self._watch.state(name, "starting")

    def _n_wanted(self) -> int:
        return min(self._run.workers, len(self._queue) + self._n_busy())

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            slot = self._idle.pop()
            slot.shard, slot.since = self._queue.popleft(), time.monotonic()
            self._flying[slot.actor.attempt.remote(slot.shard)] = slot
            self._watch.state(slot.name, "busy", slot.shard)

    def _collect(self) -> None:
        if not self._flying:
            return
        ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=WAIT_S)
        if ready:  # and whatever else is there by now
            ready, _ = self._ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
        for reference in ready:
            self._receive(reference, self._flying.pop(reference))

    def _receive(self, reference: Any, slot: _Slot) -> None:
        from ray.exceptions import RayError, RayTaskError

        try:
            answer: Ready | Done | Fault = self._ray.get(reference)
        except RayTaskError as error:
            self._lose(slot, "task", error)
        except RayError as error:
            self._lose(slot, self._kind_of(error, slot), error)
        else:
            self._heed(slot, answer)

    def _heed(self, slot: _Slot, answer: Ready | Done | Fault) -> None:
        shard, slot.shard = slot.shard, None
        if isinstance(answer, Fault):
            if answer.shard is None:
                self._drop(slot)
                self._failed_start(answer)
                return
            self._blame(answer)
            self._drop(slot)  # a process in which something went wrong is not trusted again
            return
        elif isinstance(answer, Done):
            assert answer.shard == shard
            self._seconds.append(answer.seconds)
            self._watch.done(answer)
        else:
            slot.ready = answer
            self._failed_starts.clear()
        self._idle.append(slot)
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

    def _lose(self, slot: _Slot, kind: FaultKind, error: Exception) -> None:
        """Drop a worker that errs, and charge what it was at."""
        self._drop(slot)
        fault = Fault(slot.shard, kind, _words(kind, error), str(error), slot.name)
        if slot.shard is None:
            self._failed_start(fault)
        else:
            self._blame(fault)

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
        for reference, slot in list(self._flying.items()):
            if slot.shard is None or now - slot.since <= limit:
                continue
            del self._flying[reference]
            self._lose(
                slot,
                "task",
                TimeoutError(
                    f"not done after {now - slot.since:.0f} s; the limit is {limit:.0f} s, the "
                    f"median so far {median:.1f} s (--deadline-floor-s)"
                ),
            )

    def _drop(self, slot: _Slot) -> None:
        self._ray.kill(slot.actor, no_restart=True)
        self._names.append(slot.name)
        self._watch.state(slot.name, "gone")


def _words(kind: FaultKind, error: Exception) -> str:
    if kind == "process":
        return "its process died (killed, crashed, or out of memory)"
    if kind == "node":
        return "its machine was lost"
    first = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {first}"
