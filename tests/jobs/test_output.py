"""Output folders and temporary files of runs that were killed: swept at the next run, never before.

The runs are processes that get SIGKILL at each of their system calls in turn. What must lie in the
output folder is written down here, and the hidden names beside it are found by listing.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.crash import SystemCalls, killed, ram_folder

from actlas.jobs.output import check_free, output_folder, write_whole
from actlas.store.errors import StoreExistsError
from actlas.store.objects import leftovers

OLD = {"a.txt": "old", "b.txt": "old"}
NEW = {"a.txt": "new", "c.txt": "new"}


@pytest.fixture
def ram() -> Iterator[Path]:
    with ram_folder() as folder:
        yield folder


def write(out: str, texts: dict[str, str], overwrite: bool = False) -> None:
    with output_folder(out, overwrite=overwrite) as folder:
        for name, text in texts.items():
            with (folder / name).open("w") as file:
                file.write(text)


def held(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.iterdir()} if out.exists() else {}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def dies(ram: Path, at: int, out: Path, overwrite: bool) -> bool:
    """Write new results in a process that is killed at call ``at``; False if it ended before."""
    pid = os.fork()
    if pid == 0:
        try:
            with SystemCalls(ram, killed(at)):
                write(str(out), NEW, overwrite)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("overwrite", [False, True], ids=["first time", "replaced"])
def test_a_run_killed_at_any_call_leaves_nothing_for_long(ram: Path, overwrite: bool) -> None:
    out, before = ram / "results", OLD if overwrite else {}
    at, n_left = 0, 0
    while True:
        if overwrite:
            write(str(out), OLD)
        if not dies(ram, at, out, overwrite):
            break
        n_left += bool(hidden(ram))
        check_free(out, overwrite=True)  # as the next run does before its work
        assert hidden(ram) == [], at
        assert held(out) in (before, NEW), at
        shutil.rmtree(out, ignore_errors=True)
        at += 1
    assert held(out) == NEW
    assert n_left >= 1


def test_what_was_being_replaced_comes_back(ram: Path) -> None:
    """Killed between the renames: without --overwrite the next run finds the old results."""
    out = ram / "results"
    write(str(out), OLD)
    with SystemCalls(ram) as calls:
        write(str(out), NEW, overwrite=True)
    [first] = [n for n, call in enumerate(calls.seen) if call.path.endswith(".old")][:1]
    shutil.rmtree(out)
    write(str(out), OLD)
    assert dies(ram, first + 1, out, overwrite=True)
    assert not out.exists()
    with pytest.raises(StoreExistsError):
        check_free(out)
    assert held(out) == OLD and hidden(ram) == []


def child(work: Callable[[], object]) -> int:
    """Fork a process that works and then waits to be killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(write, b"done")
        finally:
            signal.pause()
    os.read(read, 4)
    for descriptor in (read, write):
        os.close(descriptor)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_a_living_run_writes_is_left_alone(ram: Path) -> None:
    out, opened = ram / "results", []

    def work() -> None:
        opened.append(output_folder(out))
        (opened[0].__enter__() / "a.txt").write_text("at work")
        (leftovers.new_folder("dry-run", ram) / "b.txt").write_text("at work")
        leftovers.beside(ram / "mask.json").write_text("at work")

    pid = child(work)
    try:
        assert len(hidden(ram)) == 3
        write(str(out), NEW)
        write_whole(ram / "mask.json", "new")
        with leftovers.temporary_folder("dry-run", ram):
            pass
        assert len(hidden(ram)) == 3, "a living run's"
        assert held(out) == NEW
    finally:
        kill(pid)
    check_free(out, overwrite=True)
    write_whole(ram / "mask.json", "newer")
    with leftovers.temporary_folder("dry-run", ram) as folder:
        assert hidden(ram) == [folder.name]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert hidden(ram) == []


def test_a_link_or_a_file_of_such_a_name_is_removed_and_not_followed(ram: Path) -> None:
    (ram / "precious").mkdir()
    (ram / "precious" / "thesis.txt").write_text("years")
    kill(child(lambda: leftovers.beside(ram / "out").symlink_to(ram / "precious")))
    assert len(hidden(ram)) == 1
    check_free(ram / "out")
    assert hidden(ram) == []
    assert (ram / "precious" / "thesis.txt").read_text() == "years"
