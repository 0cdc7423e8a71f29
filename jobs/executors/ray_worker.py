"""A worker inside an actor's process, and its answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from typing import Any, NamedTuple

from actlas.jobs.scheduler.faults import Fault, fault_of
from actlas.jobs.scheduler.protocols import Done, Job
from actlas.jobs.scheduler.roster import IN_FLIGHT
from actlas.jobs.scheduler.worker_loop import WorkerLoop, write_slots
from actlas.pipeline.options import RunOptions


class Loaded(NamedTuple):
    """The answer of a worker that has loaded its model.

    Attributes
    ----------
    pid : int
        The worker's process.
    """

    pid: int


PLACED, LOADED = -2, -1
"""Numbers of an actor's answers before those to its shards, which are counted from 0."""


class RayWorker:
    """A worker inside an actor's process. Its constructor does nothing that could fail."""

    def __init__(self) -> None:
        self._answers: dict[int, Any] = {}

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
        answer = self._answers[LOADED] = self._loaded(job, run, name)
        return answer

    def _loaded(self, job: Job, run: RunOptions, name: str) -> Loaded | Fault:
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
        answer = self._answers[nth] = written.result()
        # Of a call with this number, the driver has sent none before it had those answers.
        self._answers.pop(nth - 2 * IN_FLIGHT, None)
        return answer

    def repeat(self, numbers: Collection[int]) -> dict[int, str | Loaded | Done | Fault]:
        """Return the answers to earlier calls again, as far as they are known.

        Parameters
        ----------
        numbers : collection of int
            The positions of the calls to :meth:`attempt`, or ``PLACED`` or ``LOADED``.
        """
        known = {PLACED: self.place(), **self._answers}
        return {number: known[number] for number in numbers if number in known}
