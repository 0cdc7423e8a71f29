"""Globs of hookpoint names: ``*`` and ``?`` stay between two dots, ``**`` does not."""

from __future__ import annotations

import re

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
