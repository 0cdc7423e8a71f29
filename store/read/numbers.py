"""Numbers of documents and tokens as users give them: whole, and negative ones from the end."""

from __future__ import annotations

import operator
from typing import SupportsIndex


def whole_index(value: SupportsIndex, n: int, noun: str, where: str) -> int:
    """Return the index in [0, n) that a number stands for; a negative one counts from the end.

    Parameters
    ----------
    value : int
        The number; numpy's integers are accepted too.
    n : int
        The number of things.
    noun, where : str
        What the things are and what has them, for messages.

    Raises
    ------
    IndexError
        The number is outside [-n, n).
    TypeError
        It is not a whole number.

    Examples
    --------
    >>> whole_index(-1, 5, "document", "this store")
    4
    """
    try:
        index = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"{noun}: got {value!r} ({type(value).__name__}), expected a whole number."
        ) from error
    if not -n <= index < n:
        has = f"has {noun}s 0 to {n - 1}" if n else f"has no {noun}"
        raise IndexError(f"{noun} {index}: {where} {has}")
    return index + n if index < 0 else index
