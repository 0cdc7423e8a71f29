"""One body for every executor: what inline does is the specification."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest
from support.jobs import attempted, both, options, plant, wait_until
from support.oracle import files
from support.workers import (
    FakeWorker,
    attempts,
    check_whole,
    fake_store,
    make_fake,
    make_fake_mender,
    open_gate,
)

from actlas.jobs.executors import ray as executor_module
from actlas.jobs.executors.ray import RayCluster, _Reply
from actlas.jobs.executors.ray_worker import RayWorker
from actlas.jobs.logs import LOGGER
from actlas.jobs.ray import cluster as ray_cluster
from actlas.jobs.run.repair import repair_at
from actlas.jobs.run.run import run_extraction
from actlas.jobs.scheduler import deadlines
from actlas.jobs.scheduler.faults import Fault, FaultBudget
from actlas.jobs.scheduler.protocols import Done
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.scheduler.worker_loop import WorkerLoop
from actlas.store.errors import (
    EXIT_DONE,
    EXIT_QUARANTINE,
    EXIT_RESUME,
    ConfigError,
    LeaseHeldError,
    ModelError,
    RunFaultError,
)
from actlas.store.ledger import lease
from actlas.store.store import Store


def quarantined(store: Store) -> dict[int, str]:
    records = FaultBudget(store.objects, "extract", options()).quarantined()
    return {shard: record.traceback for shard, record in records.items()}


def rows_and_receipts(store: Store) -> dict[str, bytes]:
    found = files(Path(store.path))
    return {k: v for k, v in found.items() if not k.startswith(("ledger/lease/", "ledger/logs/"))}


@both
def test_every_shard_is_done_once(executor: str, store: Store, tmp_path: Path) -> None:
    outcome = run_extraction(store, options(executor), make_fake)
    assert outcome.exit_code == EXIT_DONE
    check_whole(store)
    assert sorted(attempted(tmp_path)) == list(range(store.plan.n_shards))
    again = run_extraction(store, options(executor), make_fake)
    assert again.exit_code == EXIT_DONE
    assert "stored already" in again.line
    assert len(attempts(tmp_path)) == store.plan.n_shards


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers(ray_started: None, tmp_path: Path, workers: int) -> None:
    store = fake_store(tmp_path)
    assert run_extraction(store, options("ray", workers=workers), make_fake).exit_code == EXIT_DONE
    check_whole(store)
    assert len({line.split()[1] for line in attempts(tmp_path)}) <= workers


def test_auto_is_one_worker_where_there_is_no_gpu(
    ray_started: None, store: Store, tmp_path: Path
) -> None:
    outcome = run_extraction(store, options("ray", workers="auto"), make_fake)
    assert outcome.exit_code == EXIT_DONE
    check_whole(store)
    assert len({line.split()[1] for line in attempts(tmp_path)}) == 1
    assert {store.receipt(0).run.get("workers", 1)} == {1}


def test_room(ray_started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as each machine holds: fractions of a GPU too, and never parts of two machines."""
    small, large = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 8.0}
    nodes = [{"Resources": each} for each in ({"CPU": 0.0}, small, large)]
    monkeypatch.setattr(ray_cluster, "alive_nodes", lambda: nodes)
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")

    def room(**asked: float) -> int:
        run = options("ray", workers="auto", **asked)
        return ray_cluster.room(run, ray_cluster.reservation(run))

    assert room() == 1 + 8
    assert room(cpus_per_worker=16) == 4
    assert room(gpus_per_worker=0.25) == 4 + 32
    assert room(gpus_per_worker=2) == 4
    assert room(gpus_per_worker=16) == 0, "and on a cluster that is no error: a machine may join"
    assert room(gpus_per_worker=0, cpus_per_worker=3) == 1 + 21
    monkeypatch.delenv("RAY_ADDRESS")
    nodes[:] = [{"Resources": {"CPU": 2.0, "GPU": 4.0}}]
    assert room() == 4, "on a Ray of our own one per GPU, whatever the processor"
    nodes[:] = [{"Resources": {"CPU": 2.0}}]
    assert room() == 1
    with pytest.raises(ConfigError, match="no machine of this Ray has both"):
        room(gpus_per_worker=1)


@both
def test_quarantine_is_exactly_the_poison(executor: str, store: Store, tmp_path: Path) -> None:
    plant(tmp_path, {3: ["raise"] * 3, 7: ["raise", "raise"], 9: ["oops", "raise"]})
    outcome = run_extraction(store, options(executor), make_fake)
    assert outcome.exit_code == EXIT_QUARANTINE
    assert outcome.quarantined == (3,)
    assert store.missing() == [3]
    assert list(quarantined(store)) == [3]
    assert "shard 3 is poison" in quarantined(store)[3]
    assert "in suffer" in quarantined(store)[3]
    assert attempted(tmp_path).count(3) == 3

    again = run_extraction(store, options(executor), make_fake)
    assert again.exit_code == EXIT_QUARANTINE
    assert attempted(tmp_path).count(3) == 3

    retried = run_extraction(store, options(executor, retry_quarantined=True), make_fake)
    assert retried.exit_code == EXIT_DONE
    assert quarantined(store) == {}
    check_whole(store)


@both
@pytest.mark.parametrize("what", ["disk", "oserror"])
def test_a_run_fault_charges_no_shard(
    executor: str, store: Store, tmp_path: Path, what: str
) -> None:
    plant(tmp_path, {2: [what] * 9})
    with pytest.raises(RunFaultError):
        run_extraction(store, options(executor), make_fake)
    assert quarantined(store) == {}
    assert attempted(tmp_path).count(2) == 1
    assert lease.holder(store.objects) is None
    plant(tmp_path)
    assert run_extraction(store, options(executor), make_fake).exit_code == EXIT_DONE
    check_whole(store)


def test_a_failed_measurement_charges_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*_args: object, **_named: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(FakeWorker, "bare_forward_rate", bad)
    logged: list[str] = []
    monkeypatch.setattr(LOGGER, "exception", lambda text, **_named: logged.append(text))
    hand = WorkerLoop(make_fake(store.path, options()), "worker 0", store.path)
    hand.measure(0)
    for shard in (0, 1):
        outcome = hand.attempt(shard)
        assert isinstance(outcome, Done)
        assert outcome.bare_tokens_per_s is None
    assert logged == ["the bare forward pass was not measured"]
    outcome = run_extraction(store, options(), make_fake)
    assert outcome.exit_code == EXIT_DONE
    assert "bare forward pass" not in outcome.line


def test_a_ray_that_fails_is_no_ones_fault(
    ray_started: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import RaySystemError

    answer: Future[object] = Future()
    answer.set_exception(RaySystemError("the head is gone"))

    def lost(self: RayCluster, worker: int, number: int | None, _reference: object) -> None:
        self._replies.put(_Reply(worker, number, answer, self._actors[worker]))

    monkeypatch.setattr(RayCluster, "_hear", lost)
    with pytest.raises(RunFaultError, match=r"Ray itself failed.*the head is gone"):
        run_extraction(store, options("ray"), make_fake)
    assert quarantined(store) == {}
    assert lease.holder(store.objects) is None


def test_every_answer_is_lost_and_is_asked_for_again(
    ray_started: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a connection breaks while a worker computes: only pings are answered."""
    heard = RayCluster._hear

    def hear(self: RayCluster, worker: int, number: int | None, reference: object) -> None:
        if number is None:
            heard(self, worker, number, reference)

    monkeypatch.setattr(RayCluster, "_hear", hear)
    for module in (deadlines, executor_module):
        monkeypatch.setattr(module, "PING_S", 0.02)
    plant(tmp_path, {3: ["raise"]})
    assert run_extraction(store, options("ray"), make_fake).exit_code == EXIT_DONE
    again = Counter(attempted(tmp_path)) - Counter(range(12))
    # A worker with a fault is replaced, which may have begun the shard behind the failed one.
    assert again.pop(3) == 1 and again.total() <= 1
    check_whole(store)


def test_an_interrupted_end_of_a_worker_is_ended_again(
    ray_started: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C in the middle of ``ray.kill``: cleaning up must not fail on what is gone."""
    import ray

    real = ray.kill
    killed: list[object] = []

    def interrupted(actor: object, **named: bool) -> None:
        killed.append(actor)
        if len(killed) == 1:
            raise KeyboardInterrupt
        real(actor, **named)

    monkeypatch.setattr(ray, "kill", interrupted)
    plant(tmp_path, {0: ["raise"]})
    with pytest.raises(KeyboardInterrupt):
        run_extraction(store, options("ray", workers=2), make_fake)
    assert len(killed) == 2
    assert lease.holder(store.objects) is None


def test_what_workers_are_told_of_ray(ray_started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_cluster.worker_options(options("ray")).address is None
    assert ray_cluster.worker_options(options("ray", threads=3)).threads == 3
    monkeypatch.setattr(ray_cluster, "alive_nodes", lambda: [{}, {}])
    run = ray_cluster.worker_options(options("ray", cpus_per_worker=2))
    assert (run.address, run.threads) == ("auto", 2)
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    assert ray_cluster.worker_options(options("ray")).address == "there:6379"


def test_names_that_are_no_record_are_left_alone(store: Store) -> None:
    folder = Path(store.path, "ledger/quarantine/extract")
    folder.mkdir(parents=True)
    for name in ("1.json", "00000001.json.bak", "٠٠٠٠٠٠٠١.json", "000000001.json", "00000001.tmp"):
        (folder / name).write_text("{}")
    assert quarantined(store) == {}


def test_nothing_to_do_takes_no_lease_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    plant(tmp_path, {3: ["raise"] * 3})
    run_extraction(store, options(), make_fake)
    before = sorted(tmp_path.rglob("*"))
    with lease.hold(store.objects):
        assert run_extraction(store, options(), make_fake).exit_code == EXIT_QUARANTINE
    released = [path for path in tmp_path.rglob("*") if path not in before]
    assert all("ledger/lease" in str(path) for path in released)
    retried = run_extraction(store, options(retry_quarantined=True), make_fake)
    assert retried.exit_code == EXIT_DONE
    with lease.hold(store.objects):
        again = run_extraction(store, options(retry_quarantined=True), make_fake)
    assert again.exit_code == EXIT_DONE
    assert "stored already" in again.line


@both
def test_a_worker_that_cannot_start_ends_the_run_with_its_own_error(
    executor: str, store: Store, tmp_path: Path
) -> None:
    plant(tmp_path, start=True)
    with pytest.raises(ModelError, match="the weights are not those of the plan"):
        run_extraction(store, options(executor), make_fake)
    assert attempts(tmp_path) == []


@both
def test_a_signal_drains(
    executor: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shards but two wait until the signal has arrived: some are in flight, most are not."""
    plant(tmp_path, {shard: ["gate"] for shard in range(2, store.plan.n_shards)})
    arrived, handle = threading.Event(), Stop._handle

    def handled(self: Stop, number: int, frame: FrameType | None) -> None:
        handle(self, number, frame)
        arrived.set()

    monkeypatch.setattr(Stop, "_handle", handled)

    def interrupt() -> None:
        wait_until(lambda: len(attempts(tmp_path)) >= 3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert arrived.wait(60)
        open_gate(tmp_path)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    outcome = run_extraction(store, options(executor), make_fake)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert outcome.exit_code == EXIT_RESUME
    assert "next: run the same command again" in outcome.line
    done = store.done()
    assert 0 < len(done) < store.plan.n_shards
    assert sorted(set(attempted(tmp_path))) == sorted(done), "what was in flight was finished"
    assert run_extraction(store, options(executor), make_fake).exit_code == EXIT_DONE
    assert sorted(attempted(tmp_path)) == list(range(store.plan.n_shards))


@both
def test_a_live_driver_refuses_another(executor: str, store: Store, tmp_path: Path) -> None:
    with lease.hold(store.objects), pytest.raises(LeaseHeldError, match="one driver at a time"):
        run_extraction(store, options(executor), make_fake)
    assert attempts(tmp_path) == []


@pytest.mark.chaos
def test_dead_processes(ray_started: None, store: Store, tmp_path: Path) -> None:
    """A shard is charged for its own deaths, and once where it was with one that died."""
    plant(tmp_path, {1: ["die"], 4: ["die"] * 2, 8: ["die"] * 9})
    outcome = run_extraction(store, options("ray", max_process_deaths=4), make_fake)
    assert outcome.exit_code == EXIT_QUARANTINE
    assert outcome.quarantined == (8,)
    records = FaultBudget(store.objects, "extract", options()).quarantined()
    assert records[8].faults == {"process": 4}
    assert attempted(tmp_path).count(8) in (3, 4)
    assert sorted(set(range(12)) - store.done()) == [8]


@pytest.mark.chaos
def test_workers_killed_at_random(ray_started: None, store: Store, tmp_path: Path) -> None:
    plant(tmp_path, {11: ["gate"] * 9}, slow_s=0.15)
    stop = threading.Event()
    n_killed = 0

    def kill() -> None:
        nonlocal n_killed
        while not stop.wait(0.7 if n_killed else 0.05) and n_killed < 5:
            lines = attempts(tmp_path)
            if lines and _kill(int(lines[-1].split()[1])):
                n_killed += 1
                open_gate(tmp_path)  # the last shard is not done before the first kill

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = run_extraction(store, options("ray", workers=3), make_fake)
    stop.set()
    thread.join()
    assert n_killed > 0
    assert outcome.exit_code == EXIT_DONE
    check_whole(store)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def test_calls_that_change_places_are_put_in_order() -> None:
    """As Ray does: whoever holds the later one waits for the earlier."""
    begun: list[int] = []

    class Recorder(WorkerLoop):
        def __init__(self) -> None:
            """Nothing is loaded."""

        def begin(self, shard: int) -> Future[Done | Fault]:
            begun.append(shard)
            if shard == 7:
                raise RuntimeError("and a call that fails lets the next one in")
            answer: Future[Done | Fault] = Future()
            answer.set_result(Done(shard, 1, 1, 0, 0.0, "worker 0", {}))
            return answer

    worker = RayWorker()
    worker._turn, worker._next, worker._loop = threading.Condition(), 0, Recorder()
    shards = [5, 9, 7, 2]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(worker.attempt, shards[nth], nth) for nth in (3, 1, 2)]
        time.sleep(0.05)
        assert begun == []
        answers.append(pool.submit(worker.attempt, shards[0], 0))
        errors = [answer.exception(timeout=60) for answer in answers]
    assert begun == shards
    assert [error is None for error in errors] == [True, True, False, True]


def test_a_deadline(ray_started: None, store: Store, tmp_path: Path) -> None:
    plant(tmp_path, {5: ["hang"]})
    # The others take milliseconds; on a busy machine they must not take this long.
    outcome = run_extraction(store, options("ray", deadline_floor_s=8.0), make_fake)
    assert outcome.exit_code == EXIT_DONE
    assert attempted(tmp_path).count(5) == 2
    check_whole(store)
    logs = "".join(file.read_text() for file in (tmp_path / "run.zarr/ledger/logs").iterdir())
    faults = [json.loads(line) for line in logs.splitlines() if '"fault"' in line]
    assert [(f["kind"], f["shard"]) for f in faults] == [("task", 5)], "and not its neighbour"
    assert "the limit is" in faults[0]["error"]


@both
def test_a_repair_goes_on_though_its_workers_fail(
    executor: str, store: Store, tmp_path: Path
) -> None:
    """Three shards are harmed, and each attempt but the last of two of them fails."""
    assert run_extraction(store, options(executor), make_fake).exit_code == EXIT_DONE
    before = rows_and_receipts(store)
    (tmp_path / "attempts.txt").unlink()
    key = store.arrays.activations["resid_post.0"].key
    for shard in (1, 4, 7):
        harmed = Path(store.path, key(shard))
        harmed.write_bytes(b"harmed" + harmed.read_bytes()[6:])
    plant(tmp_path, {4: ["raise"] * 2, 7: ["raise" if executor == "inline" else "die"]})
    made = repair_at(store.path, options(executor), make_repairer=make_fake_mender)
    assert (made.exit_code, made.shards, made.left) == (EXIT_DONE, {"extract": (1, 4, 7)}, ())
    n = Counter(attempted(tmp_path))  # a neighbour of who dies is attempted again
    assert set(n) == {1, 4, 7} and n[4] >= 3 and n[7] >= 2
    assert executor == "ray" or n.total() == 6
    assert rows_and_receipts(store) == before
