"""``actlas sae``: train a sparse autoencoder, encode a store by it, index its features."""

from __future__ import annotations

from collections.abc import Mapping

import click

from actlas.jobs.cli.flags import debug_option
from actlas.jobs.cli.verbs import Verbs

VERBS: Mapping[str, str] = {
    "train": "Train one on shuffled batches of a store's rows.",
    "encode": "Write every token's codes: the features by token.",
    "index": "Order them by feature: the tokens where each fires most.",
}


class SaeVerbs(Verbs):
    """The verbs of sparse autoencoders."""

    verbs = VERBS
    prefix = "actlas.jobs.cli.sae_"


@click.group("sae", cls=SaeVerbs, short_help="Sparse autoencoders.")
@debug_option
def command() -> None:
    """Train a sparse autoencoder, encode every token by it, index its features."""
