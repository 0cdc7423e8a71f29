"""``actlas plan``: create a store's plan."""

from __future__ import annotations

from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, dry_run_options
from actlas.jobs.cli.options import asked_for, config_options, section_options
from actlas.jobs.formatting import command as shell
from actlas.jobs.run.extract import dry_run as dry_run_of
from actlas.jobs.run.extract import make, size_of
from actlas.jobs.run.resume import check_same_plan
from actlas.jobs.terminal import echo
from actlas.store.errors import StoreNotFoundError


@click.command("plan", short_help="Create a store's plan.")
@click.argument("store")
@section_options("plan")
@dry_run_options
@config_options
@debug_option
def command(store: str, dry_run: bool, verbose: bool, **values: Any) -> None:
    """Create the plan of STORE, which defines its rows. A plan never changes once it is written."""
    asked = asked_for(values)
    if dry_run:
        echo(*dry_run_of(store, asked, verbose=verbose))
        return
    from actlas.store.store import open_store

    try:
        planned = open_store(store)
    except StoreNotFoundError:
        planned = make(store, asked, verbose=verbose)
        word = "planned"
    else:
        check_same_plan(planned.plan, asked, store)
        word = "planned already"
    echo(f"{word}: {size_of(planned)} -> next: {shell('extract', store)}")
