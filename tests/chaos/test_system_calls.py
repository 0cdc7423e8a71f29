"""Death at every system call that changes something: the next attempt ends where none had died."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import life
from support.crash import (
    Call,
    Doomed,
    SystemCalls,
    copy_store,
    dies,
    ram_folder,
)
from support.oracle import Tally, broken_promises, contents, leftovers, tally

from actlas.jobs.ledger import Ledger
from actlas.pipeline.options import RunOptions
from actlas.store import lease
from actlas.store.errors import NotExtractedError, StoreNotFoundError
from actlas.store.objects import LocalObjects
from actlas.store.store import open_store
from actlas.store.verify import verify

pytestmark = pytest.mark.chaos

Die = Callable[[life.Step, Path, int], bool]
"""Runs a step on the store in a folder, dying at a call; False where it ended before."""


@pytest.fixture
def ram() -> Iterator[Path]:
    with ram_folder() as folder:
        yield folder


class Case:
    """One step of a store's life, what lies there before it, and what after it."""

    def __init__(self, ram: Path, name: str) -> None:
        self.name, self.ram = name, ram
        self.step = life.LIFE[name][0]
        (ram / "base").mkdir()
        life.live_until(name, str(ram / "base" / "run.zarr"))
        self.before = self._contents(ram / "base")
        folder = copy_store(ram / "base", ram / "whole")
        with SystemCalls(folder) as calls:
            self.step(str(folder / "run.zarr"), "whole")
        self.calls = calls.seen
        self.after = self._contents(folder)
        self.tally = Tally()

    def _contents(self, folder: Path) -> dict[str, Any]:
        return contents(folder / "run.zarr") if (folder / "run.zarr").exists() else {}

    def try_every_call(self, die: Die) -> int:
        """Die at every call in turn; return how many deaths there were."""
        n = 0
        while True:
            folder = copy_store(self.ram / "base", self.ram / f"{n}")
            died = die(self.step, folder, n)
            self.check_what_is_left(folder / "run.zarr", n)
            self.resume(folder / "run.zarr", n)
            shutil.rmtree(folder)
            if not died:
                assert self._contents(self.ram / "base") == self.before, "changed in place"
                return n
            n += 1

    def check_what_is_left(self, path: Path, n: int) -> None:
        """Whatever is visible is whole, and rows without a receipt cannot be read."""
        at = f"{self.name}, {self.where(n)}"
        if self.name == "plan":
            assert not path.exists() or self._contents(path.parent) == self.after, at
            return
        assert broken_promises(path) == [], at
        LocalObjects(path).sweep()  # what was staged may be torn
        left = [*contents(path).items(), *leftovers(path)]
        torn = [key for key, value in left if self.after.get(key) != value]
        assert not torn, (at, torn)
        store = open_store(path)
        array = store.activations[life.HOOKPOINT]
        for shard in store.missing():
            with pytest.raises(NotExtractedError):
                array[slice(*store.shard_range(shard))]
        assert verify(store).ok, at

    def resume(self, path: Path, n: int) -> None:
        """Do the same again, as a driver would, and compare with what a whole run gives."""
        at = f"{self.name}, {self.where(n)}"
        if self.name == "plan" and path.exists():
            open_store(path)
        else:
            self.step(str(path), "after")
        self.tally += tally(path, self.after)
        assert self._contents(path.parent) == self.after, at
        assert broken_promises(path) == [], at
        if self.name == "encode a shard" and leftovers(path):
            life.encode_all(str(path), "after")
            life.finish_codes(str(path), "after")  # sweeps what dead workers left
        report = verify(open_store(path), full=True)
        assert report.ok and not report.unclaimed, (at, report)

    def where(self, n: int) -> str:
        call: Call | str = self.calls[n] if n < len(self.calls) else "no call"
        return f"death {n} of {len(self.calls)}, about {call}"


@pytest.mark.parametrize("name", [name for name in life.LIFE if name not in ("lease", "quarantine")])
def test_death_at_every_call_of_a_step(chaos: Any, ram: Path, monkeypatch: Any, name: str) -> None:
    """In this process, where nothing that it does after its death has any effect."""
    monkeypatch.setattr("actlas.store.commit.COMMIT_THREADS", 1)  # the same order every time
    monkeypatch.setattr("actlas.store.commit_pooled.COMMIT_THREADS", 1)
    case = Case(ram, name)
    assert len({call.name for call in case.calls}) >= 6

    def die(step: life.Step, folder: Path, at: int) -> bool:
        return dies(lambda: step(str(folder / "run.zarr"), "doomed"), folder, at)

    n = case.try_every_call(die)
    chaos.record("kill at every write, fsync, link and rename", n, **case.tally._asdict())
    assert n == len(case.calls)


def test_sigkill_at_every_call(chaos: Any, ram: Path) -> None:
    """A process of its own with its threads, really killed."""
    doomed = Doomed("support.life", "actlas.store.store")
    names = ["commit a shard"] if chaos.count(0, 1) == 0 else list(life.LIFE)[:7]
    for i, name in enumerate(names):
        (ram / str(i)).mkdir()
        case = Case(ram / str(i), name)

        def die(step: life.Step, folder: Path, at: int) -> bool:
            return doomed.dies(step, folder, at, str(folder / "run.zarr"), "doomed")

        n = case.try_every_call(die)
        chaos.record("SIGKILL at every write, fsync, link and rename", n, **case.tally._asdict())
        assert n == len(case.calls)
        assert name != "plan" or not list(ram.rglob("*.planning")), "a dead planner's work is swept"


def test_the_lease_of_the_dead_is_free(chaos: Any, ram: Path) -> None:
    """At whatever call a driver died while it took, beat or gave back its lease."""
    case = Case(ram, "lease")
    for at in range(len(case.calls)):
        folder = copy_store(ram / "base", ram / f"{at}")
        path = folder / "run.zarr"
        assert dies(lambda path=path: life.hold_lease(str(path), "doomed"), folder, at)
        objects = open_store(path).objects
        assert lease.holder(objects) is None, case.where(at)
        objects.sweep()
        with lease.hold(objects, standstill_s=0.01):
            assert lease.holder(objects) is not None
        assert lease.holder(objects) is None
    chaos.record("kill at every write, fsync, link and rename", len(case.calls))


def test_quarantine_is_there_or_not(chaos: Any, ram: Path) -> None:
    case = Case(ram, "quarantine")
    found = set()
    for at in range(len(case.calls) + 1):
        folder = copy_store(ram / "base", ram / f"{at}")
        path = folder / "run.zarr"
        dies(lambda path=path: life.quarantine(str(path), "doomed"), folder, at)
        ledger = Ledger(open_store(path).objects, "extract", RunOptions())
        there = ledger.quarantined()
        found.add(len(there))
        assert not there or there[0].error == "poison", case.where(at)
        life.quarantine(str(path), "after")
        assert set(ledger.quarantined()) == {0}
        assert verify(open_store(path), full=True).ok
    assert found == {0, 1}
    chaos.record("kill at every write, fsync, link and rename", len(case.calls))


def test_no_call_slips_by(ram: Path) -> None:
    """What Python itself reports of changes to files is what was counted: no other way in."""
    events = {"os.link": "link", "os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "unlink"}
    reported: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event in events and str(ram) in str(arguments[:2]):
            reported.append(events[event])
        if event == "open" and str(ram) in str(arguments[0]):
            _, mode, flags = arguments
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (
                not isinstance(mode, str) and flags & 0o103
            ):
                reported.append("open")

    (ram / "base").mkdir()
    sys.addaudithook(hook)  # it stays, and looks away after this test
    try:
        with SystemCalls(ram) as calls:
            for step, between in life.LIFE.values():
                for do in (*between, step):
                    do(str(ram / "base" / "run.zarr"), "watched")
    finally:
        watching = False
    counted = [call.name.replace("replace", "rename") for call in calls.seen]
    for name in ("open", *events.values()):
        assert counted.count(name) == reported.count(name) > 0, name


def test_a_store_that_is_not_there_is_not_half_there(ram: Path) -> None:
    """The control of the check itself: a torn plan is seen."""
    assert dies(lambda: life.plan_store(str(ram / "run.zarr"), "doomed"), ram, 200)
    with pytest.raises(StoreNotFoundError):
        open_store(ram / "run.zarr")
    life.plan_store(str(ram / "other.zarr"), "whole")
    plan = ram / "other.zarr" / "ledger" / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert broken_promises(ram / "other.zarr") != []
