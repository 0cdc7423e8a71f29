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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support.frozen import attempt
from support.jobs import attempted, options, plant
from support.processes import stat_of, until
from support.runs import FEW, MANY, planned
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


class Stop(NamedTuple):
    """Where an attempt stands still, and when it wakes.

    Attributes
    ----------
    shard : int
        The shard that is attempted.
    key : str
        The file that the attempt is about to name.
    waits : bool
        Whether it wakes when the other attempt has its receipt; else in that one's middle.
    """

    shard: int
    key: str
    waits: bool


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


def stops(store: Store, wanted: int, rng: random.Random) -> list[Stop]:
    """Choose where the first attempts at the first shards stand still.

    Each file of an attempt has its turn, the receipt's among them, and four of five attempts wait
    for the other's receipt: of those before an activation, the first of each hookpoint always.
    """
    arrays = store.arrays
    specs = [*arrays.activations.values(), *arrays.rows.values(), *arrays.statistics.values()]
    found = []
    for shard in range(wanted):
        turn = shard % (len(specs) + 1)
        receipt = f"ledger/receipts/extract/{shard:08d}.json"
        key = specs[turn].key(shard) if turn < len(specs) else receipt
        found.append(Stop(shard, key, shard < len(arrays.activations) or rng.random() < 0.8))
    return found


def freeze(
    store: Store, stops: Sequence[Stop], rng: random.Random, *, overwrite: bool = False
) -> Frozen:
    """Freeze an attempt at each of some shards, give the shard away, and wake the first."""
    hits = late = 0
    for stop in stops:
        first = attempt(store.path, stop.shard, stop_before=stop.key, overwrite=overwrite)
        pid = first.pid or 0
        until(lambda pid=pid: stat_of(pid) in "TZX", 60)
        hits += stat_of(pid) == "T"
        second = attempt(store.path, stop.shard, overwrite=overwrite)
        if stop.waits:
            second.join(60)
            assert second.exitcode == 0
        else:
            until(lambda n=stop.shard, p=second: begun(store, n) > 1 or not p.is_alive(), 60)
            time.sleep(rng.uniform(0, 0.03))
        late += store.receipts().exists(stop.shard)
        os.kill(pid, signal.SIGCONT)
        for process in (first, second):
            process.join(60)
            assert overwrite or process.exitcode == 0
    return Frozen(hits, late)


def begun(store: Store, shard: int) -> int:
    """Return how many attempts at a shard there were."""
    return attempted(Path(store.path).parent).count(shard)


def test_a_frozen_worker_that_wakes(chaos: Chaos, oracles: Oracles, ground: Path) -> None:
    """The control freezes where each that wakes must overwrite what the other has recorded."""
    size = FEW if chaos.form == "short" else MANY
    store = planned(ground / "run", size, noise=True)
    planted = stops(store, chaos.count(12, 108), chaos.rng)
    frozen = freeze(store, planted, chaos.rng)
    assert run_extraction(store, options(), make_fake).exit_code == EXIT_DONE
    mixed = of_no_attempt(store)
    rows = oracles(size).count(store.path, ignore=("activations/",))
    n_bad = len(unfinished(Path(store.path)))
    said = complaints(store.path)

    control = planned(ground / "control", size, noise=True)
    overwriting = [one for one in planted if one.waits and one.key.startswith("activations/")]
    overwritten = freeze(control, overwriting, chaos.rng, overwrite=True)
    found = unfinished(Path(control.path))
    wrong = [(start, stop) for start, stop, fault in found if fault == "wrong"]
    chaos.record(
        "frozen worker that wakes after its shard was given away, differing in bits",
        frozen.hits,
        injected=len(planted),
        lost=rows.lost,
        doubled=rows.doubled,
        wrong=rows.wrong + len(mixed),
        woke_after_the_other_receipt=frozen.late,
        shards_not_matching_their_receipt=n_bad,
        control_with_plain_overwriting=f"{len(wrong)} of {overwritten.hits} do not match",
    )
    assert frozen.hits == len(planted)
    assert (rows, n_bad, mixed, said) == (NONE, 0, [], [])
    assert frozen.late >= sum(one.waits for one in planted)
    assert overwritten == (len(overwriting), len(overwriting))
    assert len(overwriting) >= len(control.activations)
    assert wrong == [control.shard_range(one.shard) for one in overwriting], "each must show"


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
    # The budget is not what is tried here: on a busy machine others may miss the deadline too. It
    # leaves time to come to the file before which an attempt stands still.
    budget = ["--deadline-floor-s=3", "--max-task-faults=100"]
    driver = start_on(store.path, "--workers=3", *budget)
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
