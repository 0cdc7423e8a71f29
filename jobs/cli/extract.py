"""``actlas extract``: compute and store the activations."""

from __future__ import annotations

from typing import Any

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.options import asked_for, config_options, section_options
from actlas.jobs.run.extract import extract_at
from actlas.jobs.terminal import echo


@click.command("extract", short_help="Compute and store the activations.")
@click.argument("store")
@section_options("plan")
@section_options("run")
@config_options
@debug_option
def command(store: str, **values: Any) -> int:
    """Compute and store the activations of STORE; create its plan first if there is none.

    The same command resumes an interrupted run. Options of the plan that are given again must match
    the plan.
    """
    _, outcome = extract_at(store, asked_for(values))
    echo(*outcome.lines)
    return outcome.exit_code
