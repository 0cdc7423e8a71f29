"""The driver on an imagined cluster, in imagined time: whatever befalls it, nothing is lost.

The imagined cluster refuses a third shard for a worker, and company for a shard that failed; and
``play`` ends with a check that each shard was done exactly once or is in quarantine, with its
budget used up exactly.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import exceptions as ray_errors
from support.simulated import simulated
from support.workers import fake_store

from actlas.jobs.executors.ray_faults import kind_of
from actlas.jobs.run.work import follows
from actlas.jobs.scheduler.deadlines import Clocks, Median
from actlas.jobs.scheduler.faults import Fault
from actlas.jobs.scheduler.queue import ShardQueue
from actlas.jobs.scheduler.start_backoff import StartBackoff
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ActlasError, ModelError
from actlas.store.format import layout

play: Callable[[Any], Any] = simulated.play
scene: Callable[..., Any] = simulated.Scene

EXAMPLES = 3_000 if os.environ.get("ACTLAS_CHAOS") == "long" else 60

FATES = st.lists(st.sampled_from(["raise", "die", "hang"]), min_size=1, max_size=8)


@st.composite
def scenes(draw: st.DrawFn) -> Any:
    n = draw(st.integers(1, 60))
    shards = st.integers(0, n - 1)
    return scene(
        n_shards=n,
        n_machines=draw(st.integers(0, 4)),
        places=draw(st.integers(1, 3)),
        workers=draw(st.just("auto") | st.integers(1, 8)),
        write_s=draw(st.sampled_from([0.0, 20.0, 90.0])),
        load_s=20.0,
        suffering=draw(st.dictionaries(shards, FATES, max_size=6)),
        follows=draw(st.frozensets(shards, max_size=n)),
        deaths_per_s=draw(st.sampled_from([0.0, 1 / 400])),
        losses_per_s=draw(st.sampled_from([0.0, 1 / 500])),
        joins_after_s=draw(st.sampled_from([10.0, 400.0])),
        late_machines=(100.0,),
        blips=draw(st.sampled_from([(), ((15.0, 40.0), (200.0, 300.0))])),
        bad_starts=draw(st.dictionaries(st.integers(0, 9), st.sampled_from(["die"]), max_size=3)),
        until_s=4000.0,
        seed=draw(st.integers(0, 2**32)),
    )


def budget_is_used_up(fates: list[str], run: RunOptions) -> bool:
    """By its own faults alone, whatever else happens to it."""
    n_task = sum(fate in ("raise", "hang") for fate in fates)
    return n_task >= run.max_task_faults or fates.count("die") >= run.max_process_deaths


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(scenes())
def test_nothing_is_lost_or_doubled(imagined: Any) -> None:
    world = play(imagined)
    poison = {
        shard
        for shard, fates in imagined.suffering.items()
        if budget_is_used_up(fates, RunOptions())
    }
    assert poison <= world.quarantined
    quiet = not (imagined.deaths_per_s or imagined.losses_per_s)
    if quiet:
        assert world.quarantined == poison
        n_own = sum(len(fates) for fates in imagined.suffering.values())
        neighbours = sum(fates.count("die") for fates in imagined.suffering.values())
        n_faults = sum(sum(faults.values()) for faults in world.faults.values())
        assert n_faults <= n_own + neighbours


def test_two_limits_in_a_row_pass_without_an_event() -> None:
    """Shard 1 hangs for 7,200 s, and again: the driver is not stuck."""
    losses = {"losses_per_s": 0.002, "until_s": 4000.0, "joins_after_s": 10.0}
    calm = {"late_machines": (100.0,), "load_s": 20.0, "write_s": 0.0}
    world = play(scene(2, 0, 2, suffering={0: ["hang"], 1: ["hang"] * 3}, **losses, **calm))
    assert world.quarantined == {1} and world.done == {0: 1}


@pytest.mark.parametrize("from_s", [0.0, 20.0, 60.0, 100.0])
@pytest.mark.parametrize("length_s", [25.0, 35.0, 100.0])
def test_an_answer_that_a_blip_lost_is_asked_for_again(from_s: float, length_s: float) -> None:
    """Placed, loaded, computed or written meanwhile: the driver knows soon after, at no charge."""
    calm = {"spread": 0.0, "load_s": 30.0, "compute_s": 60.0, "write_s": 5.0}
    undisturbed = play(scene(6, 2, 1, **calm)).now
    world = play(scene(6, 2, 1, blips=[(from_s, from_s + length_s)], **calm))
    assert world.faults == {} and not world.start_faults
    assert world.n_started == 2 and world.done.total() == 6
    assert world.now < undisturbed + length_s + 15
    assert world.n_pings < 2 * world.now / 10 + 2


def test_an_innocent_neighbour_pays_once() -> None:
    """One worker, and the second shard kills it each time: its company is charged once."""
    world = play(scene(12, 1, 1, suffering={3: ["die"] * 9}, spread=0.0))
    assert world.quarantined == {3}
    assert {shard: dict(f) for shard, f in world.faults.items()} == {
        3: {"process": 6},
        4: {"process": 1},
    }


def test_a_neighbours_work_is_on_nobodys_clock() -> None:
    """Each takes 140 s and may take 150; the second is given out 140 s before it is begun."""
    calm = {"spread": 0.0, "compute_s": 130.0, "write_s": 10.0, "run": {"deadline_floor_s": 150}}
    world = play(scene(9, 1, 1, **calm))
    assert world.faults == {}
    assert world.most == 2


@pytest.mark.parametrize("hanging", [0, 1, 7])
def test_every_shard_has_a_deadline(hanging: int) -> None:
    """First, second or last in its lane; the others are not charged, and soon all is done.

    The first two are over the limit once while nobody knows how long a shard takes, and once after.
    """
    calm = {"spread": 0.0, "compute_s": 10.0, "write_s": 5.0, "run": {"deadline_floor_s": 150}}
    world = play(scene(8, 1, 1, suffering={hanging: ["hang"]}, load_s=10.0, **calm))
    assert {s: dict(f) for s, f in world.faults.items()} == {hanging: {"task": 1}}
    n_times = 2 if hanging < 2 else 1
    assert world.now < 8 * 15 + n_times * (150 + 15 + 10) + 10 + 5


def test_the_deadline_follows_the_median() -> None:
    slow = {"spread": 0.0, "compute_s": 100.0, "write_s": 0.0, "run": {"deadline_floor_s": 101}}
    world = play(scene(30, 1, 1, suffering={20: ["hang"]}, **slow))
    assert world.faults[20] == {"task": 1}
    assert world.now > 29 * 100 + 10 * 100, "ten times the median, not the floor"


FLOOR = {"deadline_floor_s": 300}


@pytest.mark.parametrize("times", [1.03, 1.9, 3.9, 7.9])
@pytest.mark.parametrize("spread", [0.0, 0.001])
def test_a_floor_that_is_too_low_costs_time_and_no_shard(times: float, spread: float) -> None:
    """All at the same moment, or one after the other: the next limit is the others' too."""
    slow = {"compute_s": 300 * times, "write_s": 0.0, "spread": spread, "run": FLOOR}
    world = play(scene(30, 8, 1, **slow))
    assert world.faults == {}
    n_rounds = math.ceil(math.log2(times))
    assert len(world.said) == n_rounds
    for k, text in enumerate(world.said):
        assert f"not done after {300 * 2**k} s: " in text
        assert f"the limit is {600 * 2**k} s, fewer than 2 shards of this run are done" in text
        assert "--deadline-floor-s" in text
    n_dropped = 8 * n_rounds if spread == 0.0 else n_rounds
    assert world.n_started == 8 + n_dropped


def test_shards_of_more_than_eight_floors_are_charged() -> None:
    slow = {"compute_s": 300 * 8.1, "write_s": 0.0, "spread": 0.0, "run": FLOOR}
    world = play(scene(3, 8, 1, **slow))
    assert world.quarantined == {0, 1, 2}
    assert len(world.said) == 3


def test_a_shard_that_hangs_alone_ends_in_quarantine() -> None:
    calm = {"spread": 0.0, "load_s": 10.0, "run": FLOOR}
    world = play(scene(1, 1, 1, suffering={0: ["hang"] * 9}, **calm))
    assert {s: dict(f) for s, f in world.faults.items()} == {0: {"task": 3}}
    assert world.quarantined == {0}
    assert world.now == pytest.approx(300 * (1 + 2 + 4 + 8 + 8 + 8) + 6 * 10, abs=5)


def test_one_short_shard_says_nothing_of_the_others() -> None:
    """The last of a store is shorter: done in a second, it would make the floor the limit."""
    slow = {"compute_s": 400.0, "write_s": 0.0, "spread": 0.0, "run": FLOOR}
    world = play(scene(8, 8, 1, takes={7: 1.0}, **slow))
    assert world.faults == {}
    assert len(world.said) == 1


def test_two_that_are_done_end_the_forgiving() -> None:
    """And whoever was over the limit comes after all others."""
    calm = {"spread": 0.0, "compute_s": 20.0, "write_s": 0.0, "load_s": 10.0, "run": FLOOR}
    world = play(scene(9, 1, 1, suffering={0: ["hang"] * 9}, **calm))
    assert list(world.by_worker.values()) == [[0, 1], [1, 2, 3, 4, 5, 6, 7, 8, 0], [0], [0]]
    assert {s: dict(f) for s, f in world.faults.items()} == {0: {"task": 3}}
    assert world.now == pytest.approx(4 * 300 + 8 * 20 + 4 * 10, abs=5), "the floor again"


def test_who_failed_before_stays_alone_when_forgiven() -> None:
    """The imagined cluster refuses it company."""
    world = play(scene(6, 1, 1, suffering={0: ["die", "hang"]}, run=FLOOR))
    assert world.faults[0] == {"process": 1, "task": 1}


def test_loading_has_a_limit_and_waiting_has_none() -> None:
    """Two machines of one place for five workers: three wait for hours and are charged nothing."""
    hours = {"compute_s": 1000.0, "spread": 0.0, "run": {"deadline_floor_s": 3000}}
    world = play(scene(12, 2, 1, workers=5, **hours))
    assert world.start_faults == {}
    assert world.n_started == 5
    world = play(scene(4, 1, 1, workers=1, bad_starts={0: "hang"}, load_s=10.0))
    assert world.start_faults == {"task": 1}
    assert 1800 < world.now < 2200


def test_workers_that_never_start_end_the_run() -> None:
    bad = dict.fromkeys(range(99), "raise")
    with pytest.raises(ActlasError, match=r"failed to start 3 times in a row.*no model"):
        play(scene(4, 1, 1, bad_starts=bad))
    with pytest.raises(ActlasError, match="failed to start 6 times in a row"):
        play(scene(4, 1, 1, bad_starts=dict.fromkeys(range(99), "die")))


def test_a_good_start_forgives_bad_ones() -> None:
    """Five that die, one that loads and dies at its first shard, and five more that die."""
    bad = dict.fromkeys([*range(5), *range(6, 11)], "die")
    world = play(scene(4, 1, 1, bad_starts=bad, suffering={0: ["die"]}))
    assert world.start_faults == {"process": 10}


@pytest.mark.parametrize("bad_load_s", [0.5, 30.0])
@pytest.mark.parametrize("workers", ["auto", 8])
def test_a_broken_place_ends_no_run(workers: str | int, bad_load_s: float) -> None:
    """One of eight GPUs, from before the others have loaded: as fast as with the other seven."""
    broken = {"bad_machines": {0: "raise"}, "bad_load_s": bad_load_s}
    same = {"spread": 0.0, "load_s": 90.0}
    world = play(scene(300, 8, 1, workers=workers, **broken, **same))
    seven = play(scene(300, 7, 1, workers="auto", **same))
    assert world.faults == {}
    assert 5 < world.start_faults["task"] < 25
    assert world.now == pytest.approx(seven.now, abs=100), "it waits for nothing at the end"
    said = [text for text in world.said if "could not start" in text]
    assert len(said) == 2, "before the others were ready, and after"
    for text in said:
        assert "RuntimeError: no model" in text
        assert "continues with 7 workers; the next start is tried in 2.0 s" in text


def test_starts_that_fail_are_put_off_for_longer_each_time() -> None:
    broken = {"bad_machines": {0: "die"}, "bad_load_s": 7.0, "load_s": 7.0}
    world = play(scene(500, 3, 1, workers=3, **broken))
    (name,) = {name for when, name, state in world.states if state == "gone" and when < 300}
    ends = [when for when, who, state in world.states if who == name and state == "gone"]
    begins = [when for when, who, state in world.states if who == name and state == "waiting"]
    gaps = [begin - end for end, begin in zip(ends, begins[1:], strict=False) if end > 60]
    delays = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0, 300.0]
    first = next(k for k, delay in enumerate(delays) if gaps[0] < delay + 1)
    expected = delays[first : first + len(gaps)]
    assert len(expected) > 5
    assert gaps[: len(expected)] == pytest.approx(expected, abs=0.02), "woken in time"


def test_a_good_worker_that_is_lost_is_replaced_at_once() -> None:
    """What is put off is the start that failed, not those of others."""
    broken = {"bad_machines": {0: "raise"}, "bad_load_s": 7.0, "spread": 0.0}
    world = play(scene(400, 4, 1, workers=4, suffering={150: ["raise"]}, **broken))
    states = [each for each in world.states if 1000 < each[0] < 5000]
    gone, begun = ([w for w, _, state in states if state == s] for s in ("gone", "waiting"))
    gaps = [min(b - g for b in begun if b >= g) for g in gone if g < 4000]
    assert sorted(gaps)[0] < 0.5 < sorted(gaps)[1], gaps


def test_a_run_ends_when_the_good_ones_are_gone_too() -> None:
    """Four that load, of whom each meets a shard that kills it; nobody after them loads."""
    bad = dict.fromkeys(range(4, 99), "raise")
    poison = {shard: ["die"] for shard in (4, 14, 24, 34)}
    imagined = scene(40, 1, 4, bad_starts=bad, suffering=poison)
    world = simulated.World(imagined)
    with pytest.raises(ActlasError, match=r"failed to start \d times in a row.*no model"):
        simulated.play(imagined, world)
    assert world.start_faults["task"] > 5
    assert sum(world.done.values()) > 20


def test_a_run_ends_where_only_the_broken_place_is_left() -> None:
    """Of two machines it is the good one that goes, with this seed."""
    loss = {"leaving": (1500.0,), "joins_after_s": 1e9}
    imagined = scene(900, 2, 1, bad_machines={0: "raise"}, seed=10, **loss)
    world = simulated.World(imagined)
    with pytest.raises(ActlasError, match="failed to start 3 times in a row"):
        simulated.play(imagined, world)
    assert list(world._machines) == [0]
    assert world.now < 1500 + 64 + 3 * 60, "no start is put off where nobody works"


def test_a_run_ends_where_every_place_is_broken() -> None:
    """Some worker is loading at any time, and none that began before the first failed."""
    imagined = scene(900, 8, 1, bad_machines=dict.fromkeys(range(8), "raise"))
    world = simulated.World(imagined)
    with pytest.raises(ActlasError, match=r"failed to start \d+ times in a row.*no model"):
        simulated.play(imagined, world)
    assert world.now < 3 * 30
    assert world.start_faults["task"] < 8 + 8


def test_starts_that_fail_together_count_as_one() -> None:
    said: list[str] = []
    starts = StartBackoff(said.append)
    fault = Fault(None, "node", "its machine was lost", "", "worker 1")

    def fail(now: float) -> None:
        assert starts.failed(fault, now, n_ready=3, loading=(0, math.inf), most=9) is None

    for _ in range(5):
        fail(100.0)
    assert (starts.n_held_back(101.0), starts.left(101.0)) == (5, 1.0)
    assert (starts.n_held_back(102.0), starts.left(102.0)) == (0, math.inf)
    fail(110.0)
    assert (starts.n_held_back(113.9), starts.n_held_back(114.0)) == (1, 0)
    assert len(said) == 1
    starts.ready()
    fail(120.0)
    assert (starts.n_held_back(121.9), starts.n_held_back(122.0)) == (1, 0)


def test_a_refused_model_ends_the_run_while_others_work() -> None:
    imagined = scene(400, 1, 4, bad_starts={4: "refuse"}, suffering={0: ["die"]}, spread=0.0)
    world = simulated.World(imagined)
    with pytest.raises(ModelError, match="not the plan's"):
        simulated.play(imagined, world)
    assert world.n_started == 5
    assert sum(world.done.values()) < 20


def test_a_machine_that_is_lost_while_all_load_ends_nothing() -> None:
    world = play(scene(100, 2, 30, load_s=100.0, leaving=(10.0, 15.0, 20.0, 25.0)))
    assert world.start_faults["node"] > 20


def test_auto_grows_with_the_cluster() -> None:
    slow = scene(200, 1, 2, spread=0.0)
    grown = scene(200, 1, 2, spread=0.0, late_machines=(100.0, 100.0, 100.0))
    alone, joined = play(slow), play(grown)
    assert alone.n_started == 2
    assert joined.n_started == 8
    assert joined.now < 0.4 * alone.now


def test_auto_takes_back_those_for_whom_there_is_no_place() -> None:
    """A machine of two places goes for good: two workers wait, then no longer."""
    world = play(scene(60, 2, 2, spread=0.0, leaving=(400.0,), joins_after_s=1e9))
    assert world.n_lost == 1
    assert world.n_started - 4 <= 2, "no more than the lost ones were tried again"
    before_the_end = [state for when, _, state in world.states if when < world.now - 100]
    started, gone = before_the_end.count("waiting"), before_the_end.count("gone")
    assert started - gone == 2


def test_a_number_of_workers_waits_for_places() -> None:
    world = play(scene(40, 1, 2, workers=6, spread=0.0, late_machines=(200.0, 200.0)))
    assert world.n_started == 6
    assert world.faults == {}


@pytest.mark.parametrize("workers", ["auto", 3])
def test_a_cluster_without_room_is_waited_for(workers: str | int) -> None:
    world = play(scene(20, 0, 2, workers=workers, late_machines=(500.0,)))
    assert [text for text in world.said if "no worker could be placed" in text]
    assert len(world.said) == 1


def test_neighbours_go_to_one_worker() -> None:
    """Four chains of ten shards and four workers: each does one chain, in its order."""
    chains = [range(10 * i, 10 * i + 10) for i in range(4)]
    follows = frozenset(shard for chain in chains for shard in chain[1:])
    world = play(scene(40, 1, 4, follows=follows))
    assert sorted(world.by_worker.values()) == [list(chain) for chain in chains]
    world = play(scene(40, 1, 4))
    assert sorted(world.by_worker.values()) != [list(chain) for chain in chains]


def test_nobody_is_idle_for_a_neighbours_sake() -> None:
    """One chain for eight workers: they share it, as fast as if it were none."""
    fast = {"spread": 0.0, "write_s": 0.0}
    apart = play(scene(160, 1, 8, **fast))
    chain = play(scene(160, 1, 8, follows=frozenset(range(160)), **fast))
    assert chain.now == pytest.approx(apart.now)
    handed_on = sum(
        b == a + 1 for shards in chain.by_worker.values() for a, b in itertools.pairwise(shards)
    )
    assert handed_on >= 160 - 4 * 8


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("max_length", [9, 17, 64])
def test_who_follows_whom(tmp_path: Path, max_length: int, causal: bool) -> None:
    """Against the sequences themselves: one of the shard's begins before its border."""
    store = fake_store(tmp_path, windows={"max_length": max_length, "long": "window"})
    plan = store.plan
    store.plan = plan.model_copy(update={"model": plan.model.model_copy(update={"causal": causal})})
    starts, crossed = store.documents.start, set()
    for shard in range(plan.n_shards):
        start, stop = store.shard_range(shard)
        found = layout.sequences(starts, 0, start, stop, max_length - 1, causal=True)
        if any(sequence.start < start for sequence in found):
            crossed.add(shard)
    assert 0 < len(crossed) < plan.n_shards
    shards = range(1, plan.n_shards, 2)
    assert follows(store, range(plan.n_shards)) == (crossed if causal else set())
    assert follows(store, shards) == (crossed & set(shards) if causal else set())
    assert follows(store, []) == frozenset()


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pending_gives_each_shard_once(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 40))
    shards = [shard for shard in range(n) if data.draw(st.booleans())]
    follows = data.draw(st.frozensets(st.integers(0, 40)))
    pending = ShardQueue(shards, follows)
    left, given_to = set(shards), dict[int, list[int]]()
    while left:
        assert len(pending) == len(left)
        worker = data.draw(st.integers(0, 3))
        what = data.draw(st.sampled_from(["take", "take", "take", "leave", "lose"]))
        if what == "take":
            shard = pending.take(worker)
            left.remove(shard)
            given_to.setdefault(worker, []).append(shard)
            continue
        pending.leave(worker)
        if what == "lose" and given_to.get(worker):
            back = given_to.pop(worker)[-2:]
            pending.give_back(back)
            left.update(back)
    assert not pending
    with pytest.raises(IndexError):
        pending.take(0)


def test_the_run_of_one_who_left_comes_next() -> None:
    pending = ShardQueue(range(9), follows={1, 2, 4, 5, 7, 8})
    assert [pending.take(0), pending.take(0)] == [0, 1]
    pending.leave(0)
    pending.give_back([0, 1])
    assert [pending.take(worker) for worker in (1, 2, 3, 4)] == [0, 1, 2, 3]


def test_the_median_is_the_median() -> None:
    rng, median, seen = random.Random(1), Median(), []
    for _ in range(300):
        number = rng.choice([rng.random(), 0.5])
        seen.append(number)
        median.add(number)
        assert median.value() == statistics.median(seen)


def test_clocks() -> None:
    clocks = Clocks()
    assert clocks.over(1.0, 99.0) is None
    for key, now in ((1, 0.0), (2, 1.0), (1, 5.0)):
        clocks.start(key, now)
    assert clocks.over(4.0, 5.0) is None
    assert clocks.over(4.0, 5.5) == (2, 4.5)
    assert clocks.left(4.0, 2.0) == 3.0
    clocks.stop(2)
    clocks.stop(2)
    assert clocks.over(4.0, 9.5) == (1, 4.5)


@pytest.mark.parametrize("lost_machine", [False, True])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ray_errors.ActorDiedError(), "process"),
        (ray_errors.ActorUnavailableError("no answer", None), "node"),
        (ray_errors.RayActorError(preempted=True), "node"),
        (ray_errors.OutOfMemoryError("killed"), "process"),
        (ray_errors.WorkerCrashedError(), "process"),
        (ray_errors.NodeDiedError("gone"), "node"),
    ],
)
def test_what_rays_errors_mean(error: Exception, kind: str, lost_machine: bool) -> None:
    assert kind_of(error, lost_machine=lost_machine) == ("node" if lost_machine else kind)


@pytest.mark.parametrize(
    "error",
    [
        ray_errors.RaySystemError("the head is gone"),
        ray_errors.LocalRayletDiedError(),
        ray_errors.OwnerDiedError("00", "", ""),
    ],
)
def test_what_is_rays_own_fault(error: Exception) -> None:
    with pytest.raises(type(error)):
        kind_of(error, lost_machine=False)
