"""What it costs that readers hold each chunk against the record of its object in a receipt.

The same store is read with the records and as earlier versions read it: compressed chunks checked
only by the crc32c that they end with, uncompressed ones by the receipt.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.recorded import Recorded
from actlas.store.ledger.guards import JobGuard
from actlas.store.ledger.receipts import EXTRACT
from actlas.store.shards.lazy_array import LazyArray, ShardGuard
from actlas.store.store import Store, open_store
from benchmarks import harness
from benchmarks.harness import Contender, Report, Table, alternate, figure_name
from benchmarks.stores import HOOKPOINT, store_of

BEFORE, NOW = "as earlier versions", "actlas"


@dataclass(frozen=True)
class Case:
    """The sizes; by default 403 MB in four shards of the usual size."""

    n_rows: int = 262_144
    width: int = 768
    shard_rows: int = 65_536
    rounds: int = 11


@dataclass(frozen=True)
class EarlierGuard:
    """A guard that reads no receipt for compressed arrays, and of others only the checksums."""

    guard: ShardGuard
    compressed: bool

    def require(self, shards: NDArray[np.int64]) -> None:
        """Raise if a shard is not done."""
        self.guard.require(shards)

    def record(self, shard: int, key: str) -> Recorded | None:
        """Return no record, or the checksums of uncompressed chunks."""
        if self.compressed:
            return None
        return self.guard.record(shard, key)

    def repaired_since(self, shard: int) -> Callable[[], bool]:
        """Return a function that tells whether the shard was repaired after this call."""
        return self.guard.repaired_since(shard)


def array_of(store: Store, spec: ArraySpec, name: str) -> LazyArray:
    """Return an array of a store that was just opened, for one of the two readers."""
    guard: ShardGuard = JobGuard(store.completion, EXTRACT)
    if name == BEFORE:
        guard = EarlierGuard(guard, spec.checksummed_chunks)
    return LazyArray(store.objects, spec, guard)


def read_whole(folder: Path, path: str, name: str) -> NDArray[Any]:
    """Open a store and read an array from end to end, a shard at a time."""
    store = open_store(folder)
    spec = store.arrays.all()[path]
    array = array_of(store, spec, name)
    sums = [
        array.read(start, min(start + spec.shard_rows, len(array))).view(np.uint8)[::4096].sum()
        for start in range(0, len(array), spec.shard_rows)
    ]
    return np.array(sums)


def read_one_of_each(folder: Path, path: str, name: str) -> NDArray[Any]:
    """Open a store and read one row of every shard, each by its chunk."""
    store = open_store(folder)
    spec = store.arrays.all()[path]
    found: NDArray[Any] = array_of(store, spec, name).take(
        np.arange(7, spec.n_rows, spec.shard_rows)
    )
    return found.view(np.uint8)


READS = (
    ("activations, whole", read_whole, f"activations/{HOOKPOINT}"),
    ("activations, a row of each shard", read_one_of_each, f"activations/{HOOKPOINT}"),
    ("token_id, whole", read_whole, "rows/token_id"),
)


def run(quick: bool) -> Report:
    """Measure reading with and without the receipts' records of every chunk."""
    report = Report("Chunks held against their records")
    case = Case(2048, 64, 512, rounds=1) if quick else Case()
    table = Table(
        "Reading, warm",
        ("read", "profile", "ms", "ms before", "time x", "CPU time x"),
        notes=(
            f"{case.n_rows:,} x {case.width} bfloat16 in shards of {case.shard_rows:,}; each run "
            f"opens the store anew, so it reads the receipts. Medians of {case.rounds} alternating "
            f"rounds. Before: {BEFORE}, which read a receipt only for uncompressed arrays. The "
            "ratio is time now by time before, in the same round: 1 is no cost.",
        ),
    )
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as folder:
        raw = Path(folder) / "rows.bin"
        origin = harness.in_fresh_process(
            "benchmarks.activations:write_rows", path=str(raw), n_rows=case.n_rows, width=case.width
        )
        report.notes.append(f"Rows: {origin}.")
        rows = np.fromfile(raw, ml_dtypes.bfloat16).reshape(case.n_rows, case.width)
        for profile in ("none", "fast", "dense"):
            root = Path(folder) / f"{profile}.zarr"
            store_of(root, rows, profile, case.shard_rows)
            for what, read, path in READS:
                expected = read(root, path, BEFORE)
                contenders = [
                    Contender(
                        name,
                        partial(read, root, path, name),
                        check=partial(np.testing.assert_array_equal, expected),
                    )
                    for name in (BEFORE, NOW)
                ]
                before, now = alternate(contenders, case.rounds, BEFORE)
                ms, ms_before = 1e3 * now.median_s, 1e3 * before.median_s
                times, cpu = 1 / now.ratio, 1 / max(now.cpu_ratio, 1e-9)
                table.rows.append(
                    (what, profile, f"{ms:.2f}", f"{ms_before:.2f}", f"{times:.3f}", f"{cpu:.3f}")
                )
                report.figures[figure_name(profile, what, "times")] = times
    report.tables.append(table)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.records", run))
