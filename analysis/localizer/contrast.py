"""Which documents a contrast sets against which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.localization import Condition
from actlas.store.errors import ConfigError
from actlas.store.store import Store


class Sides(NamedTuple):
    """Both conditions; the side of every document (0, 1, or -1 for neither); how many of those."""

    conditions: tuple[Condition, Condition]
    group: NDArray[np.int8]
    n_ignored: int


def sides_of(store: Store, contrast: str | tuple[str, str]) -> Sides:
    """Return which document is on which side, and how many samples there are.

    Raises
    ------
    ConfigError
        There are no labels, a label does not exist, or a side has fewer than two documents with
        tokens.
    """
    codes, names = store.documents.label_codes, store.documents.label_names
    if codes is None or not names:
        raise ConfigError(
            f"{store.path}: its documents have no labels, so there is nothing to contrast. Plan it "
            "again with --label-field, naming the field of the corpus that holds the condition."
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
                f"{store.path}: condition {label!r} has {found.n_documents} documents with tokens "
                f"(and {found.n_without_tokens} without); a t-test needs at least 2 on each side.",
                label=label,
            )
    n_ignored = int((~np.isin(codes, [names.index(label) for label in pair])).sum())
    return Sides((conditions[0], conditions[1]), group, n_ignored)


def split_contrast(contrast: str | tuple[str, str], names: Sequence[str]) -> tuple[str, str]:
    """Return the two labels of a contrast.

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
        raise ConfigError(
            f"contrast {contrast!r}: there is no label {' and no label '.join(map(repr, unknown))}."
            f" {_labels(names)}",
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


def _labels(names: Sequence[str], limit: int = 50) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"This store's labels are: {', '.join(names[:limit])}{more}."
