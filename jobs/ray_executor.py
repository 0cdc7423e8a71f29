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
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from actlas.jobs.driver import IN_FLIGHT, Answer, Driver, Event, Lost, Placed, Ready
from actlas.jobs.executors import Done, Job, MakeWorker, Watch
from actlas.jobs.hand import Hand
from actlas.jobs.ledger import Fault, FaultKind, Ledger, fault_of
from actlas.jobs.metrics import Metered
from actlas.jobs.ray_cluster import alive_nodes, connected, reservation, room, worker_options
from actlas.jobs.signals import Stop
from actlas.jobs.turns import turns_of
from actlas.pipeline.options import RunOptions
from actlas.store.errors import RunFaultError


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
        self._in_turn = threading.Lock()
        try:
            self._hand = Hand(make_worker(store, run), name, store, turns_of(run))
        except Exception as error:  # noqa: BLE001 - the driver raises it, without Ray's traces
            return fault_of(error, None, name, store)
        self._hand.measure(shard)
        return Loaded(os.getpid())

    def attempt(self, shard: int) -> Done | Fault:
        """Run one shard: compute it when it is its turn, and wait until it is written."""
        with self._in_turn:
            written = self._hand.begin(shard)
        return written.result()


def run_ray(job: Job, ledger: Ledger, watch: Watch, stop: Stop) -> None:
    """Run every shard on Ray actors."""
    watch.say("starting Ray" if job.run.address is None else f"joining Ray at {job.run.address}")
    with connected(job.run), stop:
        from ray.exceptions import RayError

        try:
            metered = Metered(watch)
            Driver(job, ledger, metered, stop, RayCluster(job), time.monotonic).run()
        except (RayError, ConnectionError) as error:
            raise RunFaultError(
                f"Ray itself failed: {_first_line(error)}. Its head may be lost. Nothing done "
                "is lost: when Ray is back, run the same command again."
            ) from error


@dataclass(slots=True)
class _Actor:
    handle: Any
    node: str | None = None
    """Where it has its place."""


class _Heard(NamedTuple):
    """An answer of an actor: to a shard, or to what it was asked at its start."""

    worker: int
    shard: int | None
    answer: Future[Any]


class RayCluster:
    """Workers as actors of the Ray that this process is connected to.

    Parameters
    ----------
    job : Job
    """

    def __init__(self, job: Job) -> None:
        import ray

        self._ray, self._job = ray, job
        self._options = reservation(job.run)
        self._run = worker_options(job.run)
        self._class: Any = ray.remote(RayWorker)
        self._actors: dict[int, _Actor] = {}
        self._heard: queue.SimpleQueue[_Heard] = queue.SimpleQueue()

    def room(self) -> int:
        """Return how many workers the living machines can hold together."""
        return room(self._job.run, self._options)

    def start(self, worker: int, name: str) -> None:
        """Ask Ray for an actor, and the actor to load its model."""
        job = self._job
        handle = self._class.options(**self._options, max_concurrency=IN_FLIGHT).remote()
        self._actors[worker] = _Actor(handle)
        self._listen(worker, None, handle.place.remote())
        prepared = handle.prepare.remote(job.make_worker, job.store, self._run, name, job.shards[0])
        self._listen(worker, None, prepared)

    def send(self, worker: int, shard: int) -> None:
        """Have a shard attempted."""
        self._listen(worker, shard, self._actors[worker].handle.attempt.remote(shard))

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Wait for an answer, and return all that there are."""
        heard: list[_Heard] = []
        with suppress(queue.Empty):
            heard.append(self._heard.get(timeout=timeout_s))
            while True:
                heard.append(self._heard.get_nowait())
        alive: frozenset[str] | None = None
        events: list[Event] = []
        for each in heard:
            if (actor := self._actors.get(each.worker)) is None:
                continue  # killed meanwhile
            error = each.answer.exception()
            if error is None:
                events.append(self._understood(each, actor))
                continue
            if alive is None:  # asked for after the errors came, so no loss is older than this
                alive = frozenset(node["NodeID"] for node in alive_nodes())
            events.append(_loss(each, error, lost_machine=actor.node not in (None, *alive)))
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
        answer: Future[Any] = reference.future()
        answer.add_done_callback(lambda done: self._heard.put(_Heard(worker, shard, done)))

    def _understood(self, heard: _Heard, actor: _Actor) -> Event:
        answer: str | Loaded | Done | Fault = heard.answer.result()
        if isinstance(answer, str):
            actor.node = answer
            return Placed(heard.worker)
        if isinstance(answer, Loaded):
            return Ready(heard.worker)
        return Answer(heard.worker, answer)


def _loss(heard: _Heard, error: BaseException, *, lost_machine: bool) -> Lost:
    """Return what an error of Ray's means for a worker.

    Raises
    ------
    RayError
        It is no worker's: Ray itself failed.
    """
    from ray.exceptions import RayTaskError

    told = partial(Lost, heard.worker, traceback=str(error))
    if isinstance(error, RayTaskError):
        return told(kind="task", error=_first_line(error), shard=heard.shard)
    kind = kind_of(error, lost_machine=lost_machine)
    return told(kind=kind, error=_words(kind, error))


def kind_of(error: BaseException, *, lost_machine: bool) -> FaultKind:
    """Tell a machine that is lost from a process that died on a living one.

    What Ray 2.60 raises for a call to an actor:

    - ``ActorUnavailableError``: its process cannot be reached, and for a second Ray has not heard
      that it died. A process that dies alone is reported by its machine at once, so this is how
      the loss of a machine shows first.
    - ``ActorDiedError``: the process is dead; ``preempted`` where its machine was taken away.
    - ``OutOfMemoryError``: Ray's memory monitor killed the process. Its shard is charged for a
      dead process: it may well be the one that takes too much.
    - ``WorkerCrashedError``, ``NodeDiedError``: what they say.

    Raises
    ------
    RayError
        Anything else is not about the actor: the answer's owner is the driver itself, so where an
        owner, an object or Ray's system is lost, the driver's own Ray failed.
    """
    from ray import exceptions as ray_errors

    if isinstance(error, ray_errors.ActorUnavailableError | ray_errors.NodeDiedError):
        return "node"
    if isinstance(error, ray_errors.RayActorError):
        return "node" if lost_machine or error.preempted else "process"
    if isinstance(error, ray_errors.OutOfMemoryError | ray_errors.WorkerCrashedError):
        return "node" if lost_machine else "process"
    raise error


def _words(kind: FaultKind, error: BaseException) -> str:
    from ray.exceptions import OutOfMemoryError

    if kind == "node":
        return "its machine was lost"
    if isinstance(error, OutOfMemoryError):
        return "Ray killed its process, for its machine ran out of memory"
    return "its process died (killed, crashed, or out of memory)"


def _first_line(error: BaseException) -> str:
    first = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {first}"
