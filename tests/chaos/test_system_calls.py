"""Death at every system call that changes something: the next attempt ends where none had died."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import state_machine as machine
from support.crash import Doomed, SystemCalls, copy_store, dies, overwrite, ram_folder
from support.oracle import Snapshot, Tally, broken_promises, files, tally

from actlas.jobs.scheduler.faults import FaultBudget
from actlas.pipeline.options import RunOptions
from actlas.store.errors import StoreNotFoundError
from actlas.store.ledger import lease
from actlas.store.store import open_store
from actlas.store.verify.verify import verify
from chaos.case import Case

pytestmark = pytest.mark.chaos

FAULT = "kill at every write, fsync, link and rename"
CONTENT = [name for name in machine.LIFE if name not in ("lease", "quarantine")]


@pytest.fixture
def ram() -> Iterator[Path]:
    with ram_folder() as folder:
        yield folder


@pytest.mark.parametrize("name", CONTENT)
def test_death_at_every_call_of_a_step(chaos: Any, ram: Path, monkeypatch: Any, name: str) -> None:
    """In this process, where nothing that it does after its death has any effect."""
    monkeypatch.setattr(
        "actlas.store.write.array_writer.COMMIT_THREADS", 1
    )  # the same order every time
    case = Case(ram, name)
    assert len({call.name for call in case.calls}) >= 6

    def die(step: machine.Step, folder: Path, at: int) -> bool:
        return dies(lambda: step(str(folder / "run.zarr"), "doomed"), folder, at)

    n = case.try_calls(die)
    chaos.record(FAULT, n, **case.tally._asdict())
    assert n == len(case.calls)


def test_sigkill(chaos: Any, ram: Path) -> None:
    """A process of its own with its threads, really killed: at some calls, or at every one."""
    doomed = Doomed(
        "support.state_machine", *(chaos.count(0, 1) * ["actlas.analysis.features.encode"])
    )
    names = CONTENT[: chaos.count(2, len(CONTENT))]
    for i, name in enumerate(names):
        (ram / str(i)).mkdir()
        case = Case(ram / str(i), name)

        def die(step: machine.Step, folder: Path, at: int) -> bool:
            return doomed.dies(step, folder, at, str(folder / "run.zarr"), "doomed")

        n = case.try_calls(die, step=chaos.count(12, 1))
        chaos.record("SIGKILL at a write, fsync, link or rename", n, **case.tally._asdict())
        assert n == len(range(0, len(case.calls), chaos.count(12, 1)))
        assert name != "plan" or not list(ram.rglob("*.planning")), "a dead planner's work is swept"


@pytest.mark.parametrize("noise", [0, 1], ids=["same bits", "other bits"])
def test_death_at_every_call_of_a_repair(
    chaos: Any, ram: Path, monkeypatch: Any, noise: int
) -> None:
    """What was whole stays as it is at every moment; the next repair ends the work."""
    monkeypatch.setattr("actlas.store.write.array_writer.COMMIT_THREADS", 1)
    path = ram / "base" / "run.zarr"
    machine.plan_store(str(path), "first")
    machine.commit_all(str(path), "first")
    machine.planned_again(monkeypatch, path)
    well, healthy = Snapshot(path), files(path)
    hurt = [f"{p}/c/1{e}" for p, e in (("activations/resid_post.0", "/0"), ("rows/doc_idx", ""))]
    hurt += ["statistics/resid_post.0/c/2/0/0", "documents/start/c/0", "zarr.json"]
    for key in hurt:
        overwrite(path / key, healthy[key][:-3])
    whole = copy_store(ram / "base", ram / "whole")
    with SystemCalls(whole) as calls:
        machine.mend(str(whole / "run.zarr"), noise)
    fits = [*hurt, "statistics/resid_post.0/c/1/0/0"]  # of rows with other bits, other sums
    counted, n = Tally(), 0
    for at in range(0, len(calls.seen), chaos.count(12, 1)):
        folder = copy_store(ram / "base", ram / f"{at}")
        store = folder / "run.zarr"
        n += dies(lambda store=store: machine.mend(str(store), noise), folder, at)
        left = files(store)
        assert all(left[key] == data for key, data in healthy.items() if key not in fits), at
        made, attempted = machine.mend(str(store), noise)
        assert made.exit_code == 0 and set(attempted) <= {("extract", 1), ("extract", 2)}, at
        assert verify(open_store(store), full=True).ok
        found = Snapshot(store)
        assert found.broken_promises() == []
        if noise == 0:
            counted += tally(found.contents, well.contents)
            assert found.contents == well.contents, at
        else:
            opened = open_store(store)
            ours = [
                machine.shard_rows(opened, 1, k)[0][machine.HOOKPOINT].tobytes() for k in (0, 1)
            ]
            assert opened.activations[machine.HOOKPOINT][32:64].tobytes() in ours, at
        shutil.rmtree(folder)
    chaos.record("kill at a write, fsync, rename or link of a repair", n, **counted._asdict())
    assert n >= len(range(0, len(calls.seen), chaos.count(12, 1))) - 1


def test_the_lease_of_the_dead_is_free(chaos: Any, ram: Path) -> None:
    """At whatever call a driver died while it took, beat or gave back its lease."""
    case = Case(ram, "lease")
    for at in range(len(case.calls)):
        folder = copy_store(ram / "base", ram / f"{at}")
        path = folder / "run.zarr"
        assert dies(lambda path=path: machine.hold_lease(str(path), "doomed"), folder, at)
        objects = open_store(path).objects
        assert lease.holder(objects) is None, case.where(at)
        objects.sweep()
        with lease.hold(objects, timeout_s=0.01):
            assert lease.holder(objects) is not None
        assert lease.holder(objects) is None
    chaos.record(FAULT, len(case.calls))


def test_quarantine_is_there_or_not(chaos: Any, ram: Path) -> None:
    case = Case(ram, "quarantine")
    found = set()
    for at in range(len(case.calls) + 1):
        folder = copy_store(ram / "base", ram / f"{at}")
        path = folder / "run.zarr"
        dies(lambda path=path: machine.quarantine(str(path), "doomed"), folder, at)
        ledger = FaultBudget(open_store(path).objects, "extract", RunOptions())
        there = ledger.quarantined()
        found.add(len(there))
        assert not there or there[0].error == "poison", case.where(at)
        machine.quarantine(str(path), "after")
        assert set(ledger.quarantined()) == {0}
        assert verify(open_store(path), full=True).ok
    assert found == {0, 1}
    chaos.record(FAULT, len(case.calls))


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
            for step, between in machine.LIFE.values():
                for do in (*between, step):
                    do(str(ram / "base" / "run.zarr"), "watched")
    finally:
        watching = False
    counted = [call.name.replace("replace", "rename") for call in calls.seen]
    for name in ("open", *events.values()):
        assert counted.count(name) == reported.count(name) > 0, name


def test_a_store_that_is_not_there_is_not_half_there(ram: Path) -> None:
    """The control of the check itself: a torn plan is seen."""
    assert dies(lambda: machine.plan_store(str(ram / "run.zarr"), "doomed"), ram, 200)
    with pytest.raises(StoreNotFoundError):
        open_store(ram / "run.zarr")
    machine.plan_store(str(ram / "other.zarr"), "whole")
    plan = ram / "other.zarr" / "ledger" / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert broken_promises(files(ram / "other.zarr")) != []
