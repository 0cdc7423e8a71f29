"""Contrasts: the documents or tokens of two conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.token_contrast import TokenSides, read_sides
from actlas.store.display.text import counted, did_you_mean
from actlas.store.errors import ConfigError
from actlas.store.read.reader import StoreReader

Contrast = str | tuple[str, str] | tuple[str, str, str]
"""``"S:N"``, ``("S", "N")`` of documents; ``"role=a:b"``, ``("role", "a", "b")`` of tokens."""

OTHERS = "*"
"""The name of all other tokens, also those without a value in the column."""


class Condition(NamedTuple):
    """One side of a contrast.

    Attributes
    ----------
    label : str
        The label of the documents or tokens.
    n_documents : int
        Number of samples: documents with tokens on this side.
    n_without_tokens : int
        Number of documents without tokens, which give no sample.
    """

    label: str
    n_documents: int
    n_without_tokens: int


class Sides(NamedTuple):
    """The two sides of a contrast.

    Attributes
    ----------
    conditions : tuple of Condition
        The positive and the negative side.
    group : ndarray of int8, shape [documents], or TokenSides
        The side of every document (0, 1, or -1 for neither), or of every token.
    n_ignored : int
        Number of documents on neither side.
    column : str or None
        The token column of a contrast of tokens; None for labels of documents.
    """

    conditions: tuple[Condition, Condition]
    group: NDArray[np.int8] | TokenSides
    n_ignored: int
    column: str | None = None


def sides_of(store: StoreReader, contrast: Contrast) -> Sides:
    """Return the two sides of a contrast.

    Parameters
    ----------
    store : StoreReader
        A store with labels or token columns.
    contrast : str or tuple of str
        See :func:`actlas.localize`.

    Raises
    ------
    ConfigError
        The store has no labels, a label or column does not exist, or a side has fewer than two
        documents with tokens.
    """
    if (column := column_of(store, contrast)) is not None:
        return _token_sides(store, *column)
    assert isinstance(contrast, str) or len(contrast) == 2
    codes, names = store.documents.label_codes, store.documents.label_names
    if codes is None or not names:
        columns = ", ".join(store.documents.token_column_names)
        tokens = f" Or contrast tokens, COLUMN=POSITIVE:NEGATIVE, by a column of: {columns}."
        raise ConfigError(
            f"{store.path}: expected documents with labels, got none. Plan the store again with "
            "--label-field, naming the field of the corpus that holds the condition."
            f"{tokens * bool(columns)}"
        )
    pair = split_contrast(contrast, names)
    n_tokens = np.diff(store.documents.start)
    group = np.full(len(codes), -1, dtype=np.int8)
    conditions = []
    for side, label in enumerate(pair):
        documents = codes == names.index(label)
        with_tokens = documents & (n_tokens > 0)
        group[with_tokens] = side
        found = Condition(label, int(with_tokens.sum()), int((documents & (n_tokens == 0)).sum()))
        conditions.append(found)
        if found.n_documents < 2:
            raise ConfigError(
                f"{store.path}: condition {label!r} has {counted(found.n_documents, 'document')} "
                f"with tokens (and {found.n_without_tokens} without); a t-test needs at least 2 on "
                "each side.",
                label=label,
            )
    n_ignored = int((~np.isin(codes, [names.index(label) for label in pair])).sum())
    return Sides((conditions[0], conditions[1]), group, n_ignored)


def column_of(store: StoreReader, contrast: Contrast) -> tuple[str, str, str] | None:
    """Return the column and the two names of a contrast of tokens; None for one of documents.

    Parameters
    ----------
    store : StoreReader
        The store.
    contrast : str or tuple of str
        See :func:`actlas.localize`.

    Raises
    ------
    ConfigError
        The column does not exist, or it has no such name.
    """
    columns = store.documents.token_column_names
    if isinstance(contrast, str):
        column, equals, rest = contrast.partition("=")
        labelled = any("=" in label for label in store.documents.label_names)
        if not equals or (labelled and column not in columns):
            return None
        pair: str | tuple[str, str] = rest
    elif len(contrast) == 3:
        column, pair = contrast[0], contrast[1:]
    else:
        return None
    if column not in columns:
        raise ConfigError(
            f"contrast {contrast!r}: no token column {column!r}. The columns of this store are: "
            f"{', '.join(columns) or 'none'}. Columns come from --span-fields, --messages-field "
            "and images in texts.",
            column=column,
        )
    positive, negative = split_contrast(pair, (*columns[column], OTHERS), column)
    if positive == OTHERS:
        raise ConfigError(
            f"contrast {contrast!r}: {OTHERS} stands for all other tokens, so it must come second."
        )
    return column, positive, negative


def _token_sides(store: StoreReader, column: str, positive: str, negative: str) -> Sides:
    names = store.documents.column_names(column)
    other = None if negative == OTHERS else names.index(negative)
    sides = read_sides(store, column, names.index(positive), other)
    found = [int((sides.n[:, side] > 0).sum()) for side in (0, 1)]
    for label, n_documents in zip((positive, negative), found, strict=True):
        if n_documents < 2:
            raise ConfigError(
                f"{store.path}: {counted(n_documents, 'document')} with tokens of "
                f"{column}={label}; a t-test needs at least 2 on each side.",
                label=label,
                column=column,
            )
    a, b = (Condition(*pair, 0) for pair in zip((positive, negative), found, strict=True))
    return Sides((a, b), sides, int((sides.n == 0).all(axis=1).sum()), column)


def split_contrast(
    contrast: str | tuple[str, str], names: Sequence[str], column: str | None = None
) -> tuple[str, str]:
    """Return the two labels of a contrast.

    Parameters
    ----------
    contrast : str or tuple of str
        ``"POSITIVE:NEGATIVE"`` or the two labels.
    names : sequence of str
        Existing labels.
    column : str, optional
        The token column that has these names. Default: they are labels of documents.

    Examples
    --------
    >>> split_contrast("S:N", ["N", "S"]), split_contrast("a:b:c", ["a:b", "c"])
    (('S', 'N'), ('a:b', 'c'))

    Raises
    ------
    ConfigError
        A label does not exist, or both are the same.
    """
    if isinstance(contrast, str):
        parts = contrast.split(":")
        pairs = [(":".join(parts[:i]), ":".join(parts[i:])) for i in range(1, len(parts))]
    else:
        pairs = [contrast]
    if not pairs:
        raise ConfigError(
            f"contrast: got {contrast!r}, expected two labels, POSITIVE:NEGATIVE. {_labels(names)}"
        )
    known = [pair for pair in pairs if pair[0] in names and pair[1] in names]
    if not known:
        unknown = [label for label in pairs[0] if label not in names]
        of = "" if column is None else f" in column {column}"
        near = [did_you_mean(label, names, 1)[len(" Did you mean ") : -1] for label in pairs[0]]
        hint = did_you_mean(unknown[0], names) if unknown else ""
        if all(near):
            hint = f" Did you mean {':'.join(near)}?"
        raise ConfigError(
            f"contrast {contrast!r}: no label {' and no label '.join(map(repr, unknown))}"
            f"{of}. {_labels(names, column)}{hint}",
            labels=list(names),
        )
    if len(known) > 1:
        raise ConfigError(
            f"contrast {contrast!r} can be read as {' or '.join(map(repr, known))}: give the two "
            "labels as a tuple, from Python."
        )
    if known[0][0] == known[0][1]:
        raise ConfigError(f"contrast {contrast!r}: expected two different labels.")
    return known[0]


def _labels(names: Sequence[str], column: str | None = None, limit: int = 50) -> str:
    if column is not None:
        named = [name for name in names if name != OTHERS]
        return f"Its labels are: {', '.join(named[:limit])}; {OTHERS} is every other token."
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"This store's labels are: {', '.join(names[:limit])}{more}."
