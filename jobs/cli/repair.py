"""``actlas repair``: put back what ``actlas verify`` finds damaged, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.options import asked_for, section_options
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted, ranges
from actlas.jobs.run.repair import Repaired, repair_at
from actlas.store.errors import (
    EXIT_RESUME,
    ConfigError,
)
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.verify.damage import Damage

if TYPE_CHECKING:
    pass


def read_findings(file: str) -> list[Damage]:
    """Read what ``actlas verify --json`` printed.

    Raises
    ------
    ConfigError
        It cannot be read, or is something else.
    """
    try:
        body = json.loads(Path(file).read_text())
        return TypeAdapter(list[Damage]).validate_json(json.dumps(body["damages"]), strict=True)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"{file}: expected what `actlas verify STORE --full --json` prints ({error})", path=file
        ) from error


def line_of(path: str, made: Repaired) -> str:
    """Say in one line what was repaired and what to do next."""
    parts = []
    if made.plan:
        parts.append(f"{counted(len(made.plan), 'object')} of the plan and its documents")
    for job, numbers in made.shards.items():
        what = {EXTRACT: "shards", POOLED: "shards of documents"}[job]
        parts.append(f"{what} {ranges(list(numbers))}")
    if made.derived:
        parts.append(f"derived data ({', '.join(made.derived)})")
    if made.removed:
        parts.append(f"{counted(len(made.removed), 'file')} removed")
    text = "; ".join(parts) or "nothing"
    if made.exit_code == EXIT_RESUME:
        return "stopped: what was repaired stays -> next: run the same command again"
    if made.left:
        return (
            f"repaired: {text}; left: {counted(len(made.left), 'finding')} -> next: "
            f"{shell('verify', path, '--full')}"
        )
    if not parts:
        return f"nothing is damaged -> next: {shell('verify', path, '--full')}"
    return f"repaired: {text} -> next: {shell('verify', path, '--full')}"


@click.command("repair", short_help="Put back what verify finds damaged.")
@click.argument("store")
@click.option(
    "--findings",
    metavar="FILE.json",
    type=click.Path(),
    help="What `actlas verify --json` printed: only that is looked at.  [default: verify --full "
    "first]",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Look for damage by sizes, metadata and receipts alone; not after a repair that was "
    "killed.  [default: read every byte]",
)
@click.option(
    "--remove-strays",
    is_flag=True,
    help="Remove files that nothing of a store has the name of.  [default: name them]",
)
@section_options("run")
@debug_option
def command(
    store: str, findings: str | None, fast: bool, remove_strays: bool, **values: Any
) -> int:
    """Put back what is damaged of STORE, and compute again only that.

    Rows that come out with the same bits leave their receipts as they are; others get a receipt of
    the next generation. Exits with 4 where something could not be repaired.
    """
    run = asked_for(values).run
    named = None if findings is None else read_findings(findings)

    def say(text: str) -> None:
        click.echo(text, err=True)

    made = repair_at(
        store, run, findings=named, full=not fast, remove_strays=remove_strays, say=say
    )
    for damage in made.left:
        click.echo(f"left: {damage}")
    click.echo(line_of(store, made))
    return made.exit_code
