"""Numbers and untrusted strings as plain text."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from html import escape


def n_bytes(value: float) -> str:
    """Return a number of bytes in decimal units, with three digits.

    >>> n_bytes(512), n_bytes(1_234_567_890)
    ('512 B', '1.23 GB')
    """
    if value < 999.5:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.5 or unit == "PB":
            break
    return f"{value:.3g} {unit}"


def count(value: float) -> str:
    """Return a whole number with thousands separated.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{value:,.0f}"


def counted(n: float, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    >>> counted(1, "shard"), counted(1234, "worker"), counted(2, "entry"), counted(0, "batch")
    ('1 shard', '1,234 workers', '2 entries', '0 batches')
    """
    shown = count(n)
    return f"{shown} {noun if shown == '1' else plural(noun)}"


def is_are(n: float) -> str:
    """Return the verb behind a number: "is" for 1, else "are".

    >>> is_are(1), is_are(2)
    ('is', 'are')
    """
    return "is" if count(n) == "1" else "are"


def plural(noun: str) -> str:
    """Return the plural of a noun.

    >>> plural("row"), plural("query"), plural("key"), plural("process"), plural("branch")
    ('rows', 'queries', 'keys', 'processes', 'branches')
    """
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def printable(text: str) -> str:
    r"""Return text as one line with control characters escaped, so that it is safe to print.

    Newlines and tabs are escaped too, and so are formats that are not seen: changes of the
    direction of writing, separators of lines and paragraphs, lone surrogates. What was escaped
    already stays as it is.

    >>> printable("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def shortened(text: str, limit: int) -> str:
    """Return text of at most ``limit`` characters; an ellipsis stands for the others.

    >>> shortened("activation", 6)
    'activ…'
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Return at most ``limit`` names for a message, and the number of the others.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = list(names)
    more = f" and {len(shown) - limit:,} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def did_you_mean(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return " Did you mean NAME?" with the known names nearest to one; empty if none is near.

    Upper and lower case count as the same, and so do ``-``, ``_``, ``.`` and ``/``.

    Parameters
    ----------
    name : str
        The unknown name.
    known : iterable of str
        The names that exist.
    n : int
        The maximum number of names.

    Examples
    --------
    >>> did_you_mean("Resid-Post.3", ["resid_post.3", "mlp_out.3"])
    ' Did you mean resid_post.3?'
    """
    plain = {_plain(each): each for each in reversed([*known])}
    near = difflib.get_close_matches(_plain(name), plain, n=n, cutoff=0.6)
    if near and near[0] == _plain(name):
        near = near[:1]
    return f" Did you mean {' or '.join(plain[each] for each in near)}?" if near else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_./\s]", "_", name.casefold())


def printable_lines(text: str) -> str:
    r"""Return text with control characters escaped, except for newlines and tabs.

    A carriage return in front of a newline is left out.

    >>> printable_lines("a\r\n\tb\x1b[2J\r")
    'a\n\tb\\x1b[2J\\r'
    """
    kept = text.replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in kept)


def html_text(text: str) -> str:
    r"""Return text as HTML in which nothing acts and nothing hides.

    Markup is escaped for elements and quoted attributes. Control characters, changes of the
    direction of writing and other formats that are not seen appear as escapes; newlines, tabs,
    and the joiners that scripts and emoji need stay.

    >>> html_text("<b>\u202eevil\x1b")
    '&lt;b&gt;\\u202eevil\\x1b'
    """
    return escape("".join(_escaped(c) if _hidden(c) else c for c in text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _hidden(character: str) -> bool:
    """Return whether a browser shows nothing for a character, or obeys it."""
    if character.isprintable() or character in _KEPT:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


_KEPT = frozenset("\n\t\u200c\u200d")
"""Newline, tab, zero width non-joiner and joiner."""
