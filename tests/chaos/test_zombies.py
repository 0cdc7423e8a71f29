"""Workers that stand still while their shard is given away, and then go on.

The two attempts at a shard differ in last bits, as kernels make them. Arrays that are created once
match their receipt all the same; where they are written over, they do not.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support.frozen import attempt
from support.jobs import attempted, options, plant
from support.processes import stat_of, until
from support.scenes import FEW, MANY, SOME, planned
from support.stores import truth
from support.workers import attempts, make_fake, rounded

from actlas.jobs.run.run import run_extraction
from actlas.store.errors import EXIT_DONE
from actlas.store.format import layout
from actlas.store.store import Store
from chaos.conftest import Oracles, Start
from chaos.count import NONE, complaints, unfinished
from chaos.record import Chaos

pytestmark = pytest.mark.chaos


class Frozen(NamedTuple):
    """What freezing came to.

    Attributes
    ----------
    hits : int
        Attempts that stood still, and woke.
    late : int
        Attempts that woke when the other attempt had its receipt.
    """

    hits: int
    late: int


def freeze(store: Store, wanted: int, seed: float, *, overwrite: bool) -> Frozen:
    """Freeze an attempt at each of some shards, give the shard away, and wake the first.

    Each stands still before another of its files gets its name, the receipt's among them.
    """
    rng = random.Random(seed)
    n_files = len(store.arrays.rows) + 2 * len(store.arrays.activations) + 1
    stops = [1 + n % n_files for n in range(wanted)]
    rng.shuffle(stops)
    hits = late = 0
    for shard, stop_at in enumerate(stops):
        first = attempt(store.path, shard, stop_at=stop_at, overwrite=overwrite)
        pid = first.pid or 0
        until(lambda pid=pid: stat_of(pid) in "TZX", 30)
        hits += stat_of(pid) == "T"
        second = attempt(store.path, shard, overwrite=overwrite)
        if rng.random() < 0.8:
            second.join(60)
        else:  # into its middle
            until(lambda n=shard, p=second: begun(store, n) > 1 or not p.is_alive(), 30)
            time.sleep(rng.uniform(0, 0.03))
        late += store.receipts().exists(shard)
        os.kill(pid, signal.SIGCONT)
        for process in (first, second):
            process.join(60)
            assert overwrite or process.exitcode == 0
    return Frozen(hits, late)


def begun(store: Store, shard: int) -> int:
    """Return how many attempts at a shard there were."""
    return attempted(Path(store.path).parent).count(shard)


def test_a_frozen_worker_that_wakes(chaos: Chaos, oracles: Oracles, ground: Path) -> None:
    wanted, seed = chaos.count(12, 108), chaos.rng.random()
    size = SOME if chaos.form == "short" else MANY
    store = planned(ground / "run", size, noise=True)
    frozen = freeze(store, wanted, seed, overwrite=False)
    assert run_extraction(store, options(), make_fake).exit_code == EXIT_DONE
    mixed = of_no_attempt(store)
    rows = oracles(size).count(store.path, ignore=("activations/",))
    n_bad = len(unfinished(Path(store.path)))
    said = complaints(store.path)

    control = planned(ground / "control", size, noise=True)
    overwritten = freeze(control, wanted, seed, overwrite=True)
    n_bad_control = sum(fault == "wrong" for *_, fault in unfinished(Path(control.path)))
    chaos.record(
        "frozen worker that wakes after its shard was given away, differing in bits",
        frozen.hits,
        injected=wanted,
        lost=rows.lost,
        doubled=rows.doubled,
        wrong=rows.wrong + len(mixed),
        woke_after_the_other_receipt=frozen.late,
        shards_not_matching_their_receipt=n_bad,
        control_with_plain_overwriting=f"{n_bad_control} of {overwritten.hits} do not match",
    )
    assert frozen.hits == wanted
    assert (rows, n_bad, mixed, said) == (NONE, 0, [], [])
    assert frozen.late > 0
    assert n_bad_control > 0, "the control shows nothing: so does the test"


def of_no_attempt(store: Store) -> list[tuple[int, str]]:
    """Return shards and hookpoints whose rows are not, bit for bit, those of one attempt."""
    names = defaultdict(list)
    for line in attempts(Path(store.path).parent):
        shard, _, name = line.split()
        names[int(shard)].append(name)
    mixed = []
    for shard in range(store.plan.n_shards):
        start, stop = store.shard_range(shard)
        t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
        for hookpoint in store.activations:
            stored = store.activations[hookpoint][start:stop]
            made = (rounded(truth(store, hookpoint)[t], name) for name in names[shard])
            if not any(np.array_equal(stored, rows) for rows in made):
                mixed.append((shard, hookpoint))
    return mixed


def test_frozen_on_a_cluster(chaos: Chaos, start_on: Start, oracles: Oracles, ground: Path) -> None:
    """The driver gives the shard away at its deadline, and Ray cannot end what stands still."""
    wanted = chaos.count(2, 20)
    store = planned(ground / "run", FEW)
    shards = chaos.rng.sample(range(store.plan.n_shards), wanted)
    faults = {shard: [f"freeze {chaos.rng.randint(1, 6)}"] for shard in shards}
    plant(ground / "run", faults, noise=True, slow_s=0.02)
    driver = start_on(store.path, "--workers=3", "--deadline-floor-s=1")
    asleep, woken = set(shards), 0
    while asleep and driver.code() is None:
        time.sleep(0.05)
        lines = [line.split() for line in attempts(ground / "run")]
        for shard in list(asleep):
            pids = [int(pid) for s, pid, _ in lines if s == str(shard)]
            if len(pids) > 1:  # it was given away
                asleep.discard(shard)
                woken += stat_of(pids[0]) == "T"
                with suppress(ProcessLookupError):
                    os.kill(pids[0], signal.SIGCONT)
    code = driver.wait()
    rows = oracles(FEW).count(store.path, ignore=("activations/",))
    mixed, said = of_no_attempt(store), complaints(store.path)
    chaos.record(
        "frozen worker on Ray, woken when its shard was given away",
        woken,
        injected=wanted,
        lost=rows.lost,
        doubled=rows.doubled,
        wrong=rows.wrong + len(mixed),
    )
    assert code == EXIT_DONE, driver.said()
    assert woken > 0
    assert (rows, mixed, said) == (NONE, [], [])
