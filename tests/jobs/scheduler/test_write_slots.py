"""WriteSlots to write: never more writers than places, and a dead one's place is free at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.jobs import options, wait_until
from support.workers import check_whole, fake_store, make_fake

from actlas.jobs.run.run import run_extraction
from actlas.jobs.scheduler import worker_loop as turns
from actlas.jobs.scheduler.protocols import Done
from actlas.jobs.scheduler.worker_loop import WorkerLoop, WriteSlots, write_slots
from actlas.store.errors import EXIT_DONE, RunFaultError

HOLD = """
import sys, time
from pathlib import Path
from actlas.jobs.scheduler.worker_loop import WriteSlots
with WriteSlots(1, Path(sys.argv[1]), 60.0).slot():
    print("held", flush=True)
    time.sleep(60)
"""


def polled(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the times at which this process asks for a place, from now on."""
    real, polls = turns._lock, list[float]()
    monkeypatch.setattr(
        turns, "_lock", lambda file: (polls.append(time.monotonic()), real(file))[1]
    )
    return polls


@pytest.mark.parametrize("n_places", [1, 2])
def test_never_more_than_places(tmp_path: Path, n_places: int) -> None:
    """The first to have places wait until all places are taken."""
    lock, inside, most, n_turns = threading.Lock(), 0, 0, 0
    taken = threading.Barrier(n_places)

    def write() -> None:
        nonlocal inside, most, n_turns
        for _ in range(4):
            with WriteSlots(n_places, tmp_path, 60.0).slot():
                with lock:
                    inside += 1
                    most = max(most, inside)
                    is_first = n_turns == 0
                if is_first:
                    taken.wait(50)
                time.sleep(0.002)
                with lock:
                    inside -= 1
                    n_turns += 1

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, n_turns) == (n_places, 24)


@pytest.mark.chaos
def test_a_killed_holders_place_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waited: list[float] = []
    polls = polled(monkeypatch)

    def wait() -> None:
        with WriteSlots(1, tmp_path, 60.0).slot() as seconds:
            waited.append(seconds)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: len(polls) > 3)
    assert not waited, "two held one place"
    at_least = time.monotonic() - polls[0]
    os.kill(holder.pid, signal.SIGKILL)
    wait_until(lambda: bool(waited), 30)
    thread.join()
    holder.communicate()
    assert waited[0] >= at_least


def test_a_holder_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    mine = WriteSlots(1, tmp_path, 0.05)
    with mine.slot(), WriteSlots(1, tmp_path, 0.05).slot() as waited:
        assert waited > 0.05
    with mine.slot() as waited:
        assert waited == 0, "the place was given up twice"


def test_a_folder_of_someone_elses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"actlas-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFaultError, match="expected a folder of this user"):
        write_slots(options(writers_per_machine=1))


def test_the_wait_is_in_the_shards_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.tempfile, "gettempdir", lambda: str(tmp_path))
    store = fake_store(tmp_path / "job")
    run = options(writers_per_machine=1)
    own = write_slots(run)
    assert own is not None
    assert write_slots(options()) is None
    hand = WorkerLoop(make_fake(store.path, run), "worker", store.path, write_slots(run))
    polls = polled(monkeypatch)
    with own.slot():
        polls.clear()
        outcomes: list[object] = []
        thread = threading.Thread(target=lambda: outcomes.append(hand.attempt(0)))
        thread.start()
        wait_until(lambda: len(polls) > 3)
        assert store.done() == frozenset()
        at_least = time.monotonic() - polls[0]
    thread.join()
    done = outcomes[0]
    assert isinstance(done, Done)
    assert done.run["turn_wait_s"] >= at_least
    assert done.run["write_s"] < done.seconds
    assert run_extraction(store, run, make_fake).exit_code == EXIT_DONE
    check_whole(store)
