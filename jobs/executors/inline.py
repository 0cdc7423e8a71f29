"""The executor in this process, one shard after the other: what the others must do too."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from actlas.jobs.scheduler.faults import Fault, Ledger
from actlas.jobs.scheduler.protocols import Done, Job, Observer
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.scheduler.worker_loop import WorkerLoop, write_slots
from actlas.pipeline.model.host import n_cpus

NAME = "this process"


def run_inline(job: Job, ledger: Ledger, observer: Observer, stop: Stop) -> None:
    """Run every shard here, each written while the next is computed.

    There is no deadline: a process cannot be trusted to end itself.
    """
    observer.state(NAME, "starting")
    threads = job.run.threads or n_cpus()
    run = job.run.model_copy(update={"threads": threads, "workers": 1})
    hand = WorkerLoop(job.make_worker(job.store, run), NAME, job.store, write_slots(run))
    queue = deque(job.shards)
    written: deque[Future[Done | Fault]] = deque()

    def handle(outcome: Done | Fault) -> None:
        if isinstance(outcome, Done):
            observer.done(outcome)
            return
        if outcome.stops is not None:
            raise outcome.stops
        in_quarantine = ledger.charge(outcome)
        observer.fault(outcome, in_quarantine)
        if not in_quarantine and outcome.shard is not None:
            queue.append(outcome.shard)

    try:
        with stop:
            hand.measure(job.shards[0])
            while (queue and not stop.requested) or written:
                if queue and not stop.requested:
                    shard = queue.popleft()
                    observer.state(NAME, "busy", shard)
                    written.append(hand.begin(shard))
                while written and (written[0].done() or not queue or stop.requested):
                    handle(written.popleft().result())
    finally:
        hand.close()
