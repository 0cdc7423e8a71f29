"""Named spans of a text, and the tokens in them.

A span is a range of characters with a name: a labelled part of a record, or a message of a chat. A
token is in a span if its characters overlap it; of several overlapping spans the token belongs to
the one listed first. White space at the ends of a span does not count, since the tokens of most
models include the blank before their word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.corpus.fields import MISSING
from actlas.pipeline.corpus.formats.base import Unreadable
from actlas.pipeline.corpus.tokenization import Tokens
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ConfigError
from actlas.store.format.schema import check_token_columns

if TYPE_CHECKING:
    from jaxtyping import Int32

ROLE = "role"
"""The column with the role of the speaker of each token, for corpora of messages."""


class Span(NamedTuple):
    """The characters [start, stop) of a text, and their name."""

    start: int
    stop: int
    name: str


def column_name(field: str) -> str:
    """Return the name of the column of a span field: the last part of the field's path.

    Examples
    --------
    >>> column_name("annotation.entity")
    'entity'
    """
    return field.rsplit(".", 1)[-1]


def span_columns(options: PlanOptions) -> tuple[str, ...]:
    """Return the token columns of a corpus: the role, or one column for each span field.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.

    Raises
    ------
    ConfigError
        A span field's name is not possible as the name of a column.
    """
    roles = (ROLE,) if options.messages_field else ()
    names = (*roles, *map(column_name, options.span_fields))
    try:
        check_token_columns(names)
    except ConfigError as error:
        raise ConfigError(f"--span-fields: {error}", field="span_fields") from error
    return names


def spans_of(value: Any, name: str, text: str) -> tuple[Span, ...] | Unreadable:
    """Return the spans in a field's value, or the reason why it is no list of spans.

    Parameters
    ----------
    value : list
        Objects with ``start``, ``stop`` (or ``end``) and perhaps ``label``, or lists of two or
        three such values. A missing field, or None, has no spans.
    name : str
        The column, whose name is the label of spans without a label.
    text : str
        The text that the spans are in.
    """
    if value is MISSING or value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return Unreadable(f"field {name!r} is no list of spans")
    spans = []
    for item in value:
        start, stop, label = _span(item)
        if type(start) is not int or type(stop) is not int:
            return Unreadable(f"a span of {name!r} has no integers as start and stop")
        if not 0 <= start < stop <= len(text):
            return Unreadable(f"a span of {name!r} is empty or reaches beyond the text")
        if not (label is None or isinstance(label, str | int)):
            return Unreadable(f"a span of {name!r} has a label that is no string")
        spans.append(_trimmed(start, stop, name if label is None else str(label), text))
    return tuple(spans)


def _span(item: Any) -> tuple[Any, Any, Any]:
    if isinstance(item, Mapping):
        stop = item.get("stop")
        return item.get("start"), item.get("end") if stop is None else stop, item.get("label")
    if isinstance(item, Sequence) and len(item) in (2, 3) and not isinstance(item, str):
        start, stop, *label = item
        return start, stop, label[0] if label else None
    return None, None, None


def _trimmed(start: int, stop: int, name: str, text: str) -> Span:
    inner = text[start:stop]
    if not inner.isspace():
        start += len(inner) - len(inner.lstrip())
        stop -= len(inner) - len(inner.rstrip())
    return Span(start, stop, name)


def token_codes(
    tokens: Tokens, spans: Int32[NDArray[np.int32], "spans 3"]
) -> Int32[NDArray[np.int32], " tokens"]:
    """Return the code of each token's span, -1 for tokens in none; shape [tokens].

    Tokens that together encode one character all belong to that character's span. A blank that the
    tokenizer inserted belongs to the span of what it was put before.

    Parameters
    ----------
    tokens : Tokens
        The tokens of a document.
    spans : ndarray of int32, shape [spans, 3]
        Start, stop and code of each span.
    """
    codes = np.full(len(tokens), -1, np.int32)
    stops = np.append(tokens.char_start[1:], np.int32(tokens.char_stop))[: len(tokens)]
    for start, stop, code in spans[::-1].tolist():
        first = int(np.searchsorted(stops, start, side="right"))
        last = int(np.searchsorted(tokens.char_start, stop, side="left"))
        codes[first:last] = code
    # A token without characters continues the previous token's character, and has its span.
    whole = np.where(stops > tokens.char_start, np.arange(len(tokens)), 0)
    filled: NDArray[np.int32] = codes[np.maximum.accumulate(whole)] if len(tokens) else codes
    if tokens.leads is not None:
        for i in np.flatnonzero(tokens.leads)[::-1].tolist():  # each is followed by what it leads
            filled[i] = filled[i + 1]
    return filled
