"""``actlas sae encode``: every token's codes, by the write protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.options import asked_for, run_options
from actlas.jobs.derived.encode import encode
from actlas.store.store import open_store

if TYPE_CHECKING:
    pass


@click.command("encode", short_help="Every token's codes.")
@click.argument("store")
@click.option(
    "--sae",
    required=True,
    metavar="DIR|NAME",
    help="Its folder (SAELens's format: cfg.json and sae_weights.safetensors), or the name of a "
    "set that was begun.",
)
@click.option("--name", help="Of the set of features.  [default: the folder's]")
@click.option(
    "--hookpoint", help="To encode.  [default: the one that the autoencoder was trained on]"
)
@run_options("executor", "workers", "address", "device", "threads", "retry_quarantined")
@debug_option
def command(store: str, sae: str, name: str | None, hookpoint: str | None, **run: Any) -> int:
    """Write the codes of every token of STORE under one sparse autoencoder.

    The same command again goes on where it was stopped.
    """
    outcome, _ = encode(open_store(store), sae, name, hookpoint, asked_for(run).run)
    click.echo(outcome.line)
    return outcome.exit_code
