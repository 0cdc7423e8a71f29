"""Globs of hookpoint names: ``*`` and ``?`` stay between two dots, ``**`` does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actlas.store.format.aliases import lens_name

if TYPE_CHECKING:
    from actlas.store.format.schema import HookpointSpec
    from actlas.store.read.reader import StoreReader

_MEANING = {"**": ".*", "*": "[^.]*", "?": "[^.]"}


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a glob, for ``fullmatch``.

    Parameters
    ----------
    pattern : str
        A name or module path; ``*`` and ``?`` stand for characters other than a dot, ``**`` for any
        characters.

    Examples
    --------
    >>> [bool(glob_regex("resid_*.3").fullmatch(n)) for n in ("resid_post.3", "resid_a.b.3")]
    [True, False]
    """
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    return re.compile("".join(_MEANING.get(part, re.escape(part)) for part in parts))


def select_hookpoints(
    store: StoreReader, asked: str | Sequence[str] | None
) -> tuple[HookpointSpec, ...]:
    """Return the hookpoints of a store that names or globs stand for, in the store's order.

    Parameters
    ----------
    store : StoreReader
        The store.
    asked : str or sequence of str, optional
        Names, also other libraries' names, or globs; in one string they are separated by commas.
        None stands for all.

    Raises
    ------
    HookpointError
        A name or glob matches none; the message lists the store's.
    """
    specs = store.plan.hookpoints
    if asked is None:
        return specs
    parts = asked.split(",") if isinstance(asked, str) else list(asked)
    patterns = [part.strip() for part in parts if part.strip()]
    found: set[str] = set()
    for pattern in patterns or [""]:
        regex = glob_regex(lens_name(pattern, store.plan.model.architecture) or pattern)
        matching = {spec.name for spec in specs if regex.fullmatch(spec.name)}
        found |= matching or {store.name_of(pattern)}
    return tuple(spec for spec in specs if spec.name in found)
