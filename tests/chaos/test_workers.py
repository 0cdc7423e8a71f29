"""Worker processes of a Ray cluster, killed while they work."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.processes import Driver, alive
from support.runs import MANY, SOME, planned
from support.workers import attempts

from actlas.store.errors import EXIT_DONE
from chaos.conftest import Oracles, Start
from chaos.count import NONE, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos


def test_workers_killed_at_random_times(
    chaos: Chaos, start_on: Start, oracles: Oracles, ground: Path
) -> None:
    wanted, hits, rounds, rows, said = chaos.count(10, 200), 0, 0, NONE, []
    size = SOME if chaos.form == "short" else MANY
    while hits < wanted:
        rounds += 1
        store = planned(ground / f"round {rounds}", size, slow_s=0.05)
        # The budget is not what is tried here: by chance one shard may be hit many times.
        driver = start_on(store.path, "--workers=3", "--max-process-deaths=100")
        hits += kill_workers(driver, Path(store.path).parent, chaos.rng, wanted - hits)
        assert driver.wait() == EXIT_DONE, driver.said()
        rows += oracles(size).count(store.path)
        said += complaints(store.path)
    chaos.record("worker SIGKILL at a random time", hits, **rows._asdict(), runs=rounds)
    assert rows == NONE
    assert said == []


def kill_workers(driver: Driver, folder: Path, rng: random.Random, most: int) -> int:
    """Kill workers that have attempted something, until the driver ends; return how many died."""
    killed: set[int] = set()
    while driver.code() is None and len(killed) < most:
        time.sleep(rng.uniform(0, 0.5))
        lines = attempts(folder)
        seen = [int(line.split()[1]) for line in lines[-12:]]
        living = sorted({pid for pid in seen if pid not in killed and alive(pid)})
        if living and driver.code() is None:
            pid = rng.choice(living)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    return len(killed)
