"""Drivers in processes of their own: killed, interrupted, two at once, and their leases."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from support.jobs import attempted, plant
from support.processes import Driver, marked, until
from support.runs import FEW, MANY, SMALL, Size, planned
from support.workers import attempts, open_gate

from actlas.store.errors import EXIT_DONE, EXIT_RESUME
from actlas.store.ledger import lease
from actlas.store.store import Store
from chaos.conftest import Oracles, Start
from chaos.count import NONE, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos

ELSEWHERE = {"ACTLAS_TEST_HOST": "elsewhere", "ACTLAS_TEST_STANDSTILL": "1"}
HERE = {"ACTLAS_TEST_STANDSTILL": "1"}


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


class Kills:
    """Drivers of one store killed one after the other, by the same command each time."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store, self.rng = store, rng
        self.hits = self.taken_over = self.run_again = self.waited = 0
        self.longest_resume_s = 0.0

    def kill(self, driver: Driver, longest_s: float) -> bool:
        """Kill a driver at a random time; False where it had come to its end."""
        folder, before = Path(self.store.path).parent, receipts(self.store)
        n, killed_one = len(attempts(folder)), self.hits > 0
        before_it = lease.highest(self.store.objects)
        self._wait(driver, longest_s)
        hit = driver.kill()
        self.waited += "holds this store" in driver.said()
        self.hits += hit
        took_over = killed_one and lease.highest(self.store.objects) > before_it
        if took_over:
            file = Path(self.store.path, f"ledger/lease/{before_it + 1:08d}.json")
            self.taken_over += 1
            delay = file.stat().st_mtime - driver.started
            self.longest_resume_s = max(self.longest_resume_s, delay)
        now = receipts(self.store)
        self.run_again += sum(now.get(shard) != receipt for shard, receipt in before.items())
        self.run_again += sum(shard in before for shard in attempted(folder)[n:])
        return hit

    def _wait(self, driver: Driver, longest_s: float) -> None:
        """Half of the times from its start on, else from its first shard on."""
        n = len(attempts(Path(self.store.path).parent))
        if self.rng.random() < 0.5:
            folder = Path(self.store.path).parent
            until(lambda: len(attempts(folder)) > n or driver.code() is not None, 60)
        until(lambda: driver.code() is not None, self.rng.uniform(0, longest_s))


@pytest.mark.parametrize("where", ["inline", "ray"])
def test_a_killed_driver_is_resumed(
    chaos: Chaos,
    start: Start,
    request: pytest.FixtureRequest,
    oracles: Oracles,
    ground: Path,
    where: str,
) -> None:
    wanted = chaos.count(5, 100) if where == "inline" else chaos.count(1, 10)
    begin = start if where == "inline" else request.getfixturevalue("start_on")
    more = [] if where == "inline" else ["--workers=3"]
    size = FEW if chaos.form == "short" else MANY
    hits = taken = again = rounds = waited = 0
    longest, rows, said = 0.0, NONE, []
    while hits < wanted:
        rounds += 1
        store = planned(ground / f"round {rounds}", size, slow_s=0.02)
        kills = Kills(store, chaos.rng)
        while kills.hits < wanted - hits and kills.kill(begin(store.path, *more), 0.4):
            pass
        last = begin(store.path, *more)
        assert last.wait() == EXIT_DONE, last.said()
        hits, taken, again = hits + kills.hits, taken + kills.taken_over, again + kills.run_again
        waited += kills.waited + ("holds this store" in last.said())
        longest = max(longest, kills.longest_resume_s)
        rows += oracles(size).count(store.path)
        said += complaints(store.path)
    chaos.record(
        f"driver SIGKILL, then the same command ({where})",
        hits,
        **rows._asdict(),
        runs=rounds,
        done_shards_run_again=again,
        leases_of_the_dead_taken_over=taken,
        longest_from_start_to_lease_s=longest,
    )
    assert rows == NONE
    assert said == []
    assert again == 0
    assert waited == 0, "the lease of the dead was waited for"


def test_two_drivers_at_once(chaos: Chaos, start: Start, oracles: Oracles, ground: Path) -> None:
    """In the first round the one that works goes on when the others have ended."""
    wanted, rows, said, refused, twice = chaos.count(5, 100), NONE, [], 0, 0
    size = Size(15, 32)
    for n in range(wanted):
        folder = ground / str(n)
        store = planned(folder, size, {3: ["gate"]}, slow_s=0.02)
        if n > 0:
            open_gate(folder)
        drivers = []
        for _ in range(3):
            drivers.append(start(store.path))
            time.sleep(chaos.rng.choice([0, chaos.rng.uniform(0, 0.1)]))
        if n == 0:
            assert until(lambda d=drivers: n_ended(d) == 2, 120) is not None
            open_gate(folder)
        codes = [driver.wait() for driver in drivers]
        assert n > 0 or sorted(codes) == [EXIT_DONE, EXIT_RESUME, EXIT_RESUME]
        assert set(codes) <= {EXIT_DONE, EXIT_RESUME}, [d.said() for d in drivers]
        assert EXIT_DONE in codes, [d.said() for d in drivers]
        for driver, code in zip(drivers, codes, strict=True):
            assert ("one driver at a time may" in driver.said()) == (code == EXIT_RESUME)
        refused += codes.count(EXIT_RESUME)
        twice += len(attempted(ground / str(n))) - store.plan.n_shards
        rows += oracles(size).count(store.path)
        said += complaints(store.path)
    chaos.record(
        "three drivers on one store at once",
        wanted,
        **rows._asdict(),
        refused_with_75=refused,
        shards_attempted_twice=twice,
    )
    assert rows == NONE
    assert said == []
    assert twice == 0
    assert refused >= 2


def n_ended(drivers: list[Driver]) -> int:
    """Return how many of some drivers have ended."""
    return sum(driver.code() is not None for driver in drivers)


def test_a_lease_held_elsewhere(chaos: Chaos, start: Start, oracles: Oracles, ground: Path) -> None:
    """Whether a process of another machine lives shows in its beat alone."""
    wanted, rows, said = chaos.count(1, 10), NONE, []
    shortest = float("inf")
    for n in range(wanted):
        store = planned(ground / str(n), SMALL, {2: ["gate"]})
        theirs = start(store.path, **ELSEWHERE)
        assert until(lambda n=n: len(attempts(ground / str(n))) > 2, 60) is not None
        ours = start(store.path, ACTLAS_TEST_STANDSTILL="60")
        assert ours.wait() == EXIT_RESUME, ours.said()
        assert "process" in ours.said()
        assert "on elsewhere is working on this store" in ours.said()
        assert theirs.code() is None
        assert theirs.kill()
        open_gate(ground / str(n))
        ours = start(store.path, **HERE)
        assert ours.wait() == EXIT_DONE, ours.said()
        assert "on elsewhere holds this store; waiting 1 s" in ours.said()
        file = Path(store.path, "ledger/lease/00000002.json")
        shortest = min(shortest, file.stat().st_mtime - ours.started)
        rows += oracles(SMALL).count(store.path)
        said += complaints(store.path)
    chaos.record(
        "a lease from another machine, its holder alive, then dead",
        2 * wanted,
        **rows._asdict(),
        shortest_wait_for_a_dead_one=f"{shortest:.1f} s of 1 s",
    )
    assert (rows, said) == (NONE, [])
    assert shortest >= 1


def test_a_frozen_driver_that_lost_its_lease(
    chaos: Chaos, start: Start, oracles: Oracles, ground: Path
) -> None:
    """It stands still, another takes over, it wakes: it begins nothing more and says why."""
    wanted, rows, said = chaos.count(1, 20), NONE, []
    for n in range(wanted):
        # Slow beside its beats, of which it misses the first that it can: it begins few more.
        store = planned(ground / str(n), SMALL, slow_s=1.0)
        theirs = start(store.path, **ELSEWHERE)
        assert until(lambda n=n: len(attempts(ground / str(n))) > 1, 60) is not None
        time.sleep(chaos.rng.uniform(0, 1.0))
        theirs.signal(signal.SIGSTOP)
        ours = start(store.path, **HERE)
        assert until(lambda o=store.objects: lease.highest(o) == 2, 60) is not None
        n_theirs = theirs_begun(store, theirs)
        theirs.signal(signal.SIGCONT)
        assert theirs.wait() == EXIT_RESUME, theirs.said()
        assert "another driver took over the lease" in theirs.said()
        plant(ground / str(n))
        assert ours.wait() == EXIT_DONE, ours.said()
        assert theirs_begun(store, theirs) - n_theirs <= 3, "it went on without its lease"
        rows += oracles(SMALL).count(store.path)
        said += complaints(store.path)
    chaos.record("a frozen driver that wakes when its lease is another's", wanted, **rows._asdict())
    assert (rows, said) == (NONE, [])


def theirs_begun(store: Store, driver: Driver) -> int:
    """Return how many shards a driver in this process alone has begun."""
    lines = attempts(Path(store.path).parent)
    return sum(int(line.split()[1]) == driver.pid for line in lines)


SIGNALS = [
    *(("inline", name, times) for name in ("SIGINT", "SIGTERM") for times in (1, 2)),
    *(("ray", name, times) for name in ("SIGTERM", "SIGINT") for times in (1, 2)),
]


@pytest.mark.parametrize(("where", "name", "times"), SIGNALS)
def test_signals(
    chaos: Chaos,
    start: Start,
    oracles: Oracles,
    ground: Path,
    where: str,
    name: str,
    times: int,
) -> None:
    """The first drains, the second ends at once; no process is left, and nothing is lost."""
    if where == "ray" and (name, times) != ("SIGTERM", 1) and chaos.form == "short":
        pytest.skip("in the long form: each starts a Ray of its own")
    store = planned(ground / "run", FEW, {0: ["hang"]} if times == 2 else {}, slow_s=0.5)
    options = ["--executor=inline"] if where == "inline" else ["--workers=2"]
    driver = start(store.path, *options, fresh=where == "ray")
    assert until(lambda: len(attempts(ground / "run")) >= 1, 90) is not None
    time.sleep(chaos.rng.uniform(0, 0.5))
    began = time.monotonic()
    # Ctrl-C goes to the whole group, as a terminal sends it; SIGTERM to the process, as a
    # scheduler does.
    driver.signal(getattr(signal, name), group=name == "SIGINT")
    assert until(lambda: f"{name}: finishing the shards in flight" in driver.said(), 60) is not None
    if times == 2:
        driver.signal(getattr(signal, name), group=name == "SIGINT")
    code = driver.wait(60)
    drained_s = time.monotonic() - began
    left_s = until(lambda: not marked(driver.mark), 60)
    left = marked(driver.mark)
    held = lease.holder(store.objects)
    done = receipts(store)
    plant(ground / "run")
    last = start(store.path)
    assert last.wait() == EXIT_DONE, last.said()
    again = sum(receipts(store)[shard] != receipt for shard, receipt in done.items())
    rows = oracles(FEW).count(store.path)
    said = complaints(store.path)
    chaos.record(
        f"{name}{', twice' if times == 2 else ''} ({where})",
        1,
        **rows._asdict(),
        longest_until_it_ended_s=drained_s,
        processes_left=len(left),
        longest_until_all_processes_were_gone_s=left_s or 60.0,
        done_shards_run_again=again,
    )
    assert code == EXIT_RESUME, driver.said()
    assert "Traceback" not in driver.said()
    assert drained_s < 55, "what hangs for a minute was waited for"
    assert left == {}
    assert held is None
    assert again == 0
    assert (rows, said) == (NONE, [])
    if times == 1:
        assert driver.told().startswith("stopped: ")
        assert 0 < len(done) < store.plan.n_shards
