"""A worker writes one shard while it computes the next, and never holds a third."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.jobs import attempted, options, plant
from support.workers import FakeWorker, attempts, check_whole, fake_store, make_fake

from actlas.jobs.run.run import run_extraction
from actlas.jobs.scheduler import worker_loop
from actlas.jobs.scheduler.faults import Fault
from actlas.jobs.scheduler.protocols import Done
from actlas.jobs.scheduler.worker_loop import WorkerLoop
from actlas.pipeline.options import RunOptions
from actlas.store.errors import EXIT_DONE, EXIT_QUARANTINE
from actlas.store.format.schema import Receipt
from actlas.store.store import Store

WAIT_S = 30


class Staged(FakeWorker):
    """Computes nothing and writes for real; counts the shards that it holds."""

    def __init__(self, path: str, run: RunOptions) -> None:
        super().__init__(path, run)
        self.held, self.most = 0, 0
        self.lock = threading.Lock()
        self.computing = {shard: threading.Event() for shard in range(self.store.plan.n_shards)}
        self.overlap, self.closed = True, False

    def compute(self, shard: int) -> int:
        self.computing[shard].set()
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        if self.faults().get("bad compute") == shard:
            raise RuntimeError("no such rows")
        return shard

    def close(self) -> None:
        self.closed = True

    def commit(self, computed: int, attempt: str) -> Receipt:
        following = self.computing.get(computed + 1)
        if self.overlap and following is not None:
            assert following.wait(WAIT_S), "the next shard was not computed meanwhile"
        receipt = self.extract(computed, attempt=attempt)
        with self.lock:
            self.held -= 1
        return receipt


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return fake_store(tmp_path)


def test_writing_goes_on_beside(store: Store) -> None:
    workers: list[Staged] = []

    def make(path: str, run: RunOptions) -> Staged:
        workers.append(Staged(path, run))
        return workers[0]

    outcome = run_extraction(store, options(), make)
    assert outcome.exit_code == EXIT_DONE
    check_whole(store)
    assert workers[0].closed
    assert workers[0].most == 2  # each commit waited for the next to begin, and no third was held


def test_who_writes_slowly_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(worker_loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    worker = Staged(store.path, options())
    worker.overlap = False
    gate = threading.Event()
    commit = worker.commit

    def slow(computed: int, attempt: str) -> Receipt:
        assert gate.wait(WAIT_S)
        return commit(computed, attempt)

    worker.commit = slow  # type: ignore[method-assign]
    hand = WorkerLoop(worker, "worker", store.path)
    first, waits = hand.begin(0), threading.Event()
    its_end = first.exception
    monkeypatch.setattr(first, "exception", lambda: (waits.set(), its_end())[1])
    second: list[Any] = []
    thread = threading.Thread(target=lambda: second.append(hand.begin(1)))
    thread.start()
    assert worker.computing[1].wait(WAIT_S)
    assert waits.wait(WAIT_S)
    assert not first.done()
    assert not second, "a second shard was handed over while the first was still written"
    now[0] = 5.0
    gate.set()
    thread.join(WAIT_S)
    outcomes = [first.result(WAIT_S), second[0].result(WAIT_S)]
    assert [o.shard for o in outcomes if isinstance(o, Done)] == [0, 1]
    waited = [o.run["write_wait_s"] for o in outcomes if isinstance(o, Done)]
    assert waited == [0.0, 5.0]


def test_a_fault_in_either_stage_is_the_shards_own(store: Store, tmp_path: Path) -> None:
    worker = Staged(store.path, options())
    worker.overlap = False
    hand = WorkerLoop(worker, "worker", store.path)
    plant(tmp_path, {1: ["raise"]}, **{"bad compute": 2})
    outcomes = [hand.begin(shard) for shard in range(4)]
    found = [outcome.result(WAIT_S) for outcome in outcomes]
    assert [isinstance(outcome, Fault) for outcome in found] == [False, True, True, False]
    assert [outcome.shard for outcome in found] == [0, 1, 2, 3]
    errors = [outcome.error for outcome in found if isinstance(outcome, Fault)]
    assert "shard 1 is poison" in errors[0]
    assert errors[1] == "RuntimeError: no such rows"


@pytest.mark.chaos
def test_a_shard_that_kills_its_worker_does_not_take_its_neighbours_along(
    ray_started: None, tmp_path: Path
) -> None:
    """Two shards are with each worker: the innocent one is charged at most once."""
    store = fake_store(tmp_path, n_documents=60)
    assert store.plan.n_shards >= 6
    plant(tmp_path, {2: ["die"] * 9}, slow_s=0.05)
    outcome = run_extraction(store, options("ray", workers=1, max_process_deaths=3), make_fake)
    assert outcome.exit_code == EXIT_QUARANTINE
    assert outcome.quarantined == (2,)
    assert store.missing() == [2]
    assert attempted(tmp_path).count(2) == 3
    innocent = [shard for shard in attempted(tmp_path) if shard != 2]
    assert all(innocent.count(shard) <= 2 for shard in set(innocent))
    assert len(attempts(tmp_path)) <= store.plan.n_shards + 3
