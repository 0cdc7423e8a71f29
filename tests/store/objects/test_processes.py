"""Whether the process that holds a lease or left a file still runs, wherever it is asked.

The oracle is the kernel: a process that this test started is alive until the test has killed it and
waited for its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.crash import ram_folder
from support.namespaces import SURROUNDINGS, in_surroundings, open_to_others, require

from actlas.store.ledger import lease
from actlas.store.objects import leftovers, processes
from actlas.store.objects.local import LocalObjects

HOLDS = """
import sys, time
from pathlib import Path
from actlas.store.ledger import lease
from actlas.store.objects.leftovers import beside
from actlas.store.objects.local import LocalObjects
folder = Path(sys.argv[1])
lease._acquire(LocalObjects(folder), print, 0, 1000)
beside(folder / "out").mkdir()
print("held", flush=True)
time.sleep(600)
"""
ASKS = """
import json, sys
from pathlib import Path
from actlas.store.ledger import lease
from actlas.store.objects.leftovers import PART, leftovers
from actlas.store.objects.local import LocalObjects
folder = Path(sys.argv[1])
free = lease.holder(LocalObjects(folder)) is None
print(json.dumps([free, len(leftovers(folder / "out", PART))]))
"""
PROVABLE = {"none", "another user", "hidepid=1", "hidepid=2", "hidepid=4"}
"""Where the end of a process of this PID namespace can be proved. (In another time namespace the
end is known too, but the names of leftovers hold the namespace.)"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter."""
    with ram_folder() as ram:
        open_to_others(ram)
        yield ram


def started(code: str, folder: Path, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def asked(name: str, folder: Path) -> tuple[bool, int]:
    """Whether the lease counts as free, and the number of leftovers that would be swept."""
    process = started(ASKS, folder, *in_surroundings(name))
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0, out
    free, n_left = json.loads(out)
    return free, n_left


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_only_what_has_ended_counts_as_ended(name: str, folder: Path) -> None:
    require(name)
    holder = started(HOLDS, folder)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        assert asked(name, folder) == (False, 0), "it lives"
    finally:
        holder.kill()
        holder.communicate()
    ended = name in PROVABLE
    assert asked(name, folder) == (ended or name == "a time namespace", int(ended))


def test_a_namespace_whose_proc_is_another_ones(folder: Path) -> None:
    """Its process 1 is not the process 1 that ``/proc`` shows, which lives for ever."""
    name = "a PID namespace that sees the other's /proc"
    require(name)
    script = f"""
        "$0" -c '{HOLDS}' {folder} & until [ -e {folder}/ledger/lease/00000001.json ]; do :; done
        "$0" -c '{ASKS}' {folder}; kill -9 $!; wait $!; "$0" -c '{ASKS}' {folder}
    """.replace('"out"', "chr(111)").replace('"held"', "1")
    command = in_surroundings(name, "sh", "-c", script, sys.executable)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [free for free, _ in answers] == [False, True], done


def this(**changes: Any) -> dict[str, Any]:
    return {**processes.this_process(), **changes}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_is_told_of_a_process() -> None:
    told = processes.state_of
    assert told(this()) == "running"
    old = this()
    del old["time_namespace"]  # as earlier versions wrote it
    assert told(old) == "running"
    assert told(this(process_start="1")) == "ended", "the id is another's by now"
    for unknown in ({"boot": "another"}, {"boot": None}, {"host": "elsewhere"}, {"host": None}):
        assert told(this(**unknown)) == "unknown"
    for unknown in ({"pid_namespace": None}, {"pid_namespace": "pid:[1]"}, {"process_start": None}):
        assert told(this(**unknown)) == "unknown"
    for pid in (0, -1, True, "1", None, 1 << 80, 1.0):
        assert told(this(pid=pid)) == "unknown"
    assert told({}) == "unknown"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_exited_process_that_nobody_waited_for_has_ended() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    started = processes._start_and_state(str(child))[0]
    assert processes.state_of(this(pid=child, process_start=started)) == "ended"
    os.waitpid(child, 0)
    assert processes.state_of(this(pid=child, process_start=started)) == "ended"


def test_what_cannot_be_read_equals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without /proc: two unknown namespaces are not one, in leases and in names of files."""
    monkeypatch.setattr(processes, "_boot", lambda: None)
    assert processes.state_of(processes.this_process()) == "unknown"
    assert processes.state_of_tag(processes.tag()) == "unknown"
    monkeypatch.undo()
    monkeypatch.setattr(processes, "_namespace", lambda kind: None)
    assert processes.state_of(processes.this_process()) == "unknown"
    assert processes.state_of_tag(processes.tag()) == "unknown"


def test_a_lease_that_this_process_lost_hold_of_is_free(tmp_path: Path) -> None:
    here = LocalObjects(tmp_path)
    held = lease._acquire(here, print, 0, 1000)
    assert lease.holder(here) is not None
    held._stop.set()
    lease._HELD_HERE.discard((here.url, held.number))
    assert lease.holder(here) is None


@pytest.mark.parametrize("name", ["out", "ü" * 120, "x" * 255, "a [b] *.zarr"])
def test_names_of_temporary_files(name: str, tmp_path: Path) -> None:
    """They fit where the final name fits, and are found again by it alone."""
    final = tmp_path / name
    part = leftovers.beside(final)
    part.write_text("half")
    assert leftovers.is_temporary(part.name, final)
    assert not leftovers.is_temporary(part.name, tmp_path / "other")
    assert leftovers.leftovers(final, "part") == [], "this process lives"
    dead = part.with_name(part.name.replace(f"-{os.getpid()}-", f"-{ended_pid()}-"))
    part.rename(dead)
    assert leftovers.leftovers(final, "part") == [dead]
    assert leftovers.leftovers(final, "old") == []
    leftovers.sweep(final)
    assert list(tmp_path.iterdir()) == []


def ended_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_staged_files_are_swept_but_for_those_of_the_living(tmp_path: Path) -> None:
    here, staging = LocalObjects(tmp_path), tmp_path / "ledger/staging"
    staging.mkdir(parents=True)
    ours, end = processes.tag(), "0123456789abcdef.part"
    dead = ours.replace(f"-{os.getpid()}-", f"-{ended_pid()}-")
    parent = processes._start_and_state(str(os.getppid()))[0]
    living = f"{ours.split('-')[0]}-{os.getppid()}-{parent}"
    elsewhere = f"0123456789ab-{os.getpid()}-77"
    names = {
        f"{living}.{end}": True,
        f"{ours}.{end}": False,  # it writes nothing now
        f"{elsewhere}.{end}": True,
        f"{dead}.{end}": False,
        f"{elsewhere}.1{end}": False,
        end: False,  # of an earlier version
    }
    for name in names:
        (staging / name).write_text("half")
    os.utime(staging / f"{elsewhere}.1{end}", (1e9, 1e9))
    assert here.sweep() == 4
    assert {path.name for path in staging.iterdir()} == {n for n, stays in names.items() if stays}
    assert here.create("a/b", [b"x"])
    assert len(list(staging.iterdir())) == 2
