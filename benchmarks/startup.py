"""Time to start: each command beside its bar, and beside `import torch` in the same run."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from benchmarks import harness
from benchmarks.harness import ROOT, Report, Table, figure_name
from benchmarks.stores import store_of

ROUNDS = 3
TORCH = "python -c 'import torch'"


class Start(NamedTuple):
    """A command, the seconds it may take on a quiet machine of two cores, and when it is timed.

    With ``until``, the time ends when a line of that beginning is printed.
    """

    name: str
    words: list[str]
    bar_s: float | None
    until: str = ""


def starts(store: str, new: str) -> list[Start]:
    """Return the commands, each with its bar."""
    actlas = [sys.executable, "-m", "actlas.jobs.cli"]
    extract = [*actlas, "extract", new, "--model", "builtin:actlas-6m"]
    extract += ["--corpus", "builtin:python-docs", "--max-tokens", "30000"]
    return [
        Start(TORCH, [sys.executable, "-c", "import torch"], None),
        Start("actlas --help", [*actlas, "--help"], 0.3),
        Start("actlas info", [*actlas, "info", store], 0.6),
        Start("actlas status", [*actlas, "status", store], 0.8),
        Start("actlas extract, to its first line", extract, 3.0, "reading "),
        Start("actlas extract, to the first line of planning", extract, None, "planning "),
        Start("actlas extract, to the first shard's start", extract, None, "extracting "),
        Start("actlas extract, whole: 30,000 rows", extract, None),
    ]


def timed(start: Start) -> tuple[float, float]:
    """Return the seconds of a command, and those of the processors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        start.words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stderr is not None
        printed = []
        for line in process.stderr:
            printed.append(line)
            if start.until and line.startswith(start.until):
                break
        seconds = time.perf_counter() - began
        if start.until and printed and printed[-1].startswith(start.until):
            process.kill()
        elif process.wait():
            raise RuntimeError(f"{start.name} failed:\n{''.join(printed)[-2000:]}")
    seconds = seconds if start.until else time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return seconds, cpu


def run(quick: bool) -> Report:
    """Time how long commands take to start."""
    report = Report("Startup")
    table = Table(
        "Seconds to start",
        ("command", "bar", "seconds", "of import torch", "processor seconds", "within"),
        notes=(
            "Medians of alternating rounds, each in a new process, files in the page cache. The "
            "bars are for a quiet machine of two cores. On another the processor seconds count, "
            f"and the share of `{TORCH}` in the same rounds. Of a command that is timed to one of "
            "its lines, the processor seconds are those until it was killed there.",
        ),
    )
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as name:
        folder = Path(name)
        store = str(folder / "s.zarr")
        store_of(Path(store), np.zeros((4096, 256), ml_dtypes.bfloat16), "dense", 1024)
        seconds: dict[str, list[tuple[float, float]]] = {}
        listed = starts(store, "")[: 4 if quick else None]
        for n in range(1 if quick else ROUNDS):
            for i in range(len(listed)):
                new = str(folder / f"{n}-{i}.zarr")
                at = i if n % 2 == 0 else len(listed) - 1 - i
                start = starts(store, new)[at]
                seconds.setdefault(start.name, []).append(timed(start))
    torch_s = statistics.median(wall for wall, _ in seconds[TORCH])
    for start in listed:
        wall = statistics.median(wall for wall, _ in seconds[start.name])
        cpu = statistics.median(cpu for _, cpu in seconds[start.name])
        bar = "-" if start.bar_s is None else f"{start.bar_s:.1f}"
        within = "-" if start.bar_s is None else "yes" if wall <= start.bar_s else "no"
        cells = (f"{wall:.2f}", f"{wall / torch_s:.2f}", f"{cpu:.2f}")
        table.rows.append((start.name, bar, *cells, within))
        report.figures[figure_name(start.name, "s")] = wall
        report.figures[figure_name(start.name, "cpu_s")] = max(cpu, 1e-9)
    report.tables.append(table)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.startup", run))
