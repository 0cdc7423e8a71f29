"""Flags of several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

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
