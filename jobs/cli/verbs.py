"""Groups of verbs: listed without being imported, each loaded when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click


class Verbs(click.Group):
    """A group whose verbs lie in a module each, whose ``command`` they are.

    Attributes
    ----------
    verbs : mapping of str to str
        Their names, in the order in which they are used, each with a line of help.
    prefix : str
        What stands before a verb's name in the name of its module.
    """

    verbs: Mapping[str, str] = {}
    prefix = ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which they are used."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in self.verbs:
            return None
        command: click.Command = importlib.import_module(f"{self.prefix}{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.verbs.items()))
