"""Drivers in processes of their own: killed, interrupted, two at once."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from support.jobs import attempted, options, plant, wait_until
from support.workers import attempts, check_whole, fake_store, make_fake

from actlas.jobs.run import run_extraction
from actlas.store import lease
from actlas.store.errors import EXIT_DONE, EXIT_RESUME
from actlas.store.store import Store

Drive = Callable[..., "Popen[str]"]


def receipts(store: Store) -> dict[int, tuple[str, int]]:
    """Each finished shard's attempt and the time its receipt was written."""
    folder = Path(store.path) / "ledger/receipts/extract"
    return {
        shard: (
            store.receipts().read(shard).attempt,
            (folder / f"{shard:08d}.json").stat().st_mtime_ns,
        )
        for shard in store.done()
    }


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_driver_is_resumed(store: Store, tmp_path: Path, drive: Drive, seed: int) -> None:
    plant(tmp_path, slow_s=0.05)
    rng = random.Random(seed)
    before: dict[int, tuple[str, int]] = {}
    while len(before) < store.plan.n_shards:
        process = drive(store.path)
        enough = len(before) + rng.randint(1, 5)
        wait_until(lambda n=enough, p=process: len(store.done()) >= n or p.poll() is not None)
        process.kill()
        process.wait()
        now = receipts(store)
        assert now.items() >= before.items(), "a finished shard was run again"
        before = now
    outcome = run_extraction(store, options(), make_fake)
    assert outcome.exit_code == EXIT_DONE
    assert receipts(store) == before
    check_whole(store)


@pytest.mark.chaos
def test_a_killed_ray_driver_is_resumed(store: Store, tmp_path: Path, drive: Drive) -> None:
    plant(tmp_path, slow_s=0.1)
    process = drive(store.path, "run.executor=ray", "run.workers=2")
    wait_until(lambda: len(store.done()) >= 4)
    process.kill()
    process.wait()
    before = receipts(store)
    plant(tmp_path)
    assert run_extraction(store, options(), make_fake).exit_code == EXIT_DONE
    assert receipts(store).items() >= before.items()
    check_whole(store)


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_ctrl_c_drains_and_exits_with_75(tmp_path: Path, drive: Drive, executor: str) -> None:
    store = fake_store(tmp_path)
    plant(tmp_path, slow_s=0.5)
    process = drive(store.path, f"run.executor={executor}", "run.workers=2")
    wait_until(lambda: len(attempts(tmp_path)) >= 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_RESUME, err
    assert "SIGINT: finishing the shards in flight" in err
    assert out.startswith("stopped: ")
    assert "Traceback" not in err
    done = store.done()
    assert 0 < len(done) < store.plan.n_shards
    assert sorted(set(attempted(tmp_path))) == sorted(done)
    assert lease.holder(store.objects) is None


def test_a_second_signal_stops_at_once(store: Store, tmp_path: Path, drive: Drive) -> None:
    plant(tmp_path, {0: ["hang"]})
    process = drive(store.path)
    wait_until(lambda: len(attempts(tmp_path)) == 1)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "finishing the shards" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == EXIT_RESUME, err
    assert "nothing done is lost" in err
    assert "Traceback" not in err


@pytest.mark.chaos
def test_two_drivers_at_once(store: Store, tmp_path: Path, drive: Drive) -> None:
    plant(tmp_path, slow_s=0.05)
    drivers = [drive(store.path) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in drivers]
    codes = sorted(process.returncode for process in drivers)
    assert codes[0] == EXIT_DONE, errors
    assert set(codes) <= {EXIT_DONE, EXIT_RESUME}, errors
    refused = [e for p, e in zip(drivers, errors, strict=True) if p.returncode == EXIT_RESUME]
    assert all("one driver at a time may" in error for error in refused), errors
    check_whole(store)
    assert sorted(attempted(tmp_path)) == list(range(store.plan.n_shards))


@pytest.mark.chaos
def test_a_machine_that_is_lost(store: Store, tmp_path: Path, drive: Drive) -> None:
    plant(tmp_path, slow_s=0.5)
    process = drive(store.path, module="support.cluster")
    out, err = process.communicate(timeout=200)
    assert process.returncode == EXIT_DONE, err
    assert "its machine was lost; trying again" in err
    assert out.splitlines()[-1].startswith("done: 758 rows")
    check_whole(store)
    assert len(attempts(tmp_path)) <= store.plan.n_shards + 2
