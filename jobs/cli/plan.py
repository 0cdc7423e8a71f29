"""``actlas plan``: create a store's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.options import asked_for, config_options, section_options
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted
from actlas.jobs.ray.cluster import planning_device
from actlas.jobs.run.extract import make
from actlas.jobs.run.resume import check_same_plan
from actlas.jobs.terminal import echo
from actlas.store.errors import StoreNotFoundError

if TYPE_CHECKING:
    from actlas.store.store import Store


@click.command("plan", short_help="Create a store's plan.")
@click.argument("store")
@section_options("plan")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Estimate sizes from a sample; write nothing.  [default: no]",
)
@config_options
@debug_option
def command(store: str, dry_run: bool, **values: Any) -> None:
    """Create the plan of STORE, which defines its rows. A plan never changes once it is written."""
    asked = asked_for(values)
    if dry_run:
        options = asked.plan_options()
        from actlas.pipeline.plan.dry_run import estimate

        echo(*estimate(options, planning_device(asked.run)).lines())
        echo("dry run: nothing was written -> next: run the command without --dry-run")
        return
    from actlas.store.store import open_store

    try:
        planned = open_store(store)
    except StoreNotFoundError:
        planned = make(store, asked)
        word = "planned"
    else:
        check_same_plan(planned.plan, asked, store)
        word = "planned already"
    plan = planned.plan
    n_shards = sum(planned.n_shards(job) for job in planned.jobs)
    echo(
        f"{word}: {counted(plan.n_documents, 'document')}, {_rows(planned)} x "
        f"{counted(len(plan.hookpoints), 'hookpoint')} in {counted(n_shards, 'shard')} -> next: "
        f"{shell('extract', store)}"
    )


def _rows(store: Store) -> str:
    """Return the number of token rows and of pooled rows."""
    plan = store.plan
    found = [counted(plan.n_tokens, "row")] * plan.dense
    if plan.pools:
        found.append(counted(plan.n_documents * len(plan.pools), "pooled row"))
    return " and ".join(found)
