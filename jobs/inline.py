"""The executor in this process, one shard after the other: what the others must do too."""

from __future__ import annotations

from collections import deque

from actlas.jobs.executors import Done, Hand, Job, Watch
from actlas.jobs.ledger import Ledger
from actlas.jobs.signals import Stop
from actlas.pipeline.cpus import n_cpus

NAME = "this process"


def run_inline(job: Job, ledger: Ledger, watch: Watch, stop: Stop) -> None:
    """Run every shard here. There is no deadline: a process cannot be trusted to end itself."""
    watch.state(NAME, "starting")
    threads = job.run.threads or n_cpus()
    run = job.run.model_copy(update={"threads": threads, "workers": 1})
    hand = Hand(job.make_worker(job.store, run), NAME, job.store)
    queue = deque(job.shards)
    with stop:
        while queue and not stop.requested:
            shard = queue.popleft()
            watch.state(NAME, "busy", shard)
            outcome = hand.attempt(shard)
            if isinstance(outcome, Done):
                watch.done(outcome)
                continue
            if outcome.stops is not None:
                raise outcome.stops
            in_quarantine = ledger.charge(outcome)
            watch.fault(outcome, in_quarantine)
            if not in_quarantine:
                queue.append(shard)
