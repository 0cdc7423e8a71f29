"""Formatting of numbers, durations, ranges and commands for messages."""

from __future__ import annotations

import math
import re
import shlex

from actlas.store.display.text import count as count
from actlas.store.display.text import counted as counted
from actlas.store.display.text import is_are as is_are
from actlas.store.display.text import n_bytes as n_bytes
from actlas.store.display.text import plural as plural
from actlas.store.display.text import printable as printable
from actlas.store.errors import ConfigError

_COUNT = re.compile(r"(?P<number>\d+(\.\d+)?(e\+?\d+)?)(?P<unit>[kmgbt]?)", re.IGNORECASE)

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


def parse_count(text: str) -> int:
    """Return a whole number from ``2000000``, ``2_000_000``, ``2,000,000``, ``2e6``, ``2M``.

    Raises
    ------
    ConfigError
        The text is not a whole number.

    Examples
    --------
    >>> parse_count("2_000_000"), parse_count("2e6"), parse_count("2.5M")
    (2000000, 2000000, 2500000)
    """
    cleaned = re.sub(r"(?<=\d)[_,](?=\d)", "", text.strip())
    match = _COUNT.fullmatch(cleaned)
    if match is not None and re.fullmatch(r"\d{1,40}", cleaned):
        return int(cleaned)
    if match is not None:
        value = float(match["number"]) * _UNITS[match["unit"].lower()]
        if math.isfinite(value) and value == int(value):
            return int(value)
    least = " of 0 or more" if cleaned.startswith("-") else ""
    raise ConfigError(
        f"got {text!r}, expected a whole number{least} such as 2000000, 2_000_000, 2e6 or 2M"
    )


def duration(seconds: float) -> str:
    """Return a duration in a suitable unit.

    >>> duration(3.21), duration(34), duration(250), duration(7300)
    ('3.2 s', '34 s', '4 min 10 s', '2 h 01 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def command(*words: str) -> str:
    """Return an actlas command to copy into a shell.

    >>> command("verify", "my run.zarr")
    "actlas verify 'my run.zarr'"
    """
    return shlex.join(("actlas", *words))


def ranges(numbers: list[int], limit: int = 8) -> str:
    """Return ascending numbers as ranges, of which at most ``limit`` are listed.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in parts[:limit]]
    more = len(parts) - len(shown)
    return ", ".join(shown) + (f" and {counted(more, 'more range')}" if more > 0 else "")


def numbered(numbers: list[int], noun: str) -> str:
    """Return a noun with the numbers of what it names, as :func:`ranges`.

    >>> numbered([3], "shard"), numbered([3, 4], "shard")
    ('shard 3', 'shards 3-4')
    """
    return f"{noun if len(numbers) == 1 else plural(noun)} {ranges(numbers)}"
