"""The executor on plain Ray Core: the driver owns the queue and every retry.

Actors that Ray never restarts; results of a few hundred bytes, heard of by callbacks. (Ray Data's
pools drop a failing row silently or retry it for ever; ``ray.util.ActorPool`` leaves units never
run.) An actor that errs in Ray's own sense is dropped, whatever the error.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from actlas.jobs.executors.ray_faults import first_line, loss
from actlas.jobs.logs import LOGGER
from actlas.jobs.monitor.prometheus import Metered
from actlas.jobs.ray.cluster import (
    alive_nodes,
    connected,
    hopes_for_gpus,
    reservation,
    room,
    worker_options,
)
from actlas.jobs.scheduler.driver import Driver
from actlas.jobs.scheduler.faults import Fault, Ledger, fault_of
from actlas.jobs.scheduler.protocols import (
    Answer,
    Done,
    Event,
    Job,
    MakeWorker,
    Observer,
    Placed,
    Ready,
)
from actlas.jobs.scheduler.roster import IN_FLIGHT
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.scheduler.worker_loop import WorkerLoop, write_slots
from actlas.pipeline.options import RunOptions
from actlas.store.errors import RunFaultError

LOOK_S = 2.0
"""How often it is looked for GPUs, where there were none so far."""


class Loaded(NamedTuple):
    """What a worker says when its model is loaded."""

    pid: int


class RayWorker:
    """What lives in an actor's process. Its constructor does nothing that could fail."""

    def place(self) -> str:
        """Return the machine that this process has a place on."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def prepare(
        self, make_worker: MakeWorker, store: str, run: RunOptions, name: str, shard: int
    ) -> Loaded | Fault:
        """Open the store, load the model, and measure it on a shard."""
        self._turn, self._next = threading.Condition(), 0
        try:
            self._hand = WorkerLoop(make_worker(store, run), name, store, write_slots(run))
        except Exception as error:  # noqa: BLE001 - the driver raises it, without Ray's traces
            return fault_of(error, None, name, store)
        self._hand.measure(shard)
        return Loaded(os.getpid())

    def attempt(self, shard: int, nth: int) -> Done | Fault:
        """Run one shard: compute it when it is its turn, and wait until it is written.

        Ray keeps no order between the calls of an actor that answers several at once: of two sent
        one behind the other, some 3 of 100 pairs change places. The driver's clocks go by the
        order in which it gave shards out, so that is the one here: ``nth`` counts from 0.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._next == nth)
            try:
                written = self._hand.begin(shard)
            finally:
                self._next += 1
                self._turn.notify_all()
        return written.result()


def run_ray(job: Job, ledger: Ledger, observer: Observer, stop: Stop) -> None:
    """Run every shard on Ray actors."""
    observer.log("starting Ray" if job.run.address is None else f"joining Ray at {job.run.address}")
    with connected(job.run), stop:
        from ray.exceptions import RayError

        try:
            metered = Metered(observer)
            cluster = RayCluster(job, observer.log)
            Driver(job, ledger, metered, stop, cluster, time.monotonic).run()
        except (RayError, ConnectionError) as error:
            raise RunFaultError(
                f"Ray itself failed: {first_line(error)}. Its head may be lost. Nothing done "
                "is lost: when Ray is back, run the same command again."
            ) from error


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    name: str
    node: str | None = None
    """Where it has its place."""
    n_sent: int = 0


class _Heard(NamedTuple):
    """An answer of an actor: to a shard, or to what it was asked at its start."""

    worker: int
    shard: int | None
    answer: Future[Any]
    actor: _Actor | None = None


class RayCluster:
    """Workers as actors of the Ray that this process is connected to.

    Parameters
    ----------
    job : Job
    say : callable, optional
        Told where GPUs are missing, and when they come.
    """

    def __init__(self, job: Job, say: Callable[[str], object] = LOGGER.info) -> None:
        import ray

        self._ray, self._job, self._say = ray, job, say
        self._options = reservation(job.run)
        self._hopes_for_gpus = hopes_for_gpus(job.run, self._options)
        self._looked = time.monotonic()
        if self._hopes_for_gpus:
            say(
                "no GPU on the cluster so far: workers take CPUs alone (--gpus-per-worker 1 waits "
                "for GPUs)"
            )
        self._run = worker_options(job.run)
        self._class: Any = ray.remote(RayWorker)
        self._actors: dict[int, _Actor] = {}
        self._heard: queue.SimpleQueue[_Heard] = queue.SimpleQueue()

    def room(self) -> int:
        """Return how many workers the living machines can hold together."""
        self._look_for_gpus()
        return room(self._job.run, self._options)

    def start(self, worker: int, name: str) -> None:
        """Ask Ray for an actor, and the actor to load its model."""
        self._look_for_gpus()
        self._ask(worker, name)

    def _ask(self, worker: int, name: str) -> None:
        job = self._job
        handle = self._class.options(**self._options, max_concurrency=IN_FLIGHT).remote()
        self._actors[worker] = _Actor(handle, name)
        self._listen(worker, None, handle.place.remote())
        prepared = handle.prepare.remote(job.make_worker, job.store, self._run, name, job.shards[0])
        self._listen(worker, None, prepared)

    def send(self, worker: int, shard: int) -> None:
        """Have a shard attempted."""
        actor = self._actors[worker]
        self._listen(worker, shard, actor.handle.attempt.remote(shard, actor.n_sent))
        actor.n_sent += 1

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Wait for an answer, and return all that there are."""
        heard: list[_Heard] = []
        with suppress(queue.Empty):
            heard.append(self._heard.get(timeout=timeout_s))
            while True:
                heard.append(self._heard.get_nowait())
        placed = any(each.shard is None for each in heard)
        if placed or time.monotonic() - self._looked > LOOK_S:
            self._look_for_gpus()  # a place that is heard of may be beside one
        alive: frozenset[str] | None = None
        events: list[Event] = []
        for each in heard:
            actor = self._actors.get(each.worker)
            if actor is None or each.actor not in (None, actor):
                continue  # killed meanwhile
            error = each.answer.exception()
            if error is None:
                events.append(self._understood(each, actor))
                continue
            if alive is None:  # asked for after the errors came, so no loss is older than this
                alive = frozenset(node["NodeID"] for node in alive_nodes())
            lost_machine = actor.node not in (None, *alive)
            events.append(loss(each.worker, each.shard, error, lost_machine=lost_machine))
        return events

    def kill(self, worker: int) -> None:
        """End an actor, and hear no more of it."""
        from ray.exceptions import RayError

        actor = self._actors.pop(worker, None)
        if actor is None:
            return  # an interrupted end, or start, that is cleaned up after
        with suppress(RayError):  # a Ray that failed has no actors left to end
            self._ray.kill(actor.handle, no_restart=True)

    def _listen(self, worker: int, shard: int | None, reference: Any) -> None:
        """Have what an actor answers put into the queue: no call looks through all that fly."""
        actor = self._actors[worker]
        answer: Future[Any] = reference.future()
        answer.add_done_callback(lambda done: self._heard.put(_Heard(worker, shard, done, actor)))

    def _look_for_gpus(self) -> None:
        """See whether a machine with GPUs has joined, and ask again for whoever has no place."""
        if not self._hopes_for_gpus:
            return
        self._looked = time.monotonic()
        options = reservation(self._job.run)
        if not options["num_gpus"]:
            return
        self._options, self._hopes_for_gpus = options, False
        self._say(
            "a machine with GPUs has joined: workers that are started from now on take one; those "
            "at work on CPUs stay there"
        )
        for worker, actor in list(self._actors.items()):
            if actor.node is None:
                self.kill(worker)
                self._ask(worker, actor.name)

    def _understood(self, heard: _Heard, actor: _Actor) -> Event:
        answer: str | Loaded | Done | Fault = heard.answer.result()
        if isinstance(answer, str):
            actor.node = answer
            return Placed(heard.worker)
        if isinstance(answer, Loaded):
            return Ready(heard.worker)
        return Answer(heard.worker, answer)
