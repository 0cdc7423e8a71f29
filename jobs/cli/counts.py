"""Whole numbers as options take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.formatting import parse_count
from actlas.store.errors import ConfigError

if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType


class Count(_IntType):
    """Whole number, also written 2_000_000, 2e6 or 2M."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a value; fail with click's usage error."""
        try:
            return value if isinstance(value, int) else parse_count(str(value))
        except ConfigError as error:
            self.fail(error.message, param, ctx)


class AtLeast(Count):
    """Whole number with a smallest value.

    Parameters
    ----------
    least : int
        The smallest value.
    """

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a value; fail with click's usage error."""
        number = super().convert(value, param, ctx)
        if number < self.least:
            self.fail(f"got {value}, expected {self.least} or more", param, ctx)
        return number


class CountOrAuto(Count):
    """Whole number, or auto."""

    name = "count|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a value; fail with click's usage error."""
        try:
            return value if isinstance(value, int) or value == "auto" else parse_count(str(value))
        except ConfigError as error:
            self.fail(f"{error.message}, or auto", param, ctx)
