"""``actlas sae encode``: compute the feature activations of every token."""

from __future__ import annotations

from typing import Any

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.options import asked_for, run_options
from actlas.jobs.config import split_names
from actlas.jobs.derived.encode import encode
from actlas.jobs.terminal import echo
from actlas.store.store import open_store


@click.command("encode", short_help="Compute the feature activations of every token.")
@click.argument("store")
@click.option(
    "--sae",
    required=True,
    metavar="DIR|NAME",
    help="Sparse autoencoder: a folder in SAELens format (cfg.json, sae_weights.safetensors), or "
    "the name of a set of features to continue.",
)
@click.option("--name", help="Name of the set of features.  [default: the folder's name]")
@click.option(
    "--hookpoint", help="Hookpoint to encode.  [default: the autoencoder's training hookpoint]"
)
@click.option(
    "--accept",
    multiple=True,
    metavar="FIELDS",
    help="Fields of the autoencoder's cfg.json that may differ from the store, such as model_name: "
    "it encodes although it was trained on other activations.  [default: none]",
)
@run_options("executor", "workers", "address", "device", "threads", "retry_quarantined")
@debug_option
def command(
    store: str,
    sae: str,
    name: str | None,
    hookpoint: str | None,
    accept: tuple[str, ...],
    **run: Any,
) -> int:
    """Compute and store the feature activations of every token of STORE.

    The same command resumes an interrupted run.
    """
    accepted = [field for text in accept for field in split_names(text)]
    outcome, _ = encode(open_store(store), sae, name, hookpoint, asked_for(run).run, accepted)
    echo(*outcome.lines)
    return outcome.exit_code
