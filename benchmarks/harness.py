"""The benchmark harness: contenders in alternating rounds, medians, one table, one JSON object.

Contenders run in alternating order (A B C, C B A, …) in one process, after one untimed run of each
whose result is checked. A ratio is the median over rounds of the limit's seconds over those of a
contender, so that a round on a busy machine affects both.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("numpy", "zarr", "zarrs", "tensorstore", "numcodecs", "torch", "transformers")
COLD = (
    "Cold: every file's pages are dropped from the page cache with posix_fadvise(DONTNEED) before "
    "the run, which needs no root; the disk's own cache, below the machine, stays as it is."
)


def _nothing() -> None:
    return None


class Contender(NamedTuple):
    """A way to do the work: ``run`` is timed; ``before``, and ``check`` once, are not."""

    name: str
    run: Callable[[], Any]
    before: Callable[[], Any] = _nothing
    check: Callable[[Any], None] = lambda _result: None
    note: str = ""


class Measured(NamedTuple):
    """The seconds of a contender by round, with those of the limit."""

    name: str
    seconds: tuple[float, ...]
    limit: tuple[float, ...]
    note: str
    cpu_seconds: tuple[float, ...]
    cpu_limit: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Speed relative to the limit: 1 is as fast."""
        pairs = zip(self.limit, self.seconds, strict=True)
        return statistics.median(limit / own for limit, own in pairs)

    @property
    def cpu_ratio(self) -> float:
        """Speed relative to the limit in CPU seconds, for busy machines; excludes the disk."""
        pairs = zip(self.cpu_limit, self.cpu_seconds, strict=True)
        return statistics.median(limit / max(own, 1e-9) for limit, own in pairs)


def alternate(contenders: Sequence[Contender], rounds: int, limit: str) -> list[Measured]:
    """Run all contenders in alternation and compare each with the one named ``limit``."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    cpu: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    gc.collect()
    gc.freeze()  # Objects alive now are excluded from garbage collection.
    for contender in contenders:
        contender.before()
        contender.check(contender.run())
    for n in range(rounds):
        for contender in contenders if n % 2 == 0 else reversed(contenders):
            contender.before()
            gc.collect()
            began, cpu_began = time.perf_counter(), time.process_time()
            result = contender.run()
            seconds[contender.name].append(time.perf_counter() - began)
            cpu[contender.name].append(time.process_time() - cpu_began)
            del result
    bound, cpu_bound = tuple(seconds[limit]), tuple(cpu[limit])
    return [
        Measured(c.name, tuple(seconds[c.name]), bound, c.note, tuple(cpu[c.name]), cpu_bound)
        for c in contenders
    ]


@dataclass
class Table:
    """A table of text cells with headings and a note."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        cells = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        left = {i for i, _ in enumerate(widths) if i == 0 or self.columns[i] in ("", "note")}
        lines = [
            "| "
            + " | ".join(
                cell.ljust(width) if i in left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            + " |"
            for row in cells
        ]
        rule = "".join(
            f"|{'-' * (width + 1)}{'-' if i in left else ':'}" for i, width in enumerate(widths)
        )
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"### {self.title}", "", lines[0], f"{rule}|", *lines[1:], *notes])


@dataclass
class Report:
    """The results of a benchmark: tables for people, figures for programs."""

    title: str
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def markdown(self, command: str) -> str:
        parts = [f"# {self.title}", f"`{command}`", machine(), *self.notes, *map(str, self.tables)]
        return "\n\n".join(parts) + "\n"


def figure_name(*parts: object) -> str:
    """Join the parts of a figure's name with dots, in lower case, without spaces."""
    return ".".join(str(part).replace(", ", "_").replace(" ", "_").lower() for part in parts)


def machine() -> str:
    """Return a description of the machine without its name, and the date."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"{name} {_version(name)}" for name in LIBRARIES]
    now = datetime.datetime.now(datetime.UTC)
    load = os.getloadavg()[0]
    return (
        f"{now:%Y-%m-%d %H:%M} UTC; {cores} cores of {model}, {ram:.0f} GiB RAM, load {load:.1f} "
        f"when this was printed; Python {platform.python_version()}, {', '.join(found)}."
    )


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def sync(paths: Iterable[Path]) -> None:
    """Sync files and folders to disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def evict(folder: Path) -> None:
    """Drop the pages of every file in a folder from the page cache."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def status_bytes(key: str) -> int:
    """Return a size from /proc/self/status: ``VmHWM`` is the peak, ``VmRSS`` the present size."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak_of(work: Callable[[], Any]) -> int:
    """Return the peak of memory during ``work``, in bytes above the size before it.

    The kernel's high-water mark is reset first: ``ru_maxrss`` would start at the parent's peak,
    which a child inherits.
    """
    gc.collect()
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = work()
    peak = status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def in_fresh_process(function: str, **arguments: Any) -> Any:
    """Call ``module:function`` in a new interpreter and return its result, through JSON."""
    code = "import sys; from benchmarks.harness import _child; _child(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, function, json.dumps(arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{function} failed in its own process:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    value = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    print(json.dumps(value))


def main(module: str, run: Callable[..., Report], argv: Sequence[str] | None = None) -> int:
    """Run a benchmark as a command: ``run(quick)``, or ``run(quick, long=...)`` if it has both."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=run.__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object of figures")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables as Markdown")
    if "long" in inspect.signature(run).parameters:
        parser.add_argument("--long", action="store_true", help="all cases: many minutes")
    given = parser.parse_args(argv)
    long = getattr(given, "long", False)
    report = run(given.quick, long=True) if long else run(given.quick)
    shown = "".join(f" --{name}" for name in ("quick", "long") if getattr(given, name, False))
    text = report.markdown(f"python -m {module}{shown}")
    if given.out is not None:
        given.out.write_text(text)
    print(json.dumps(report.figures, indent=1) if given.json else text)
    return 0
