"""Numbers and untrusted strings as plain text."""

from __future__ import annotations

import unicodedata
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
