"""``actlas extract``, and :func:`actlas.extract` for notebooks and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.options import asked_for, config_options, section_options
from actlas.jobs.run.extract import extract_at

if TYPE_CHECKING:
    pass


@click.command("extract", short_help="Compute and write the rows.")
@click.argument("store")
@section_options("plan")
@section_options("run")
@config_options
@debug_option
def command(store: str, **values: Any) -> int:
    """Compute and write the rows of STORE, planning first where there is no plan.

    The same command again goes on where it was stopped. An option of the plan that is given again
    must be what the store was planned with.
    """
    _, outcome = extract_at(store, asked_for(values))
    click.echo(outcome.line)
    return outcome.exit_code
