"""How a run is told to a person, on a terminal or in plain lines, and to the log."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

from actlas.jobs.executors import Done
from actlas.jobs.ledger import Fault
from actlas.jobs.logs import LOGGER
from actlas.jobs.tally import Tally, headline, worker_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

FIRST_LINES_S, LATER_LINES_S, FIRST_MINUTE_S = 5.0, 30.0, 60.0


class NowAndThen:
    """A plain line on stderr, every ``EVERY_S`` at most: for work without a display."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, text: str) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if now - self._said >= self.EVERY_S:
            self._said = now
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - what it is for


class PlainProgress:
    """Plain lines now and then, for files and pipes, and a JSON line per event in the log.

    Parameters
    ----------
    tally : Tally
        The numbers to tell.
    out : text stream
        Where the lines go.
    """

    def __init__(self, tally: Tally, out: TextIO | None = None) -> None:
        self.tally = tally
        self._out = sys.stderr if out is None else out
        self._next = tally.clock() + FIRST_LINES_S

    def shown(self) -> AbstractContextManager[object]:
        """Return the context in which the display is up."""
        return nullcontext()

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._out, flush=True)
        LOGGER.info(text)

    def state(self, worker: str, state: str, shard: int | None = None) -> None:
        """Keep and log what a worker is at."""
        self.tally.on_state(worker, state, shard)
        LOGGER.info(state, extra={"worker": worker, "shard": shard})

    def done(self, done: Done) -> None:
        """Add a shard."""
        self.tally.on_done(done)
        LOGGER.info("done", extra=done._asdict())
        self.tick()

    def fault(self, fault: Fault, quarantined: bool) -> None:
        """Tell of a failed attempt, in one line; the log has the traceback."""
        self.tally.on_fault(fault, quarantined)
        what = "a worker could not start" if fault.shard is None else f"shard {fault.shard} failed"
        then = "now in quarantine" if quarantined else "trying again"
        first = fault.error.splitlines()[0] if fault.error else fault.kind
        LOGGER.warning("fault", extra={**fault._asdict(), "quarantined": quarantined})
        self.say(f"{what} ({fault.worker}): {first}; {then}")

    def tick(self) -> None:
        """Print where the run stands, every 5 s in the first minute, then every 30 s."""
        now = self.tally.clock()
        if now < self._next:
            return
        early = now - self.tally.started < FIRST_MINUTE_S
        self._next = now + (FIRST_LINES_S if early else LATER_LINES_S)
        print(headline(self.tally), file=self._out, flush=True)


class LiveProgress(PlainProgress):
    """The same on a terminal: a bar, rates, and what each worker is at, drawn as it changes."""

    def __init__(self, tally: Tally, out: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(tally, out)
        self._console = Console(file=self._out)
        self._live = Live(
            console=self._console, get_renderable=self.render, refresh_per_second=4, transient=True
        )

    def shown(self) -> AbstractContextManager[object]:
        """Return the live display."""
        return self._live

    def say(self, text: str) -> None:
        """Print a line above the display."""
        self._console.print(text, markup=False, highlight=False)
        LOGGER.info(text)

    def tick(self) -> None:
        """Leave it to the display's own thread."""

    def render(self) -> RenderableType:
        """Return what is drawn."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        drawn = Table.grid()
        drawn.add_row(ProgressBar(total=1.0, completed=self.tally.share(), width=60))
        drawn.add_row(Text(headline(self.tally)))
        for line in worker_lines(self.tally):
            drawn.add_row(Text(f"  {line}", style="dim"))
        return drawn


def display(tally: Tally, out: TextIO | None = None) -> PlainProgress:
    """Return the display that fits where it is shown."""
    from rich.console import Console

    stream = sys.stderr if out is None else out
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(tally, stream)
    return PlainProgress(tally, stream)
