"""The executor on plain Ray Core: the driver owns the queue and every retry.

Workers are actors that Ray never restarts. Their answers have a few hundred bytes and arrive by
callbacks. An actor that fails with an error of Ray's is replaced, whatever the error. Ray's own
pools do not fit: Ray Data drops a failing row silently or retries it for ever, and
``ray.util.ActorPool`` may leave units without a run.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
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
from actlas.jobs.scheduler.faults import Fault, FaultBudget, fault_of
from actlas.jobs.scheduler.protocols import (
    Answer,
    Done,
    Event,
    Job,
    Observer,
    Placed,
    Ready,
)
from actlas.jobs.scheduler.roster import IN_FLIGHT
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.scheduler.worker_loop import WorkerLoop, write_slots
from actlas.pipeline.options import RunOptions
from actlas.store.errors import RunFaultError

GPU_POLL_S = 2.0
"""Seconds between two searches for GPUs, while the cluster has none."""


class Loaded(NamedTuple):
    """The answer of a worker that has loaded its model.

    Attributes
    ----------
    pid : int
        The worker's process.
    """

    pid: int


class RayWorker:
    """A worker inside an actor's process. Its constructor does nothing that could fail."""

    def place(self) -> str:
        """Return the id of the node that this process runs on."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def prepare(self, job: Job, run: RunOptions, name: str) -> Loaded | Fault:
        """Open the store, load the model, and measure it on the job's first shard.

        Parameters
        ----------
        job : Job
            The job, without its shards but the first.
        run : RunOptions
            The worker's options.
        name : str
            The worker's name, for messages.
        """
        self._turn, self._next = threading.Condition(), 0
        try:
            self._loop = WorkerLoop(
                job.make_worker(job.store, run),
                name,
                job.store,
                write_slots(run),
                damage_stops=job.damage_stops,
            )
        except Exception as error:  # noqa: BLE001 - the driver raises it, without Ray's traces
            return fault_of(error, None, name, job.store)
        self._loop.measure(job.shards[0])
        return Loaded(os.getpid())

    def attempt(self, shard: int, nth: int) -> Done | Fault:
        """Run one shard: compute it when it is its turn, and wait until it is written.

        Ray keeps no order between the calls of an actor that runs several at once: about 3 of 100
        pairs of calls arrive in reverse. The driver's clocks assume the order in which it sent the
        shards, so the calls wait for that order.

        Parameters
        ----------
        shard : int
            The shard.
        nth : int
            The position of this call among those sent to this actor, counted from 0.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._next == nth)
            try:
                written = self._loop.begin(shard)
            finally:
                self._next += 1
                self._turn.notify_all()
        return written.result()


def run_ray(job: Job, budget: FaultBudget, observer: Observer, stop: Stop) -> None:
    """Run every shard on Ray actors.

    Parameters
    ----------
    job : Job
        The shards, and how to open a worker.
    budget : FaultBudget
        Counts the faults of each shard, and puts shards in quarantine.
    observer : Observer
        Notified of every event.
    stop : Stop
        Consulted before a shard is begun.

    Raises
    ------
    RunFaultError
        Ray itself failed.
    ActlasError
        The error that stopped the run, for which no shard is to blame.
    """
    observer.log("starting Ray" if job.run.address is None else f"joining Ray at {job.run.address}")
    with connected(job.run), stop:
        from ray.exceptions import RayError

        try:
            metered = Metered(observer)
            cluster = RayCluster(job, observer.log)
            Driver(job, budget, metered, stop, cluster, time.monotonic).run()
        except (RayError, ConnectionError) as error:
            raise RunFaultError(
                f"Ray itself failed: {first_line(error)}. Its head may be lost. Finished shards "
                "are kept: when Ray is back, run the same command again."
            ) from error


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    name: str
    node: str | None = None
    """The id of the node that it runs on; None while it waits for a place."""
    n_sent: int = 0


class _Reply(NamedTuple):
    """A reply of an actor: to a shard, or (``shard`` None) to a call at its start."""

    worker: int
    shard: int | None
    answer: Future[Any]
    actor: _Actor | None = None


class RayCluster:
    """Workers as actors of the Ray that this process is connected to.

    Parameters
    ----------
    job : Job
        The shards, and how to open a worker.
    log : callable, optional
        Called with a message while GPUs are missing, and when they join.
    """

    def __init__(self, job: Job, log: Callable[[str], object] = LOGGER.info) -> None:
        import ray

        self._ray, self._job, self._log = ray, job, log
        self._options = reservation(job.run)
        self._hopes_for_gpus = hopes_for_gpus(job.run, self._options)
        self._looked = time.monotonic()
        if self._hopes_for_gpus:
            log(
                "the cluster has no GPU yet: workers run on CPUs (--gpus-per-worker 1 waits for "
                "GPUs)"
            )
        self._run = worker_options(job.run)
        self._class: Any = ray.remote(RayWorker)
        self._actors: dict[int, _Actor] = {}
        self._replies: queue.SimpleQueue[_Reply] = queue.SimpleQueue()

    def room(self) -> int:
        """Return how many workers the living machines have room for together."""
        self._look_for_gpus()
        return room(self._job.run, self._options)

    def start(self, worker: int, name: str) -> None:
        """Request an actor from Ray, and have it load its model.

        Parameters
        ----------
        worker : int
            The worker's number.
        name : str
            The worker's name, for messages.
        """
        self._look_for_gpus()
        self._ask(worker, name)

    def _ask(self, worker: int, name: str) -> None:
        job = self._job
        handle = self._class.options(**self._options, max_concurrency=IN_FLIGHT).remote()
        self._actors[worker] = _Actor(handle, name)
        self._listen(worker, None, handle.place.remote())
        first = replace(job, run=self._run, shards=job.shards[:1], follows=frozenset())
        prepared = handle.prepare.remote(first, self._run, name)
        self._listen(worker, None, prepared)

    def send(self, worker: int, shard: int) -> None:
        """Send a shard to a worker.

        Parameters
        ----------
        worker : int
            The worker's number.
        shard : int
            The shard.
        """
        actor = self._actors[worker]
        self._listen(worker, shard, actor.handle.attempt.remote(shard, actor.n_sent))
        actor.n_sent += 1

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Wait for a reply, and return the events of all replies so far.

        Parameters
        ----------
        timeout_s : float
            Seconds to wait at most.
        """
        replies: list[_Reply] = []
        with suppress(queue.Empty):
            replies.append(self._replies.get(timeout=timeout_s))
            while True:
                replies.append(self._replies.get_nowait())
        placed = any(each.shard is None for each in replies)
        if placed or time.monotonic() - self._looked > GPU_POLL_S:
            self._look_for_gpus()  # a worker that got a place may be beside a GPU
        alive: frozenset[str] | None = None
        events: list[Event] = []
        for each in replies:
            actor = self._actors.get(each.worker)
            if actor is None or each.actor not in (None, actor):
                continue  # killed in the meantime
            error = each.answer.exception()
            if error is None:
                events.append(_event(each, actor))
                continue
            if alive is None:  # listed after the errors arrived, so that it is newer than they are
                alive = frozenset(node["NodeID"] for node in alive_nodes())
            lost_machine = actor.node not in (None, *alive)
            events.append(loss(each.worker, each.shard, error, lost_machine=lost_machine))
        return events

    def kill(self, worker: int) -> None:
        """End an actor, and ignore its further replies.

        Parameters
        ----------
        worker : int
            The worker's number.
        """
        from ray.exceptions import RayError

        actor = self._actors.pop(worker, None)
        if actor is None:
            return  # its start or its end was interrupted
        with suppress(RayError):  # a Ray that failed has no actors left to end
            self._ray.kill(actor.handle, no_restart=True)

    def _listen(self, worker: int, shard: int | None, reference: Any) -> None:
        """Put an actor's reply into the queue when it arrives, without polling all references."""
        actor = self._actors[worker]
        answer: Future[Any] = reference.future()
        answer.add_done_callback(lambda done: self._replies.put(_Reply(worker, shard, done, actor)))

    def _look_for_gpus(self) -> None:
        """Use GPUs once a machine with some has joined: request waiting actors again."""
        if not self._hopes_for_gpus:
            return
        self._looked = time.monotonic()
        options = reservation(self._job.run)
        if not options["num_gpus"]:
            return
        self._options, self._hopes_for_gpus = options, False
        self._log(
            "a machine with GPUs has joined: workers that start from now on use them; running "
            "workers stay on CPUs"
        )
        for worker, actor in list(self._actors.items()):
            if actor.node is None:
                self.kill(worker)
                self._ask(worker, actor.name)


def _event(reply: _Reply, actor: _Actor) -> Event:
    """Return the event of a reply that is not an error, and note an actor's node."""
    answer: str | Loaded | Done | Fault = reply.answer.result()
    if isinstance(answer, str):
        actor.node = answer
        return Placed(reply.worker)
    if isinstance(answer, Loaded):
        return Ready(reply.worker)
    return Answer(reply.worker, answer)
