"""Cost of opening a store and of its receipts: listing, reading one, reading all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import actlas
from actlas.jobs.run.status import status_of
from actlas.store.format.schema import Receipt
from actlas.store.format.sealing import seal
from actlas.store.ledger.receipts import Receipts, receipt_key
from actlas.store.objects.local import LocalObjects
from actlas.store.write.commit import commit_shard
from benchmarks import harness
from benchmarks.harness import Contender, Measured, alternate

FOLDER = "ledger/receipts/extract"


def fabricate(root: Path, first: Receipt, n_shards: int) -> None:
    """Write sealed copies of the first receipt for all other shards.

    They are not synced one by one, and the arrays that they describe do not exist.
    """
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    rows = first.stop - first.start
    for shard in range(1, n_shards):
        objects = tuple(
            record.model_copy(update={"key": record.key.replace("/c/0", f"/c/{shard}", 1)})
            for record in first.objects
        )
        own = {"shard": shard, "start": shard * rows, "stop": (shard + 1) * rows}
        receipt = first.model_copy(update={**own, "objects": objects})
        (root / receipt_key("extract", shard)).write_bytes(seal(receipt))


def extract_first(path: str) -> Receipt:
    """Commit synthetic rows for the first shard."""
    store = actlas.open(path)
    start, stop = store.shard_range(0)
    rng = np.random.default_rng(0)
    rows = {
        name: rng.standard_normal((stop - start, spec.shape[1]), np.float32).astype(
            spec.numpy_dtype
        )
        for name, spec in store.arrays.activations.items()
    }
    return commit_shard(store, 0, rows, attempt="a-host-name:1234567:0123abcd")


def opened(path: str) -> dict[str, float]:
    """Return the seconds of the first operations on a store, for a new process."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - began
        return result

    def plain() -> int:
        return sum(len((Path(path) / n).read_bytes()) for n in ("zarr.json", "ledger/plan.json"))

    timed("plain", plain)
    store = timed("open", lambda: actlas.open(path))
    timed("repr", lambda: (repr(store), store.plan))
    name = next(iter(store.activations))
    timed("first row", lambda: store.activations[name][0])
    timed("one receipt", lambda: store.receipt(store.plan.n_shards - 1))
    timed("text of a document", lambda: store.documents.text(store.plan.n_documents // 2))
    timed("documents.start", lambda: store.documents.start)
    timed("a document's rows", lambda: store.document(0).activations[name])
    timed("status", lambda: status_of(actlas.open(path)))
    return seconds


def memory_of_all(path: str, n_shards: int, plan_sha256: str) -> int:
    """Return the memory of all receipts, for a new process."""
    receipts = Receipts(LocalObjects(path), "extract", n_shards, plan_sha256)
    receipts.read(1)
    return harness.peak_of(lambda: [receipts.read(shard) for shard in range(1, n_shards)])


def contenders(root: Path, n_shards: int, plan_sha256: str) -> Iterator[Contender]:
    """Yield the contenders that list and read receipts, and plain file reads."""
    receipts = Receipts(LocalObjects(root), "extract", n_shards, plan_sha256)
    folder = root / FOLDER

    def plainly() -> int:
        n_bytes = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                fd = os.open(entry.path, os.O_RDONLY)
                n_bytes += len(os.read(fd, 1 << 20))
                os.close(fd)
        return n_bytes

    def scan() -> int:
        with os.scandir(folder) as entries:
            return sum(1 for _ in entries)

    yield Contender("os.scandir", scan)
    yield Contender("Receipts.done", receipts.done)
    yield Contender("every file, plainly", plainly)
    yield Contender(
        "Receipts.read of each", lambda: [receipts.read(s).shard for s in range(1, n_shards)]
    )


def listed(root: Path, n_shards: int, plan_sha256: str, rounds: int) -> dict[str, Measured]:
    """Time listing and reading, each against its limit."""
    scan, done, plainly, read = contenders(root, n_shards, plan_sha256)
    found = alternate([scan, done], rounds, scan.name) + alternate(
        [plainly, read], max(1, rounds // 2), plainly.name
    )
    return {m.name: m for m in found}
