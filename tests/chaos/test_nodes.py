"""Machines of a Ray cluster that are lost, frozen and added while a job runs on them."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.cluster import LocalCluster
from support.processes import Driver, stat_of, until
from support.runs import FEW, MANY, planned
from support.workers import attempts

from actlas.store.errors import EXIT_DONE
from actlas.store.store import Store
from chaos.conftest import Oracles, Start
from chaos.count import NONE, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos


def test_machines_killed_and_added(
    chaos: Chaos, cluster: LocalCluster, start_on: Start, oracles: Oracles, ground: Path
) -> None:
    wanted, hits, rounds, rows, said, seen = chaos.count(2, 50), 0, 0, NONE, [], 0
    size = FEW if chaos.form == "short" else MANY
    while hits < wanted:
        rounds += 1
        store = planned(ground / f"round {rounds}", size, slow_s=0.2)
        driver = start_on(store.path, "--workers=auto")
        hits += kill_machines(driver, cluster, store, chaos.rng, wanted - hits)
        assert driver.wait() == EXIT_DONE, driver.said()
        seen += len([f for f in faults(store) if f["kind"] == "node"])
        rows += oracles(size).count(store.path)
        said += complaints(store.path)
    chaos.record(
        "node (raylet) SIGKILL, and one joining",
        hits,
        **rows._asdict(),
        runs=rounds,
        attempts_charged_to_lost_machines=seen,
    )
    assert rows == NONE
    assert said == []
    assert seen > 0


def kill_machines(
    driver: Driver, cluster: LocalCluster, store: Store, rng: random.Random, most: int
) -> int:
    """Kill machines of a driver at work, each replaced by another; return how many were killed."""
    n_killed = 0
    folder = Path(store.path).parent
    while driver.code() is None and n_killed < most:
        n = len(attempts(folder))
        until(lambda n=n: len(attempts(folder)) > n + 3 or driver.code() is not None, 60)
        time.sleep(rng.uniform(0, 0.5))
        if driver.code() is not None or not store.missing():
            break
        node = rng.choice(sorted(cluster.raylets))
        os.kill(cluster.raylets[node], signal.SIGKILL)
        n_killed += 1
        cluster.add()
        cluster.remove(node)
    return n_killed


def faults(store: Store) -> list[dict[str, Any]]:
    """Return the faults that a store's logs tell of."""
    lines = [
        line
        for file in Path(store.path, "ledger/logs").glob("*driver*")
        for line in file.read_text().splitlines()
    ]
    return [body for body in map(json.loads, lines) if body["message"] == "fault"]


def test_a_frozen_machine_that_wakes(
    chaos: Chaos, cluster: LocalCluster, start_on: Start, oracles: Oracles, ground: Path
) -> None:
    """It stands still until Ray counts it as lost and its shards are done elsewhere."""
    wanted, hits, wrote, rows, said = chaos.count(0, 10), 0, 0, NONE, []
    if not wanted:
        pytest.skip("in the long form: Ray takes seconds to notice each")
    while hits < wanted:
        store = planned(ground / f"round {hits}", FEW, slow_s=0.3, noise=True)
        driver = start_on(store.path, "--workers=4")
        folder = Path(store.path).parent
        assert until(lambda f=folder: len(attempts(f)) > 8, 60) is not None
        time.sleep(chaos.rng.uniform(0, 0.5))
        node = chaos.rng.choice(sorted(cluster.raylets))
        pids = [cluster.raylets[node], *children(cluster.raylets[node])]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        lost = until(lambda d=driver: "the worker's machine was lost" in d.said(), 60)
        done = frozenset(store.done())
        still = [pid for pid in pids[1:] if stat_of(pid) == "T"]
        time.sleep(chaos.rng.uniform(0, 1.5))
        for pid in pids[1:] + pids[:1]:  # its workers go on before it can end them
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert lost is not None, driver.said()
        hits += bool(still)
        assert driver.wait() == EXIT_DONE, driver.said()
        wrote += sum(
            store.receipts().read(shard).attempt.split(":")[1] in map(str, still)
            for shard in set(range(store.plan.n_shards)) - done
        )
        rows += oracles(FEW).count(store.path, ignore=("activations/",))
        said += complaints(store.path)
        cluster.add()
        cluster.remove(node)
    chaos.record(
        "frozen node that wakes when it counts as lost",
        hits,
        **rows._asdict(),
        receipts_written_by_the_woken=wrote,
    )
    assert (rows, said) == (NONE, [])


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that live."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
