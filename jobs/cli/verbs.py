"""Groups of commands that are listed without importing them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from actlas.store.display.text import did_you_mean

_WORDS = {
    "run": "extract",
    "start": "extract",
    "resume": "extract",
    "ls": "info",
    "list": "info",
    "check": "verify",
    "fix": "repair",
    "train": "sae",
    "encode": "sae",
    "index": "sae",
    "layers": "hookpoints",
    "hooks": "hookpoints",
}
"""Words that other tools have for our commands."""


class Verbs(click.Group):
    """A group of commands, each the ``command`` of its own module.

    Attributes
    ----------
    verbs : mapping of str to str
        The commands' names in the order of their use, each with a line of help.
    prefix : str
        The module name without the command's name.
    """

    verbs: Mapping[str, str] = {}
    prefix = ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of their use."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.verbs:
            return None
        command: click.Command = importlib.import_module(f"{self.prefix}{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with; say which is near to an unknown one."""
        name = str(args[0])
        if name not in self.verbs and not name.startswith("-"):
            near = did_you_mean(_WORDS.get(name, name), self.verbs) or (
                f" {ctx.command_path} has {', '.join(self.verbs)}."
            )
            ctx.fail(f"No such command {name!r}.{near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.verbs.items()))
