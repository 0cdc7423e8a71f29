"""One step of a store's life, gone through again and again, each time with another fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import state_machine as machine
from support.crash import Call, SystemCalls, copy_store
from support.oracle import Snapshot, Tally, contents, n_doubled, tally

from actlas.store.errors import NotExtractedError
from actlas.store.objects.local import LocalObjects
from actlas.store.store import open_store
from actlas.store.verify.verify import verify

Die = Callable[[machine.Step, Path, int], bool]
"""Runs a step on the store in a folder, dying at a call; False where it ended before."""


class Case:
    """One step of a store's life, what lies there before it, and what after it."""

    def __init__(self, ram: Path, name: str) -> None:
        self.name, self.ram = name, ram
        self.step = machine.LIFE[name][0]
        (ram / "base").mkdir()
        machine.live_until(name, str(ram / "base" / "run.zarr"))
        self.before = self._contents(ram / "base")
        folder = copy_store(ram / "base", ram / "whole")
        with SystemCalls(folder) as calls:
            self.step(str(folder / "run.zarr"), "whole")
        self.calls = calls.seen
        self.after = self._contents(folder)
        assert n_doubled(self.after) == 0
        self.tally = Tally()

    def _contents(self, folder: Path) -> dict[str, Any]:
        return contents(folder / "run.zarr") if (folder / "run.zarr").exists() else {}

    def try_calls(self, die: Die, step: int = 1) -> int:
        """Die at one call after the other; return how many deaths there were.

        Past the last call is tried too: nobody dies there.
        """
        n_deaths = 0
        for n in [*range(0, len(self.calls), step), len(self.calls)]:
            folder = copy_store(self.ram / "base", self.ram / f"{n}")
            n_deaths += die(self.step, folder, n)
            self.check_what_is_left(folder / "run.zarr", n)
            self.resume(folder / "run.zarr", n)
            shutil.rmtree(folder)
        assert self._contents(self.ram / "base") == self.before, "a file was changed in place"
        return n_deaths

    def check_what_is_left(self, path: Path, n: int) -> None:
        """Check that what is visible is whole, and rows without a receipt cannot be read."""
        at = f"{self.name}, {self.where(n)}"
        if self.name == "plan":
            assert not path.exists() or self._contents(path.parent) == self.after, at
            return
        LocalObjects(path).sweep()  # what was staged may be torn
        found = Snapshot(path)
        assert found.broken_promises() == [], at
        left = [*found.contents.items(), *found.leftovers]
        torn = [key for key, value in left if self.after.get(key) != value]
        assert not torn, (at, torn)
        store = open_store(path)
        array = store.activations[machine.HOOKPOINT]
        for shard in store.missing():
            with pytest.raises(NotExtractedError):
                array[slice(*store.shard_range(shard))]
        if n % 4 == 0:
            assert verify(store).ok, at

    def resume(self, path: Path, n: int) -> None:
        """Do the same again, as a driver would, and compare with what a whole run gives."""
        at = f"{self.name}, {self.where(n)}"
        if self.name == "plan" and path.exists():
            open_store(path)
        else:
            self.step(str(path), "after")
        found = Snapshot(path)
        self.tally += tally(found.contents, self.after)
        assert found.contents == self.after, at
        assert found.broken_promises() == [], at
        if n % 4 == 0:
            if self.name == "encode a shard":
                machine.encode_all(str(path), "after")
                machine.finish_codes(str(path), "after")  # sweeps what dead workers left
            report = verify(open_store(path), full=True)
            assert report.ok and not report.unclaimed, (at, report)

    def where(self, n: int) -> str:
        call: Call | str = self.calls[n] if n < len(self.calls) else "no call"
        return f"call {n} of {len(self.calls)}, about {call}"
