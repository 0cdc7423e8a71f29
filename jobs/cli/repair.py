"""``actlas repair``: recompute the damaged shards that ``actlas verify`` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.options import asked_for, section_options
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted, numbered
from actlas.jobs.run.repair import Repaired, repair_at
from actlas.jobs.run.reports.checks import DamageEntry
from actlas.jobs.run.run import on_stderr
from actlas.jobs.terminal import echo
from actlas.store.errors import (
    EXIT_RESUME,
    ConfigError,
)
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.verify.damage import Damage


def read_findings(file: str) -> list[Damage]:
    """Return the damaged objects in a file that ``actlas verify --json`` printed.

    Parameters
    ----------
    file : str
        Path of the file.

    Raises
    ------
    ConfigError
        The file cannot be read, or is not such output.
    """
    try:
        body = json.loads(Path(file).read_text())
        entries = TypeAdapter(list[DamageEntry]).validate_json(
            json.dumps(body["damages"]), strict=True
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"{file}: expected the output of `actlas verify STORE --full --json` ({error})",
            path=file,
        ) from error
    return [entry.damage() for entry in entries]


def line_of(path: str, made: Repaired) -> str:
    """Return one line with the repaired parts and the next command.

    Parameters
    ----------
    path : str
        Path or URL of the store.
    made : Repaired
        The result of the repair.
    """
    if made.exit_code == EXIT_RESUME:
        return "stopped: the repaired parts are kept -> next: run the same command again"
    parts = []
    if made.plan:
        parts.append(f"{counted(len(made.plan), 'object')} of the plan and its documents")
    for job, numbers in made.shards.items():
        of = {EXTRACT: "", POOLED: " of documents"}[job]
        parts.append(f"{numbered(list(numbers), 'shard')}{of}")
    if made.derived:
        parts.append(f"derived data ({', '.join(made.derived)})")
    if made.removed:
        parts.append(f"{counted(len(made.removed), 'file')} removed")
    following = f"-> next: {shell('verify', path, '--full')}"
    repaired = f"repaired: {'; '.join(parts) or 'nothing'}"
    if made.left:
        return f"{repaired}; left: {counted(len(made.left), 'finding')} {following}"
    return f"{repaired} {following}" if parts else f"nothing is damaged {following}"


@click.command("repair", short_help="Recompute the damaged shards that `verify` finds.")
@click.argument("store")
@click.option(
    "--findings",
    metavar="FILE.json",
    type=click.Path(),
    help="Output of `actlas verify --json`: repair only these findings.  [default: run verify "
    "--full first]",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Find damage by sizes, metadata and receipts only; not valid after a repair that was "
    "killed.  [default: read every byte]",
)
@click.option(
    "--remove-orphans",
    is_flag=True,
    help="Remove orphans, that is files whose name belongs to no part of a store.  [default: list "
    "them]",
)
@click.option(
    "--remove-strays",
    is_flag=True,
    hidden=True,
    help="Former name of --remove-orphans.  [default: no]",
)
@section_options("run")
@debug_option
def command(
    store: str,
    findings: str | None,
    fast: bool,
    remove_orphans: bool,
    remove_strays: bool,
    **values: Any,
) -> int:
    """Recompute the damaged shards of STORE, and restore its other damaged files.

    A shard that comes out with the same bits keeps its receipt; otherwise it gets a receipt of the
    next generation. The exit code is 4 if any damage is left.
    """
    made = repair_at(
        store,
        asked_for(values).run,
        findings=None if findings is None else read_findings(findings),
        full=not fast,
        remove_orphans=remove_orphans or remove_strays,
        log=on_stderr,
    )
    for damage in made.left:
        echo(f"left: {damage}")
    echo(line_of(store, made))
    return made.exit_code
