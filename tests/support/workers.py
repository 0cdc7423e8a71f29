"""Workers for the tests of the executors: made-up rows, and faults on demand.

What each shard is to suffer is read from ``faults.json`` beside the store, so that it reaches every
process: ``{"3": ["raise"], "5": ["die", "die"]}`` gives one fault per attempt, then none. Every
attempt leaves a line in ``attempts.txt``. ``"noise": true`` makes attempts differ in last bits, as
kernels do that are not reproducible.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.jobs.run.worker import ShardWorker, open_worker
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ModelError, RunFaultError
from actlas.store.format import layout
from actlas.store.format.schema import Receipt
from actlas.store.store import Store, open_store
from actlas.store.verify.repair_shard import repair_shard
from actlas.store.write.commit import commit_shard
from support.stores import create, plan_for, truth, words_columns


class Rate(NamedTuple):
    tokens_per_s: float


class FakeWorker:
    write = staticmethod(commit_shard)

    def __init__(self, path: str, run: RunOptions) -> None:
        self.store = open_store(path)
        self.folder = Path(os.environ.get("ACTLAS_TEST_FOLDER") or Path(path).parent)
        self.run = run
        self.truth = {name: truth(self.store, name) for name in self.store.activations}
        self._slowly("loading")
        if "start" in self.faults():
            raise ModelError("the weights are not those of the plan")

    def faults(self) -> dict[str, Any]:
        file = self.folder / "faults.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        n_before = sum(line.split()[0] == str(shard) for line in attempts(self.folder))
        with (self.folder / "attempts.txt").open("a") as file:
            file.write(f"{shard} {os.getpid()} {attempt}\n")
        faults = self.faults()
        planned = faults.get(str(shard), [])
        if n_before < len(planned):
            suffer(planned[n_before], shard, self.folder)
        self._slowly("computing")
        start, stop = self.store.shard_range(shard)
        t = layout.shard_tokens(self.store.plan.order, self.store.plan.seed, start, stop)
        rows = {name: values[t] for name, values in self.truth.items()}
        if faults.get("noise"):
            rows = {name: rounded(values, attempt) for name, values in rows.items()}
        run = {"n_tokens_fed": stop - start, "forward_s": 0.001, "device": "made-up"}
        self._slowly("writing")
        return self.write(self.store, shard, rows, attempt=attempt, run=run)

    def _slowly(self, phase: str) -> None:
        """Take ``slow_s`` for one phase, which is the computing unless ``slow_in`` names another.

        A phase that is named leaves a line in a file of its name.
        """
        faults = self.faults()
        if faults.get("slow_in", "computing") != phase:
            return
        if "slow_in" in faults:
            with (self.folder / f"{phase}.txt").open("a") as file:
                file.write(f"{os.getpid()}\n")
        time.sleep(faults.get("slow_s", 0))

    def bare_forward_rate(self, shard: int = 0, *, max_seconds: float = 2.0) -> Rate:
        return Rate(1e6)


class FakeMender(FakeWorker):
    write = staticmethod(repair_shard)


def open_together(store: str, run: RunOptions) -> ShardWorker:
    """A worker that is ready only when every worker of the run has opened its own log."""
    worker = open_worker(store, run)
    limit = time.monotonic() + 120
    while len(list(Path(store, "ledger/logs").glob("*-worker.jsonl"))) != run.workers:
        if time.monotonic() > limit:
            raise ModelError(f"not all of {run.workers} workers have started")
        time.sleep(0.02)
    return worker


def rounded(rows: NDArray[Any], attempt: str) -> NDArray[Any]:
    """Return the rows with some last bits turned over, others for each attempt."""
    words = rows.copy().view(f"u{rows.dtype.itemsize}")
    rng = np.random.default_rng(zlib.crc32(attempt.encode()))
    words ^= rng.integers(0, 2, words.shape).astype(words.dtype)
    return words.view(rows.dtype)


def suffer(what: str, shard: int, folder: Path) -> None:
    """Have a fault happen to an attempt at a shard.

    Parameters
    ----------
    what : str
        ``raise``, ``die``, ``hang``, ``memory``, ``freeze N``, ``disk``, ``oserror``, or ``gate``:
        the attempt waits until :func:`open_gate` was called.
    shard : int
        Which shard.
    folder : Path
        Where its faults were planted.
    """
    if what == "raise":
        raise RuntimeError(f"shard {shard} is poison\nwith a second line")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(60)
    if what == "gate":
        while not (folder / "gate.open").exists():
            time.sleep(0.01)
    if what == "memory":
        run_out_of_memory()
    if what.startswith("freeze "):
        freeze_at(int(what.split()[1]))
    if what == "disk":
        raise RunFaultError("the disk is full")
    if what == "oserror":
        raise OSError(28, "No space left on device")


def open_gate(folder: Path) -> None:
    """Let the attempts go on that wait for it, in every process."""
    (folder / "gate.open").touch()


def freeze_at(nth: int) -> None:
    """Stop this process before its nth file gets its final name; SIGCONT wakes it.

    Parameters
    ----------
    nth : int
        From 1, in the order of the calls: which file that is depends on the writer's threads.
    """
    names = itertools.count(1)
    _freeze_where(lambda _: next(names) == nth)


def freeze_before(key: str) -> None:
    """Stop this process before one of its files gets its final name; SIGCONT wakes it.

    Parameters
    ----------
    key : str
        The file's key in the store.
    """
    left = {key}

    def its_turn(final: str) -> bool:
        if not final.endswith(f"/{key}") or not left:
            return False
        left.clear()
        return True

    _freeze_where(its_turn)


def _freeze_where(its_turn: Callable[[str], bool]) -> None:
    """Stop this process before a call that gives a file its final name, where it is chosen."""

    def watched(real: Any) -> Any:
        def call(staged: Any, final: Any, **named: Any) -> Any:
            if its_turn(os.fspath(final)):
                # Sent to the process, it may stop another thread first, and this one goes on.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            return real(staged, final, **named)

        return call

    for name in ("link", "replace"):
        setattr(os, name, watched(getattr(os, name)))


def run_out_of_memory() -> None:
    """Ask for more memory than this process may have, as the operating system sees it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, before[1]))
    try:
        np.ones(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempts(folder: Path) -> list[str]:
    file = folder / "attempts.txt"
    return file.read_text().splitlines() if file.exists() else []


def make_fake(path: str, run: RunOptions) -> FakeWorker:
    return FakeWorker(path, run)


def make_fake_mender(path: str, run: RunOptions) -> FakeMender:
    return FakeMender(path, run)


def fake_store(folder: Path, n_documents: int = 40, shard_rows: int = 64, **changes: Any) -> Store:
    columns = words_columns(3, n_documents, 20)
    folder.mkdir(parents=True, exist_ok=True)
    plan = plan_for(columns, shard_rows=shard_rows, **changes)
    return create(folder / "run.zarr", plan, columns)


def check_whole(store: Store) -> None:
    """Every row is the one that the plan and the made-up model give."""
    assert store.missing() == []
    for shard in range(store.plan.n_shards):
        start, stop = store.shard_range(shard)
        t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
        for name, column in store.shard_columns(shard).items():
            np.testing.assert_array_equal(store.rows.columns[name][start:stop], column)
        for name in store.activations:
            got = store.activations[name][start:stop].astype(np.float32)
            np.testing.assert_array_equal(got, truth(store, name)[t].astype(np.float32))
