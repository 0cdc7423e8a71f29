"""A disk that is full, read-only, over quota or failing, at every call that changes something."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import state_machine as machine
from support.crash import SystemCalls, copy_store, ram_folder, refused
from support.oracle import Tally, contents, tally

from actlas.store.errors import EXIT_RESUME, EXIT_USAGE, RunFaultError
from actlas.store.store import open_store
from actlas.store.verify.verify import verify
from chaos.case import Case

pytestmark = pytest.mark.chaos

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


@pytest.fixture
def ram() -> Iterator[Path]:
    with ram_folder() as folder:
        yield folder


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", machine.LIFE)
def test_a_disk_that_fails_at_any_call(chaos: Any, ram: Path, name: str, code: int) -> None:
    """A run fault, typed, that stops the run; nothing is harmed; the same again goes on."""
    case = Case(ram, name)
    total = len(case.calls)
    points = sorted(chaos.rng.sample(range(total), min(total, chaos.count(5, total))))
    n_refused = 0
    for at in points:
        folder = copy_store(ram / "base", ram / f"{at}")
        path = folder / "run.zarr"
        try:
            with SystemCalls(folder, refused(at, code)):
                case.step(str(path), "refused")
        except RunFaultError as error:
            n_refused += 1
            n_exit = EXIT_USAGE if code == errno.EROFS else EXIT_RESUME
            assert error.details["errno"] == code and error.exit_code == n_exit
            assert os.strerror(code) in str(error)
            assert ("repeat the same call" in str(error)) == (n_exit == EXIT_RESUME)
        if name == "plan" and code in (errno.ENOSPC, errno.EDQUOT):
            assert not list(folder.glob(".*")), (case.where(at), "left behind")
        if name in ("lease", "quarantine"):
            case.step(str(path), "after")
            assert verify(open_store(path), full=True).ok, case.where(at)
        else:
            case.check_what_is_left(path, at)
            case.resume(path, at)
        shutil.rmtree(folder)
    fault = f"{errno.errorcode[code]} at a write, fsync, link, rename, unlink or mkdir"
    chaos.record(fault, n_refused, injected=len(points), **case.tally._asdict())
    assert contents(ram / "base" / "run.zarr") == case.before if case.before else True
    assert n_refused >= len(points) * 3 // 5, "some are forgiven, such as of a beat; most are not"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(chaos: Any, small_disk: Path, tmp_path: Path) -> None:
    """A small file system with ever more room, from none to enough: each time all that fits."""
    whole = tmp_path / "whole.zarr"
    machine.plan_store(str(whole), "whole")
    planned = copy_store(tmp_path / "whole.zarr", tmp_path / "planned.zarr")
    machine.commit_all(str(whole), "whole")
    expected = contents(whole)
    path, ballast = small_disk / "run.zarr", small_disk / "ballast"
    counted, n_full, rooms = Tally(), 0, chaos.count(5, 60)
    for i in range(rooms):
        shutil.copytree(planned, path)
        space = os.statvfs(small_disk)
        room = i * 200_000 // rooms // space.f_frsize
        ballast.write_bytes(b"\0" * ((space.f_bavail - room) * space.f_frsize))
        before = contents(path)
        try:
            machine.commit_all(str(path), "full")
        except RunFaultError as error:
            n_full += 1
            assert error.details["errno"] == errno.ENOSPC
        assert before.items() <= contents(path).items()
        assert verify(open_store(path), full=True).ok
        ballast.unlink()
        open_store(path).objects.sweep()
        machine.commit_all(str(path), "after")
        counted += tally(contents(path), expected)
        shutil.rmtree(path)
    chaos.record("a small file system, full", n_full, injected=rooms, **counted._asdict())
    assert n_full >= rooms // 2 and counted == Tally()
