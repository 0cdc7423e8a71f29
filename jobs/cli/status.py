"""``actlas status``: progress of an extraction, read from the store alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.status_lines import lines
from actlas.jobs.formatting import printable
from actlas.jobs.monitor.heartbeat import HolderState, observe_holder
from actlas.jobs.run.status import status_of
from actlas.jobs.terminal import console, displayed, echo
from actlas.store.store import open_store

WATCH_S = 2.0


@click.command("status", short_help="Show the progress of an extraction.")
@click.argument("store")
@click.option("--watch", is_flag=True, help="Refresh every 2 s until Ctrl-C.  [default: no]")
@click.option("--full", is_flag=True, help="Read every receipt instead of a sample.  [default: no]")
@json_option
@debug_option
def command(store: str, watch: bool, full: bool, as_json: bool) -> None:
    """Show the progress of STORE's extraction, from its receipts and its driver's last heartbeat.

    The command works during and after a run, on any machine that can read the store. The exit code
    is 0 if the store can be read.
    """
    opened = open_store(store)

    def lines_of(holding: HolderState) -> list[str]:
        status = status_of(opened, full=full, holding=holding)
        return [status.to_json()] if as_json else list(lines(status, holding.snapshot))

    holding = observe_holder(opened.objects)
    if not watch:
        echo(*lines_of(holding))
        return
    with contextlib.suppress(KeyboardInterrupt), _screen(lines=as_json) as show:
        while True:
            show(*lines_of(holding))
            time.sleep(WATCH_S)
            holding = observe_holder(opened.objects, holding)


@contextlib.contextmanager
def _screen(*, lines: bool) -> Iterator[Callable[..., None]]:
    """Yield a function that shows lines in place of the last ones, or below them."""
    screen = console()
    if lines or not screen.is_terminal or screen.is_dumb_terminal:
        yield echo
        return
    from rich.live import Live
    from rich.text import Text

    live = Live(console=screen, auto_refresh=False)

    def show(*shown: str) -> None:
        text = "\n".join(map(printable, shown))
        live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)

    with displayed(live):
        yield show
