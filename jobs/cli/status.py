"""``actlas status``: how far an extraction is, from the store alone, from any machine."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.status_lines import lines
from actlas.jobs.monitor.heartbeat import Holding, look
from actlas.jobs.run.status import status_of
from actlas.store.store import open_store

WATCH_S = 2.0


@click.command("status", short_help="How far an extraction is.")
@click.argument("store")
@click.option("--watch", is_flag=True, help="Show it anew every 2 s, until Ctrl-C.  [default: no]")
@click.option("--full", is_flag=True, help="Read every receipt, not a sample.  [default: no]")
@json_option
@debug_option
def command(store: str, watch: bool, full: bool, as_json: bool) -> None:
    """Say how far the extraction of STORE is: from its receipts, and its driver's last beat.

    It works during a run and after, from any machine that reads the store. The exit code is 0 for
    every store that can be read.
    """
    opened = open_store(store)

    def words(holding: Holding) -> str:
        status = status_of(opened, full=full, holding=holding)
        return json.dumps(status) if as_json else "\n".join(lines(status, holding.snapshot))

    holding = look(opened.objects)
    if not watch:
        click.echo(words(holding))
        return
    with contextlib.suppress(KeyboardInterrupt), _screen(lines=as_json) as show:
        while True:
            show(words(holding))
            time.sleep(WATCH_S)
            holding = look(opened.objects, holding)


@contextlib.contextmanager
def _screen(*, lines: bool) -> Iterator[Callable[[str], None]]:
    """Yield what shows a text in the place of the one before; below it where that cannot be."""
    from rich.console import Console

    console = Console()
    if lines or not console.is_terminal or console.is_dumb_terminal:
        yield click.echo
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as live:
        yield lambda text: live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)
