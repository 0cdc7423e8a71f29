"""Growth of planning, opening and the ledger with the size of a store, up to a billion rows.

``--workout`` prints the tables of `docs/scale.md` instead: pure arithmetic, nothing is measured.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import actlas
from actlas.store.format.schema import ObjectRecord, Receipt
from benchmarks import harness, planning, receipts
from benchmarks.harness import Report, Table, figure_name, in_fresh_process

Sizes = list[tuple[int, int]]
"""Number of documents, and their median length in tokens. The last three have the same number of
tokens in more documents, and then more of both."""

FULL: Sizes = [(100_000, 60), (100_000, 600), (1_000_000, 60), (10_000_000, 60)]
QUICK: Sizes = [(20, 600), (200, 60), (400, 60)]
MANY = 100_000
"""Receipts that are written; larger numbers are extrapolated."""
MANY_MORE = 1_250_000
"""Receipts of 82 billion rows in shards of 65,536."""
WIDE_SHARDS = 400
_NOTE = (
    "Documents of log-normal length (sigma 1.0), tokens from a synthetic tokenizer (no tokenizer "
    "runs; every other step of `actlas plan` does): texts and tokens are spooled to disk, "
    "ordered, fitted to shards, hashed, compressed and synced. Of raw write: seconds of "
    "writing as many raw bytes to one file and syncing it, over ours. Extra MB: the highest "
    "point above a process that has made a small plan before."
)


def plan_table(report: Report, folder: Path, sizes: Sizes, shard_rows: int) -> Path:
    """Plan corpora of several sizes, each in a new process; keep the last store."""
    columns = ("documents", "tokens", "seconds", "of raw write", "extra MB", "on disk MB")
    table = Table("Planning", columns)
    found: list[dict[str, Any]] = []
    path = folder / "planned.zarr"
    for i, (n_documents, median) in enumerate(sizes):
        path = folder / f"{i}.zarr"
        got: dict[str, Any] = in_fresh_process(
            "benchmarks.planning:plan",
            path=str(path),
            n_documents=n_documents,
            median=median,
            shard_rows=shard_rows,
        )
        write_s = planning.raw_write(str(folder / "raw"), int(got["raw_bytes"]))
        found.append(got)
        cells = (f"{n_documents:,}", f"{got['n_tokens']:,}", f"{got['seconds']:.1f}")
        cells += (f"{write_s / got['seconds']:.3f}", f"{got['memory_bytes'] / 1e6:,.0f}")
        table.rows.append((*cells, f"{got['disk_bytes'] / 1e6:,.0f}"))
    table.notes = (_NOTE, _memory(found))
    report.tables.append(table)
    large = found[-1]
    report.figures["planning.bytes_per_document"] = _slope(found[-2], large)
    report.figures["planning.memory_bytes"] = large["memory_bytes"]
    report.figures["planning.us_per_document"] = 1e6 * large["seconds"] / large["n_documents"]
    return path


def _slope(less: dict[str, Any], more: dict[str, Any]) -> float:
    """Return the growth of memory in bytes per document."""
    documents = more["n_documents"] - less["n_documents"]
    return max(1e-9, (more["memory_bytes"] - less["memory_bytes"]) / documents)


def _memory(found: list[dict[str, Any]]) -> str:
    """Return a sentence on the growth of memory: with documents alone, and with tokens too."""
    *_, long, less, more = found
    documents = f"{less['n_documents']:,} to {more['n_documents']:,} documents"
    return (
        f"Memory: about as many tokens in {less['n_documents'] / long['n_documents']:g} times the "
        f"documents: {_slope(long, less):.0f} bytes a document more. From "
        f"{documents}, their tokens with them: {_slope(less, more):.0f} bytes a "
        "document."
    )


def open_table(report: Report, path: Path) -> Receipt:
    """Open the store with all its receipts in a new process, twice."""
    first = receipts.extract_first(str(path))
    store = actlas.open(path)
    receipts.fabricate(path, first, store.plan.n_shards)
    in_fresh_process("benchmarks.receipts:opened", path=str(path))
    seconds: dict[str, float] = in_fresh_process("benchmarks.receipts:opened", path=str(path))
    plan = store.plan
    table = Table(
        f"Opening {plan.n_tokens:,} rows, {plan.n_documents:,} documents, {plan.n_shards:,} shards",
        ("", "ms"),
        notes=(
            "Each once, in this order, in a fresh process, files in the page cache, imports apart. "
            "`plain` reads the two files that opening reads. `repr` lists the receipts.",
        ),
    )
    for name, s in seconds.items():
        table.rows.append((name, f"{1e3 * s:,.1f}"))
        report.figures[figure_name("open", name, "ms")] = 1e3 * s
    at_first = sum(seconds[name] for name in ("open", "repr", "first row"))
    report.figures["open.first_row_of_a_store.s"] = at_first
    table.notes += (f"Open, look at it, read a row: {at_first:.2f} s.",)
    report.tables.append(table)
    return first


def ledger_table(report: Report, folder: Path, first: Receipt, n: int, many: int) -> None:
    """Time receipts in a folder of their own, and extrapolate to more of them."""
    columns = ("receipts", "bytes each", "list ms", "of scandir", "one, ms", "all, s", "of plain")
    table = Table("Receipts", (*columns, "bytes in memory each"))
    for name, receipt, count in (
        ("1 hookpoint, dense", first, n),
        ("1 hookpoint, dense", first, many),
        ("28 of 3,072, none", wide(first), WIDE_SHARDS if n > WIDE_SHARDS else n),
    ):
        root = folder / f"ledger-{count}-{len(receipt.objects)}"
        receipts.fabricate(root, receipt, count)
        found = receipts.listed(root, count, receipt.plan_sha256, rounds=4)
        files = [f.stat().st_size for f in (root / receipts.FOLDER).iterdir()]
        memory: int = in_fresh_process(
            "benchmarks.receipts:memory_of_all",
            path=str(root),
            n_shards=min(count, 5_000),
            plan_sha256=receipt.plan_sha256,
        )
        listing, reading = found["Receipts.done"], found["Receipts.read of each"]
        each_ms = 1e3 * reading.median_s / len(files)
        cells = (f"{count:,}: {name}", f"{sum(files) / len(files):,.0f}")
        cells += (f"{1e3 * listing.median_s:,.1f}", f"{listing.ratio:.2f}", f"{each_ms:.3f}")
        cells += (f"{reading.median_s:,.2f}", f"{reading.ratio:.3f}")
        table.rows.append((*cells, f"{memory / (min(count, 5_000) - 1):,.0f}"))
        key = figure_name("receipts", count, "wide" if receipt is not first else "narrow")
        report.figures |= {
            f"{key}.bytes": sum(files) / len(files),
            f"{key}.list_ms": 1e3 * listing.median_s,
            f"{key}.read_ms": each_ms,
            f"{key}.list_ratio": listing.ratio,
        }
        if count == many:
            scale = MANY_MORE / many
            table.notes = (
                f"{MANY_MORE:,} would be {scale:g} times {many:,} (reckoned, not run): "
                f"{scale * sum(files) / 1e9:.1f} GB, listed in {scale * listing.median_s:.1f} s, "
                f"all read in {scale * reading.median_s / 60:.1f} min by one thread.",
            )
    table.notes += (
        "Sealed by the writer's own `seal`; files in the page cache. List: `Receipts.done()`, "
        "beside `os.scandir` alone. All: every receipt read, its sha256 checked and parsed, beside "
        "reading the same files' bytes. In memory: all held at once, in a process of its own.",
    )
    report.tables.append(table)


def wide(receipt: Receipt) -> Receipt:
    """Return a receipt of 28 hookpoints of 3,072 units, rows in profile ``none``."""
    rows = [record for record in receipt.objects if record.key.startswith("rows/")]
    like = receipt.objects[-1]
    dense = [
        ObjectRecord(
            key=f"{group}/resid_post.{i}/c/0/0",
            n_bytes=123_456_789,
            xxh3=like.xxh3,
            attempt=like.attempt,
            chunk_crc32c=tuple(range(1 << 31, (1 << 31) + 128)) if group == "activations" else None,
        )
        for i in range(28)
        for group in ("activations", "statistics")
    ]
    counts = {f"resid_post.{i}": 0 for i in range(28)}
    return receipt.model_copy(update={"objects": (*rows, *dense), "n_nonfinite": counts})


def run(quick: bool) -> Report:
    """Measure planning, opening and receipts of stores of growing size."""
    report = Report("Scale")
    with tempfile.TemporaryDirectory() as folder:
        path = plan_table(report, Path(folder), QUICK if quick else FULL, 1024 if quick else 65_536)
        first = open_table(report, path)
        n = actlas.open(path).plan.n_shards
        ledger_table(report, Path(folder), first, n, 2 * n if quick else MANY)
    return report


def main() -> int:
    """Run the benchmark, or print the tables of the page."""
    if sys.argv[1:] == ["--workout"]:
        from benchmarks import workout

        print(workout.markdown())
        return 0
    return harness.main("benchmarks.scale", run)


if __name__ == "__main__":
    sys.exit(main())
