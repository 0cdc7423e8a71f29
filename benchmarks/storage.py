"""Writing and reading an array of activations, against raw files and three Zarr libraries."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from actlas.store.format.array_spec import ArraySpec
from benchmarks import harness
from benchmarks.backends import Ours, Rows, describe
from benchmarks.contenders import (
    MEMMAP,
    PROFILES,
    RAW_WRITE,
    READERS,
    READINTO,
    WRITERS,
    Case,
    readers,
    takers,
    writers,
)
from benchmarks.harness import Measured, Report, Table, alternate, figure_name


def memory(folder: str, kind: str, profile: str, name: str, **sizes: Any) -> int:
    """Return the peak memory of writing, or of reading the whole array, in a new process."""
    case = Case(Path(folder), **sizes)
    if kind == "write":
        contenders = writers(case, profile, np.array(case.raw()))
    else:
        contenders = readers(case, profile, [(0, case.n_rows)], cold=False)
    contender = next(c for c in contenders if c.name == name)
    contender.before()
    return harness.peak_of(contender.run)


def _memory(case: Case, kind: str, profile: str, name: str) -> str:
    if not case.memory or profile != "fast":
        return "-"
    sizes = {k: getattr(case, k) for k in ("n_rows", "width", "shard_rows")}
    found: int = harness.in_fresh_process(
        "benchmarks.storage:memory",
        folder=str(case.folder),
        kind=kind,
        profile=profile,
        name=name,
        **sizes,
    )
    return _mb(found)


def write_table(case: Case, report: Report, rows: Rows) -> None:
    """Time the writers by profile; the arrays that actlas wrote stay for the readers."""
    columns = ("writer", "profile", "GB/s", "of os.write", "compression", "extra MB", "checksums")
    notes = (
        f"GB/s of raw bytes (median of {case.rounds}), {case.n_rows:,} x {case.width} bfloat16 in "
        f"shards of {case.shard_rows:,} rows, durable: every file and its folder fsynced. The "
        "limit writes the raw bytes, one file a shard. `read back` also reads every file again and "
        "compares its digest, as a commit does. Extra MB, in `fast`: peak above the "
        "rows themselves.",
    )
    table = Table("Durable write", columns, notes=notes)
    for profile in PROFILES:
        spec, stored = case.spec(profile), case.stored(profile)
        describe(stored, spec)
        Ours().write(stored, spec, rows)
        n_bytes = sum((stored / spec.key(shard)).stat().st_size for shard in range(spec.n_shards))
        for m in alternate(writers(case, profile, rows), case.rounds, RAW_WRITE):
            extra = _memory(case, "write", profile, m.name)
            limit = m.name == RAW_WRITE
            checks = "none" if limit else _checksums(m.name, spec, writing=True)
            speed = case.n_bytes / m.median_s / 1e9
            shown = "1" if limit else f"{case.n_bytes / n_bytes:.2f}"
            cells = (m.name, profile, f"{speed:.2f}", f"{m.ratio:.2f}", shown, extra, checks)
            table.rows.append(cells)
            _note(report, ("write", profile, m.name), gbps=speed, ratio=m.ratio)
        report.figures[f"write.{profile}.compression"] = case.n_bytes / n_bytes
    report.tables.append(table)


def read_table(case: Case, report: Report) -> None:
    """Time the readers: slices and the whole array, warm; the whole array, cold."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, case.n_rows - case.slice_rows, 16).tolist()
    slices = [(start, start + case.slice_rows) for start in starts]
    whole = [(0, case.n_rows)]
    columns = ("reader", "profile", "slices", "of memmap", "whole", "of memmap", "cold")
    notes = (
        f"GB/s of raw bytes (median of {case.rounds}). Slices: 16 of {case.slice_rows:,} rows at "
        "random places, warm. Whole: one read of all rows, warm and cold. memmap: a copy out of "
        "the mapping; readinto: into one buffer that is there already; both of a raw file. Extra "
        f"MB, in `fast`: peak while reading the whole, of which the result is {_mb(case.n_bytes)}.",
        harness.COLD,
    )
    more = ("of readinto", "extra MB", "checksums")
    table = Table("Read", (*columns, *more), notes=notes)
    for profile in PROFILES:
        kinds = {
            "slices": (slices, False, MEMMAP),
            "whole": (whole, False, MEMMAP),
            "cold": (whole, True, READINTO),
        }
        speeds: dict[str, list[str]] = {}
        for kind, (ranges, cold, limit) in kinds.items():
            n_bytes = 2 * case.width * sum(stop - start for start, stop in ranges)
            for m in alternate(readers(case, profile, ranges, cold), case.rounds, limit):
                speed = n_bytes / m.median_s / 1e9
                speeds.setdefault(m.name, []).extend([f"{speed:.2f}", f"{m.ratio:.2f}"])
                _note(report, ("read", kind, profile, m.name), gbps=speed, ratio=m.ratio)
        for name, cells in speeds.items():
            extra = _memory(case, "read", profile, name)
            checks = _checksums(name, case.spec(profile))
            table.rows.append((name, profile, *cells, extra, checks))
    report.tables.append(table)


def take_table(case: Case, report: Report) -> None:
    """Time the gathering of rows: one document's rows of a shard, and random ones."""
    rng = np.random.default_rng(0)
    document = rng.choice(case.shard_rows, case.document_rows, replace=False)
    anywhere = rng.choice(case.n_rows, 4 * case.document_rows, replace=False)
    n, many = len(document), len(anywhere)
    columns = ("reader", "profile", f"{n} warm", "of memmap", f"{n} cold", "of memmap")
    notes = (
        f"Milliseconds (median of {case.rounds}): one document's {n} rows scattered over a shard "
        f"of {case.shard_rows:,}, and {many} rows of the whole array. A chunk that holds one of "
        "them is read, checked and decoded whole; memmap touches their pages alone.",
    )
    table = Table("Scattered rows", (*columns, f"{many} warm", "of memmap"), notes=notes)
    for profile in PROFILES:
        found: dict[str, list[Measured]] = {}
        for index, cold in ((document, False), (document, True), (anywhere, False)):
            for m in alternate(takers(case, profile, index, cold), case.rounds, MEMMAP):
                found.setdefault(m.name, []).append(m)
        for name, each in found.items():
            cells = [(f"{1e3 * m.median_s:.1f}", f"{m.ratio:.3f}") for m in each]
            table.rows.append((name, profile, *(cell for pair in cells for cell in pair)))
            for kind, m, count in zip(
                ("document", "document_cold", "anywhere"), each, (n, n, many), strict=True
            ):
                speed = count / m.median_s
                _note(report, ("take", kind, profile, name), rows_per_s=speed, ratio=m.ratio)
    report.tables.append(table)


def _note(report: Report, parts: Iterable[str], **values: float) -> None:
    for unit, value in values.items():
        report.figures[figure_name(*parts, unit)] = value


def _checksums(name: str, spec: ArraySpec, *, writing: bool = False) -> str:
    backends = WRITERS if writing else READERS
    backend = next((b for b in backends if b.name == name), None)
    if backend is None:
        return "none"
    if writing:
        whole = isinstance(backend, Ours)
        chunks = whole or spec.checksummed_chunks
        return "chunk and file" if whole else "chunk" if chunks else "index"
    return "chunk" if backend.checks(spec) else "index"


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f}"


def run(quick: bool) -> Report:
    """Write and read one activations array: actlas, raw files, zarr, zarrs, tensorstore."""
    report = Report("Storage")
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as folder:
        small = {"n_rows": 2048, "shard_rows": 512, "slice_rows": 128, "document_rows": 20}
        case = Case(
            Path(folder), **(small if quick else {}), rounds=1 if quick else 3, memory=not quick
        )
        case.raw_file.parent.mkdir()
        origin = harness.in_fresh_process(
            "benchmarks.activations:write_rows",
            path=str(case.raw_file),
            n_rows=case.n_rows,
            width=case.width,
        )
        report.notes.append(f"Rows: {origin}.")
        write_table(case, report, np.array(case.raw()))
        read_table(case, report)
        take_table(case, report)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.storage", run))
