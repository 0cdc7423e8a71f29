"""SIGTERM and SIGINT while a function of actlas runs: ``except Exception`` does not catch them.

Python's own rule is the oracle: what Ctrl-C raises is ``KeyboardInterrupt``, what ends a process is
``SystemExit``, and neither is an ``Exception``.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import state_machine as machine
from support.jobs import PATHS

import actlas
from actlas.jobs.derived.extremes import units_of
from actlas.jobs.ray.cluster import _own_signal_handler
from actlas.jobs.run import repair as repair_module
from actlas.jobs.run import run as run_module
from actlas.jobs.scheduler import stop as stop_module
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.scheduler.worker_loop import WorkerLoop
from actlas.store.errors import ActlasError, InterruptedRunError, RunFaultError, SignalledExit
from actlas.store.ledger.finished import forget_finished
from actlas.store.store import open_store

RAISES = {signal.SIGTERM: SignalledExit, signal.SIGINT: KeyboardInterrupt}


class Committing:
    """A worker of made-up rows."""

    def __init__(self, path: str, job: str) -> None:
        self._path, self._commit = path, machine.commit_one if job == "rows" else machine.pool_one
        self._receipts = "extract" if job == "rows" else "pooled"

    def extract(self, shard: int, *, attempt: str) -> Any:
        self._commit(self._path, attempt, shard)
        return open_store(self._path).receipts(self._receipts).read(shard)

    def bare_forward_rate(self, shard: int = 0) -> None:
        """There is no model."""


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signals") / "run.zarr"
    machine.save_dictionary(path)
    machine.live_until("index the codes", str(path))
    return path


@pytest.fixture(autouse=True)
def _a_program_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget that another test ran the command line, which owns its process, in this one."""
    monkeypatch.setattr(stop_module, "_owns_process", False)


@pytest.fixture
def path(encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with all but an index and extremes; workers are made up."""
    machine.planned_again(monkeypatch, encoded)
    made = functools.partial(
        run_module.run_extraction,
        make_worker=lambda store, _: Committing(store, "rows"),
        make_pooler=lambda store, _: Committing(store, "pooled"),
    )
    monkeypatch.setattr(run_module, "run_extraction", made)
    mender = functools.partial(machine.Mender, noise=0, attempted=[], job="extract")
    repairing = functools.partial(
        repair_module.repair_at, make_repairer=lambda store, _: mender(store)
    )
    monkeypatch.setattr(repair_module, "repair_at", repairing)
    return Path(shutil.copytree(encoded, tmp_path / "run.zarr"))


def drop(path: Path, job: str, *shards: int) -> None:
    """Make shards of a job missing, as before the job was finished."""
    forget_finished(actlas.open(path).objects, job)
    for shard in shards:
        (path / f"ledger/receipts/{job}/{shard:08d}.json").unlink()


def extract(path: Path) -> None:
    drop(path, "extract", 0, 1, 2)
    actlas.extract(path)


def extract_the_last(path: Path) -> None:
    """The run is done once the signal is handled; the process was told to end all the same."""
    drop(path, "extract", 0)
    actlas.extract(path)


def encode(path: Path) -> None:
    drop(path, f"encode.{machine.FEATURES}", 0, 1)
    actlas.encode_sae(path, machine.FEATURES)


def index(path: Path) -> None:
    actlas.index_sae(path, machine.FEATURES)


def extremes(path: Path) -> None:
    units_of(open_store(path), machine.HOOKPOINT)


def repair(path: Path) -> None:
    file = path / open_store(path).arrays.activations[machine.HOOKPOINT].key(1)
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1])
    actlas.repair(path)


ENTRIES = [extract, extract_the_last, encode, index, extremes, repair]


@pytest.mark.parametrize("number", RAISES, ids=lambda number: number.name)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_a_signal_while_a_function_runs(
    entry: Callable[[Path], None],
    number: signal.Signals,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin, began = WorkerLoop.begin, []

    def signalled(loop: WorkerLoop, shard: int) -> Any:
        began.append(shard)
        assert signal.getsignal(number) != before[number]
        os.kill(os.getpid(), number)
        return begin(loop, shard)

    monkeypatch.setattr(WorkerLoop, "begin", signalled)
    before = {n: signal.getsignal(n) for n in RAISES}
    with pytest.raises(BaseException) as caught:
        entry(path)
    assert type(caught.value) is RAISES[number]
    assert not isinstance(caught.value, Exception)
    assert len(began) == 1, "nothing is begun after the signal"
    assert {n: signal.getsignal(n) for n in RAISES} == before
    if number == signal.SIGTERM:
        assert isinstance(caught.value, SystemExit) and caught.value.code == 75


def test_an_error_after_a_signal_ends_the_process_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(loop: WorkerLoop, shard: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RunFaultError("the disk is full")

    monkeypatch.setattr(WorkerLoop, "begin", fails)
    with pytest.raises(SignalledExit, match="the disk is full") as caught:
        extract(path)
    assert isinstance(caught.value.__cause__, RunFaultError)


def test_no_signal_no_exit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for another, or fails, raises an ordinary error."""
    drop(path, "extract", 0)
    drop(path, f"encode.{machine.FEATURES}", 0)
    with pytest.raises(InterruptedRunError, match="not extracted"):
        actlas.encode_sae(path, machine.FEATURES)
    assert issubclass(InterruptedRunError, ActlasError)

    def fails(loop: WorkerLoop, shard: int) -> Any:
        raise RunFaultError("the disk is full")

    monkeypatch.setattr(WorkerLoop, "begin", fails)
    with pytest.raises(RunFaultError):
        extract_the_last(path) if drop(path, "extract", 1) else actlas.extract(path)


def test_a_second_signal_stops_at_once() -> None:
    for number, raises in RAISES.items():
        before = signal.getsignal(number)
        with pytest.raises(raises), Stop(lambda _: None):  # noqa: PT012 - two signals
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is before


def test_a_thread_handles_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen, begin = {n: signal.getsignal(n) for n in RAISES}, [], WorkerLoop.begin

    def look(loop: WorkerLoop, shard: int) -> Any:
        seen.append({n: signal.getsignal(n) for n in RAISES} == before)
        return begin(loop, shard)

    monkeypatch.setattr(WorkerLoop, "begin", look)
    thread = threading.Thread(target=extract, args=(path,))
    thread.start()
    thread.join()
    assert seen == [True, True, True]


def test_the_handler_that_ray_replaces_is_put_back() -> None:
    def ours(number: int, frame: object) -> None:
        """Does nothing."""

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with _own_signal_handler():
            signal.signal(
                signal.SIGTERM, lambda number, frame: sys.exit(number)
            )  # as ray.init does
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


PROGRAM = """
import os, signal, sys
from pathlib import Path
import actlas
from actlas.jobs.scheduler.worker_loop import WorkerLoop
begin = WorkerLoop.begin
def signalled(loop, shard):
    os.kill(os.getpid(), signal.SIGTERM)
    return begin(loop, shard)
WorkerLoop.begin = signalled
try:
    actlas.index_sae(sys.argv[1], "made")
except Exception:
    print("an ordinary error")
finally:
    print("tidied up", flush=True)
print("lives on")
"""


def test_a_program_that_catches_every_error_ends(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout) == (75, "tidied up\n"), done.stderr
    assert "SIGTERM: stopped" in done.stderr
