"""Lines of the terminal: a label with its value, and cells in columns."""

from __future__ import annotations

from collections.abc import Iterable

LABEL_WIDTH = 12
"""Characters of a label with the space after it."""


def labelled(label: str, value: str) -> str:
    """Return a line with a label and a value, all values in one column.

    Parameters
    ----------
    label : str
        The label; empty for a line that continues the one above.
    value : str
        The value.

    Examples
    --------
    >>> labelled("shards", "5 of 12")
    'shards      5 of 12'
    """
    return f"{label:<{LABEL_WIDTH}}{value}"


def cells(values: Iterable[str], width: int) -> str:
    """Return values right-aligned in columns.

    Parameters
    ----------
    values : iterable of str
        The values of one line.
    width : int
        Characters of a column.

    Examples
    --------
    >>> cells(["1", "20"], 4)
    '   1  20'
    """
    return "".join(f"{value:>{width}}" for value in values)
