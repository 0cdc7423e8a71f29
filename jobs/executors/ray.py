"""The executor on plain Ray Core: the driver owns the queue and every retry.

Workers are actors that Ray never restarts. Their answers have a few hundred bytes and arrive by
callbacks. An actor that fails with an error of Ray's is replaced, whatever the error. Ray's own
pools do not fit: Ray Data drops a failing row silently or retries it for ever, and
``ray.util.ActorPool`` may leave units without a run.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from actlas.jobs.executors.ray_faults import first_line, loss
from actlas.jobs.executors.ray_worker import LOADED, PLACED, Loaded, RayWorker
from actlas.jobs.formatting import counted
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
from actlas.jobs.scheduler.deadlines import PING_S
from actlas.jobs.scheduler.driver import Driver
from actlas.jobs.scheduler.faults import Fault, FaultBudget
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
from actlas.store.errors import RunFaultError

MOST_PING_S = 300.0
"""Longest pause before an actor that answers no pings, such as one without a place, gets another;
Ray queues the calls of an actor."""

GPU_POLL_S = 2.0
"""Seconds between two searches for GPUs, while the cluster has none."""


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
    n = job.run.workers
    workers = "as many workers as fit" if n == "auto" else counted(n, "worker")
    where = "starting Ray" if job.run.address is None else f"joining Ray at {job.run.address}"
    observer.log(f"{where} for {workers}")
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
    due: dict[int, int | None] = field(default_factory=dict)
    """The calls without an answer so far: their numbers and shards."""
    pinged: float = -math.inf
    n_unanswered: int = 0
    """Pings without an answer since the last one that had one."""


class _Reply(NamedTuple):
    """A reply of an actor: to a call by its number, or (None) to a ping."""

    worker: int
    number: int | None
    answer: Future[Any]
    actor: _Actor


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
        handle = self._class.options(**self._options, max_concurrency=IN_FLIGHT + 1).remote()
        self._actors[worker] = _Actor(handle, name)
        self._listen(worker, PLACED, None, handle.place.remote())
        first = replace(job, run=self._run, shards=job.shards[:1], follows=frozenset())
        prepared = handle.prepare.remote(first, self._run, name)
        self._listen(worker, LOADED, None, prepared)

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
        reference = actor.handle.attempt.remote(shard, actor.n_sent)
        self._listen(worker, actor.n_sent, shard, reference)
        actor.n_sent += 1

    def ping(self, worker: int) -> None:
        """Ask an actor for its answers again; one that answers no pings is asked less often.

        If the connection to the actor is broken, this call finds it out, and all calls fail. Ray
        2.60 does not notice by itself: its server gives a connection up after 20 s without an
        acknowledgement, and its client, which has nothing to send, is not told.

        Parameters
        ----------
        worker : int
            The worker's number.
        """
        actor, now = self._actors[worker], time.monotonic()
        pause = min(MOST_PING_S, PING_S * 2.0**actor.n_unanswered) if actor.n_unanswered else 0.0
        if now - actor.pinged < pause:
            return
        actor.pinged, actor.n_unanswered = now, actor.n_unanswered + 1
        self._hear(worker, None, actor.handle.repeat.remote(list(actor.due)))

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
        placed = any(each.number == PLACED for each in replies)
        if placed or time.monotonic() - self._looked > GPU_POLL_S:
            self._look_for_gpus()  # a worker that got a place may be beside a GPU
        alive: frozenset[str] | None = None
        events: list[Event] = []
        for each in replies:
            actor = each.actor
            if self._actors.get(each.worker) is not actor:
                continue  # killed in the meantime
            error = each.answer.exception()
            if error is None:
                events.extend(_events(each))
                continue
            if each.number is not None and each.number not in actor.due:
                continue  # a ping has brought the answer
            if alive is None:  # listed after the errors arrived, so that it is newer than they are
                alive = frozenset(node["NodeID"] for node in alive_nodes())
            lost_machine = actor.node not in (None, *alive)
            shard = None if each.number is None else actor.due[each.number]
            events.append(loss(each.worker, shard, error, lost_machine=lost_machine))
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

    def _listen(self, worker: int, number: int, shard: int | None, reference: Any) -> None:
        """Note that the answer to a call is due, and put it into the queue when it arrives."""
        self._actors[worker].due[number] = shard
        self._hear(worker, number, reference)

    def _hear(self, worker: int, number: int | None, reference: Any) -> None:
        """Put a reply into the queue when it arrives, without polling all references."""
        actor = self._actors[worker]
        answer: Future[Any] = reference.future()
        answer.add_done_callback(
            lambda done: self._replies.put(_Reply(worker, number, done, actor))
        )

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


def _events(reply: _Reply) -> Iterator[Event]:
    """Yield the events of a reply that is not an error, except those that were heard before."""
    actor, answers = reply.actor, reply.answer.result()
    if reply.number is None:
        actor.n_unanswered = 0
    else:
        answers = {reply.number: answers}
    for number in sorted(answers):
        if number in actor.due:
            del actor.due[number]
            yield _event(reply.worker, actor, answers[number])


def _event(worker: int, actor: _Actor, answer: str | Loaded | Done | Fault) -> Event:
    """Return the event of an answer, and note an actor's node."""
    if isinstance(answer, str):
        actor.node = answer
        return Placed(worker)
    if isinstance(answer, Loaded):
        return Ready(worker)
    return Answer(worker, answer)
