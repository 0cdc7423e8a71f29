"""``actlas extract``: compute and store the activations."""

from __future__ import annotations

from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, dry_run_options
from actlas.jobs.cli.options import asked_for, config_options, section_options
from actlas.jobs.run.extract import dry_run as dry_run_of
from actlas.jobs.run.extract import extract_at
from actlas.jobs.terminal import echo
from actlas.store.errors import EXIT_DONE


@click.command("extract", short_help="Compute and store the activations.")
@click.argument("store")
@section_options("plan")
@section_options("run")
@dry_run_options
@config_options
@debug_option
def command(store: str, dry_run: bool, verbose: bool, **values: Any) -> int:
    """Compute and store the activations of STORE; create its plan first if there is none.

    The same command resumes an interrupted run. Options of the plan that are given again must match
    the plan.
    """
    asked = asked_for(values)
    if dry_run:
        echo(*dry_run_of(store, asked, verbose=verbose))
        return EXIT_DONE
    _, outcome = extract_at(store, asked, verbose=verbose)
    echo(*outcome.lines)
    return outcome.exit_code
