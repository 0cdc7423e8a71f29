"""Named parts of a text, and which tokens lie in them.

A part is a range of characters with a name: a span that a record labels, or what one message of a
chat says. A token is in a part if its piece of the text overlaps it; where it overlaps several, the
one that the record lists first has it. White space at the ends of a span does not count, since the
tokens of most models carry the blank before their word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.corpus.fields import MISSING
from actlas.pipeline.corpus.readers import Unreadable
from actlas.pipeline.corpus.tokenization import Tokens
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ConfigError
from actlas.store.format.schema import check_token_columns

ROLE = "role"
"""The column of messages."""


class Part(NamedTuple):
    """Characters [start, stop) of a text, and their name."""

    start: int
    stop: int
    name: str


def column_name(field: str) -> str:
    """Return the column that a field of spans becomes: the last part of its path.

    Examples
    --------
    >>> column_name("annotation.entity")
    'entity'
    """
    return field.rsplit(".", 1)[-1]


def span_columns(options: PlanOptions) -> tuple[str, ...]:
    """Return the columns of tokens that a corpus gives: of roles, or one per field of spans.

    Raises
    ------
    ConfigError
        A column cannot have its field's name.
    """
    roles = (ROLE,) if options.messages_field else ()
    names = (*roles, *map(column_name, options.span_fields))
    try:
        check_token_columns(names)
    except ConfigError as error:
        raise ConfigError(f"--span-fields: {error}", field="span_fields") from error
    return names


def spans_of(value: Any, name: str, text: str) -> tuple[Part, ...] | Unreadable:
    """Return the spans of a field's value.

    Parameters
    ----------
    value : list
        Of objects with ``start``, ``stop`` (or ``end``) and perhaps ``label``, or of lists of two
        or three. A missing field, or None, has no spans.
    name : str
        Of the column: the label of spans without one.
    text : str
        That they are in.
    """
    if value is MISSING or value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return Unreadable(f"field {name!r} is no list of spans")
    parts = []
    for item in value:
        start, stop, label = _span(item)
        if type(start) is not int or type(stop) is not int:
            return Unreadable(f"a span of {name!r} has no integers as start and stop")
        if not 0 <= start < stop <= len(text):
            return Unreadable(f"a span of {name!r} is empty or reaches beyond the text")
        if not (label is None or isinstance(label, str | int)):
            return Unreadable(f"a span of {name!r} has a label that is no string")
        parts.append(_trimmed(start, stop, name if label is None else str(label), text))
    return tuple(parts)


def _span(item: Any) -> tuple[Any, Any, Any]:
    if isinstance(item, Mapping):
        stop = item.get("stop")
        return item.get("start"), item.get("end") if stop is None else stop, item.get("label")
    if isinstance(item, Sequence) and len(item) in (2, 3) and not isinstance(item, str):
        start, stop, *label = item
        return start, stop, label[0] if label else None
    return None, None, None


def _trimmed(start: int, stop: int, name: str, text: str) -> Part:
    inner = text[start:stop]
    if not inner.isspace():
        start += len(inner) - len(inner.lstrip())
        stop -= len(inner) - len(inner.rstrip())
    return Part(start, stop, name)


def token_codes(tokens: Tokens, parts: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the code of the part that each token lies in; -1 for none.

    Of several tokens that make one character, all have its part.

    Parameters
    ----------
    tokens : Tokens
    parts : ndarray of int32, shape [parts, 3]
        Start, stop, code.
    """
    codes = np.full(len(tokens), -1, np.int32)
    stops = np.append(tokens.char_start[1:], np.int32(tokens.char_stop))[: len(tokens)]
    for start, stop, code in parts[::-1].tolist():
        first = int(np.searchsorted(stops, start, side="right"))
        last = int(np.searchsorted(tokens.char_start, stop, side="left"))
        codes[first:last] = code
    # A token with an empty piece is the rest of a character: it goes with the one before it.
    whole = np.where(stops > tokens.char_start, np.arange(len(tokens)), 0)
    filled: NDArray[np.int32] = codes[np.maximum.accumulate(whole)] if len(tokens) else codes
    return filled
