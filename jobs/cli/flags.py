"""Flags of several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from actlas.analysis.figures import DPI
from actlas.jobs.cli.counts import Count

F = TypeVar("F", bound=Callable[..., Any])


def _remember(key: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    def callback(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
        ctx.meta[key] = ctx.meta.get(key, False) or value
        return value

    return callback


def debug_option(function: F) -> F:
    """Add ``--debug`` to a command."""
    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember("actlas.debug"),
        help="Show tracebacks.  [default: no]",
    )(function)


def json_option(function: F) -> F:
    """Add ``--json`` to a command; its errors become JSON as well."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        is_eager=True,
        callback=_remember("actlas.json"),
        help="Print JSON on one line (schemas in docs/json).  [default: no]",
    )(function)


def dry_run_options(function: F) -> F:
    """Add ``--dry-run`` and ``--verbose`` to a command that plans a store."""
    function = click.option(
        "--verbose",
        is_flag=True,
        help="Print every line of the estimate: rows, files, objects, load, memory.  "
        "[default: tokens, bytes, time and warnings]",
    )(function)
    return click.option(
        "--dry-run",
        is_flag=True,
        help="Estimate tokens, bytes and time from a sample; write nothing.  [default: no]",
    )(function)


def figure_options(function: F) -> F:
    """Add ``--figures`` and ``--dpi`` to a command that draws."""
    function = click.option(
        "--dpi",
        type=Count(),
        default=DPI,
        help=f"Pixels per inch of the pictures.  [default: {DPI}]",
    )(function)
    return click.option(
        "--figures",
        default="png",
        metavar="FORMATS",
        help="Formats of the pictures: png, svg, pdf, several of them separated by commas, or "
        "none.  [default: png]",
    )(function)
