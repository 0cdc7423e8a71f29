"""The display of a run, live on a terminal or in plain lines, and its log."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

from actlas.jobs.formatting import printable, ranges
from actlas.jobs.logs import LOGGER
from actlas.jobs.monitor.run_stats import RunStats
from actlas.jobs.monitor.run_summary import head_parts, headline, states_line, worker_lines
from actlas.jobs.scheduler.faults import Fault
from actlas.jobs.scheduler.protocols import Done
from actlas.jobs.terminal import console, displayed, echo
from actlas.store.display.pace import Pace

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

BAR_WIDTH, MIN_WORKER_LINES = 60, 1
"""Columns of the progress bar, and least number of lines for workers."""


class PlainProgress:
    """Prints plain lines at intervals, for files and pipes, and logs each event as JSON.

    Parameters
    ----------
    stats : RunStats
        Statistics of the run.
    out : text stream
        Stream of the lines; standard error by default.
    """

    def __init__(self, stats: RunStats, out: TextIO | None = None) -> None:
        self.stats = stats
        self._out = out
        self._pace = Pace(stats.clock)

    def shown(self) -> AbstractContextManager[object]:
        """Return a context manager that shows the display."""
        return nullcontext()

    def log(self, text: str) -> None:
        """Print a line."""
        echo(text, err=True, out=self._out)
        LOGGER.info(text)

    def stopping(self, text: str) -> None:
        """Print that a signal came; the run ends after the shards in flight."""
        self.stats.stopping = True
        self.log(text)

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Record and log a worker's state."""
        self.stats.on_state(worker, state, shard)
        LOGGER.info(state, extra={"worker": worker, "shard": shard})

    def done(self, done: Done) -> None:
        """Record and log a finished shard."""
        self.stats.on_done(done)
        LOGGER.info("done", extra=done._asdict())
        self.tick()

    def fault(self, fault: Fault, quarantined: bool) -> None:
        """Record a failed attempt and print it in one line; the log has the traceback."""
        self.stats.on_fault(fault, quarantined)
        unit = self.stats.unit
        what = "a worker could not start" if fault.shard is None else f"{unit} {fault.shard} failed"
        then = "now in quarantine" if quarantined else "trying again"
        first = fault.error.splitlines()[0] if fault.error else fault.kind
        LOGGER.warning("fault", extra={**fault._asdict(), "quarantined": quarantined})
        self.log(f"{what} ({fault.worker}): {first}; {then}")

    def tick(self) -> None:
        """Print the progress if a line is due: often at first, once a minute later."""
        if self._pace.due():
            echo(headline(self.stats), err=True, out=self._out)


class LiveProgress(PlainProgress):
    """Shows a live display on a terminal: a bar, rates, and the workers.

    The display fits the terminal. Of many workers, those longest with a shard are shown, because a
    run waits for the slowest shard.

    Parameters
    ----------
    stats : RunStats
        Statistics of the run.
    out : text stream, optional
        Stream of the display; standard error by default.
    """

    def __init__(self, stats: RunStats, out: TextIO | None = None) -> None:
        from rich.live import Live

        super().__init__(stats, out)
        self._console = console(out, err=True)
        self._widest: list[int] = []
        self._live = Live(
            self, console=self._console, refresh_per_second=4, transient=True, redirect_stdout=False
        )

    def shown(self) -> AbstractContextManager[object]:
        """Return the live display."""
        return displayed(self._live)

    def _bar(self, console: Console, width: int) -> RenderResult:
        """Yield the progress bar; in plain characters without colours."""
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        share = self.stats.share()
        if console.no_color or console.color_system is None:
            n = int(share * (width - 2))
            yield Text(f"[{'#' * n}{'-' * (width - 2 - n)}]", end="")
        else:
            yield ProgressBar(total=1.0, completed=share, width=width)

    def _steady(self, parts: list[str]) -> list[str]:
        """Return parts padded to their largest width so far, so that lines break steadily.

        The last part is not padded.
        """
        if len(parts) != len(self._widest):
            self._widest = [0] * len(parts)
        self._widest = [max(w, len(p)) for w, p in zip(self._widest, parts, strict=True)]
        wide = [p.ljust(w) for w, p in zip(self._widest, parts, strict=True)]
        return [*wide[:-1], parts[-1]]

    def log(self, text: str) -> None:
        """Print a line above the display."""
        self._console.print(printable(text), markup=False, highlight=False)
        LOGGER.info(text)

    def tick(self) -> None:
        """Do nothing: the display's own thread refreshes it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the display for the columns and lines of the terminal."""
        from rich.segment import Segment
        from rich.text import Text

        width, height = options.max_width, console.size.height
        above = [(line, "") for line in packed(self._steady(head_parts(self.stats)), width)]
        above += [(line, "yellow") for line in trouble_lines(self.stats)]
        above += [(states_line(self.stats), "")]
        room = max(MIN_WORKER_LINES, height - len(above) - 4)
        below = [(f"  {line}", "dim") for line in worker_lines(self.stats, room)]
        yield from self._bar(console, min(BAR_WIDTH, width - 1))
        yield Segment.line()
        for line, style in (*above, *below):
            yield Text(printable(line), style=style, no_wrap=True, overflow="ellipsis")


def trouble_lines(stats: RunStats, limit: int = 3) -> list[str]:
    """Return the failed attempts by cause, and the quarantine with its last errors."""
    lines = []
    if stats.faults:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(stats.faults.items()))
        lines.append(f"failed attempts: {kinds}")
    if stats.quarantined:
        lines.append(f"in quarantine: {ranges(sorted(stats.quarantined))}")
        last = stats.quarantined[-limit:]
        lines.extend(f"  {shard}: {stats.errors.get(shard, '')}" for shard in last)
    return lines


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Return parts laid out on as few lines as possible, two spaces apart.

    >>> packed(["one", "two", "three"], 8)
    ['one  two', 'three']
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def display(stats: RunStats, out: TextIO | None = None) -> PlainProgress:
    """Return the display for a stream: live on a terminal, otherwise plain lines."""
    shown = console(out, err=True)
    if shown.is_terminal and not shown.is_dumb_terminal:
        return LiveProgress(stats, out)
    return PlainProgress(stats, out)
