"""The executor in this process, one shard after the other: the specification of executors."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from actlas.jobs.scheduler.faults import Fault, FaultBudget
from actlas.jobs.scheduler.protocols import Done, Job, Observer
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.scheduler.worker_loop import WorkerLoop, write_slots
from actlas.pipeline.model.host import n_cpus

NAME = "this process"


def run_inline(job: Job, budget: FaultBudget, observer: Observer, stop: Stop) -> None:
    """Run every shard in this process; each is written while the next is computed.

    Shards have no deadline here, since a process that hangs cannot end itself.

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
    ActlasError
        The error that stopped the run, for which no shard is to blame.
    """
    observer.state(NAME, "starting")
    threads = job.run.threads or n_cpus()
    run = job.run.model_copy(update={"threads": threads, "workers": 1})
    loop = WorkerLoop(
        job.make_worker(job.store, run),
        NAME,
        job.store,
        write_slots(run),
        damage_stops=job.damage_stops,
    )
    queue = deque(job.shards)
    written: deque[Future[Done | Fault]] = deque()

    def handle(outcome: Done | Fault) -> None:
        if isinstance(outcome, Done):
            observer.done(outcome)
            return
        if outcome.stops is not None:
            raise outcome.stops
        in_quarantine = budget.charge(outcome)
        observer.fault(outcome, in_quarantine)
        if not in_quarantine and outcome.shard is not None:
            queue.append(outcome.shard)

    try:
        with stop:
            loop.measure(job.shards[0])
            while (queue and not stop.requested) or written:
                if queue and not stop.requested:
                    shard = queue.popleft()
                    observer.state(NAME, "busy", shard)
                    written.append(loop.begin(shard))
                while written and (written[0].done() or not queue or stop.requested):
                    handle(written.popleft().result())
    finally:
        loop.close()
