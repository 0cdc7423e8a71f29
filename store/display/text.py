"""Numbers and untrusted strings as plain text."""

from __future__ import annotations


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

    Newlines and tabs are escaped too.

    >>> printable("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
