"""``actlas sae``: sparse autoencoders and their feature activations."""

from __future__ import annotations

from collections.abc import Mapping

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.verbs import Verbs

VERBS: Mapping[str, str] = {
    "train": "Train a sparse autoencoder on shuffled rows of a store.",
    "encode": "Compute the feature activations of every token.",
    "index": "Order the feature activations by feature, the largest first.",
}


class SaeVerbs(Verbs):
    """The subcommands of ``actlas sae``."""

    verbs = VERBS
    prefix = "actlas.jobs.cli.sae_"


@click.group("sae", cls=SaeVerbs, short_help="Train, encode and index with sparse autoencoders.")
@debug_option
def command() -> None:
    """Train a sparse autoencoder, encode every token with it, index its features."""
