"""Shuffled batches, cold, against a sequential read, random rows of a memmap, and a DataLoader."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from actlas.analysis.batches.api import batches
from actlas.store.store import Store
from benchmarks import harness
from benchmarks.harness import Contender, Report, Table, alternate, figure_name
from benchmarks.mixing import mixing_table
from benchmarks.stores import HOOKPOINT, store_of

LIMIT = "sequential read"
OTHERS = {"annbatch": "annbatch", "MosaicML Streaming": "streaming"}


@dataclass(frozen=True)
class Case:
    """The sizes; by default 403 MB in 16 shards."""

    n_rows: int = 262_144
    width: int = 768
    shard_rows: int = 16_384
    batch_size: int = 8_192
    few_batches: int = 2
    """Batches of random rows, which are slow."""
    rounds: int = 5

    @property
    def n_bytes(self) -> int:
        return 2 * self.n_rows * self.width


def sequential(folder: Path) -> int:
    """Read a hookpoint's shards from end to end into an existing buffer."""
    buffer = memoryview(bytearray(8 << 20))
    n_bytes = 0
    for path in sorted(p for p in (folder / "activations" / HOOKPOINT / "c").rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    n_bytes += got
    return n_bytes


def ours(store: Store, case: Case, dtype: torch.dtype, **options: Any) -> NDArray[np.int64]:
    """Iterate over one epoch and return the row numbers in order."""
    stream = batches(
        store,
        HOOKPOINT,
        batch_size=case.batch_size,
        dtype=dtype,
        **options,
    )
    return np.concatenate([batch.rows for batch in stream])


def gather(raw: Path, case: Case, few: int) -> torch.Tensor:
    """Gather batches of random rows from a memory map, in sorted order, and widen them."""
    rows = np.memmap(raw, np.int16, "r", shape=(case.n_rows, case.width))
    rng = np.random.default_rng()
    for _ in range(few):
        index = np.sort(rng.choice(case.n_rows, case.batch_size, replace=False))
        batch = torch.from_numpy(rows[index]).view(torch.bfloat16).to(torch.float32)
    return batch


class RandomRows(torch.utils.data.Dataset[torch.Tensor]):
    """A data set of the rows of a memory map, one row per item."""

    def __init__(self, raw: Path, case: Case) -> None:
        self.rows = np.memmap(raw, np.int16, "r", shape=(case.n_rows, case.width))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.rows[index])).view(torch.bfloat16).float()


def data_loader(raw: Path, case: Case, few: int) -> torch.Tensor:
    """Read batches from a DataLoader that shuffles the rows of a memory map."""
    loader = torch.utils.data.DataLoader(
        RandomRows(raw, case), batch_size=case.batch_size, shuffle=True
    )
    found: Iterator[torch.Tensor] = iter(loader)
    for _ in range(few):
        batch = next(found)
    return batch


def contenders(
    case: Case, store: Store, raw: Path, rows: NDArray[Any]
) -> dict[str, tuple[Contender, int]]:
    """Return the contenders, each with the number of rows that a run gives."""
    folder = Path(store.path)
    cold = partial(harness.evict, folder)
    few = case.few_batches

    def checked(found: NDArray[np.int64]) -> None:
        assert np.array_equal(np.sort(found), np.arange(case.n_rows))

    def first_batch(found: Any) -> None:
        assert found.shape == (case.batch_size, case.width)

    def widths(dtype: torch.dtype, **more: Any) -> Callable[[], Any]:
        return partial(ours, store, case, dtype, **more)

    every = case.n_rows
    stream = batches(store, HOOKPOINT, batch_size=case.batch_size)
    batch = next(iter(stream))
    assert np.array_equal(batch.activations.numpy(), rows[batch.rows].astype(np.float32))
    found = [
        (Contender(LIMIT, partial(sequential, folder), cold), every),
        (Contender("actlas, float32", widths(torch.float32), cold, checked), every),
        (Contender("actlas, bfloat16", widths(torch.bfloat16), cold, checked), every),
        (
            Contender("actlas, no prefetch", widths(torch.float32, prefetch=False), cold, checked),
            every,
        ),
    ]
    if store.plan.compression == "none":
        dropped = partial(harness.evict, raw.parent)
        random = few * case.batch_size
        found += [
            (
                Contender(
                    "memmap, random rows", partial(gather, raw, case, few), dropped, first_batch
                ),
                random,
            ),
            (
                Contender(
                    "DataLoader over memmap",
                    partial(data_loader, raw, case, few),
                    dropped,
                    first_batch,
                ),
                random,
            ),
        ]
    return {contender.name: (contender, n) for contender, n in found}


def speed_table(case: Case, folder: Path, report: Report) -> None:
    """Time an epoch of batches, cold, in each profile."""
    raw = folder / "raw" / "rows.bin"
    raw.parent.mkdir()
    origin = harness.in_fresh_process(
        "benchmarks.activations:write_rows", path=str(raw), n_rows=case.n_rows, width=case.width
    )
    report.notes.append(f"Rows: {origin}.")
    # Read, not mapped: mapped pages are not dropped from the cache.
    rows = np.fromfile(raw, ml_dtypes.bfloat16).reshape(case.n_rows, case.width)
    table = Table(
        "Shuffled batches, cold",
        ("reader", "profile", "GB/s", "rows/s", "of sequential", "CPU s/GB"),
        notes=(
            f"GB/s of raw bytes and rows a second (median of {case.rounds}): {case.n_rows:,} x "
            f"{case.width} bfloat16 in shards of {case.shard_rows:,}, batches of "
            f"{case.batch_size:,}, all else by default. actlas checks "
            "each chunk's crc32c and gives row numbers with each batch. The limit reads the same "
            "files from end to end with readinto, without decoding or checks; its ratio is "
            f"by rows. Random rows: {case.few_batches} batches only, widened to float32. "
            f"{_absent()}",
            harness.COLD,
        ),
    )
    for profile in ("none", "fast"):
        store = store_of(folder / f"{profile}.zarr", rows, profile, case.shard_rows)
        each = contenders(case, store, raw, rows)
        for m in alternate([c for c, _ in each.values()], case.rounds, LIMIT):
            n_rows = each[m.name][1]
            per_s = n_rows / m.median_s
            gbps, ratio = 2e-9 * case.width * per_s, m.ratio * n_rows / case.n_rows
            cpu = float(np.median(m.cpu_seconds)) / (2e-9 * case.width * n_rows)
            cells = (f"{gbps:.2f}", f"{per_s:,.0f}", f"{ratio:.3f}", f"{cpu:.2f}")
            table.rows.append((m.name, profile, *cells))
            name = ("cold", profile, m.name)
            report.figures[figure_name(*name, "gbps")] = gbps
            report.figures[figure_name(*name, "ratio")] = ratio
    report.tables.append(table)


def _absent() -> str:
    absent = [name for name, module in OTHERS.items() if not importlib.util.find_spec(module)]
    return f"Not installed, so not measured: {', '.join(absent)}." if absent else ""


def run(quick: bool) -> Report:
    """Measure shuffled batches of a cold store against a sequential read, and their mixing."""
    report = Report("Batches")
    case = Case()
    if quick:
        case = Case(4096, 64, 1024, 128, few_batches=1, rounds=1)
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as folder:
        speed_table(case, Path(folder), report)
    mixing_table(report, quick)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.batches", run))
