"""``actlas sae``: train a sparse autoencoder, encode a store by it, index its features."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from actlas.jobs.flags import debug_option

VERBS: Mapping[str, str] = {
    "train": "Train one on shuffled batches of a store's rows.",
    "encode": "Write every token's codes: the features by token.",
    "index": "Order them by feature: the tokens where each fires most.",
}


class SaeVerbs(click.Group):
    """Loads a verb when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which they are used."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"actlas.jobs.sae_{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group("sae", cls=SaeVerbs, short_help="Sparse autoencoders.")
@debug_option
def command() -> None:
    """Train a sparse autoencoder, encode every token by it, index its features."""
