"""The context window of a token: the slice of its document with some words on each side."""

from __future__ import annotations

import re

_WORD = re.compile(r"\S+")

WORD_CHARACTERS = 64
"""A context window has at most this many characters per word on each side, plus one word's."""


def context_window(text: str, lo: int, hi: int, words: int) -> tuple[int, int]:
    """Return the slice [start, stop) of a text with whole words around ``text[lo:hi]``.

    A word that contains an end of ``text[lo:hi]`` is included completely and counts for neither
    side. Each side has at most ``64 * (words + 1)`` characters, since a text may have no white
    space, and only these characters are searched.

    Parameters
    ----------
    text : str
        The document's text.
    lo, hi : int
        The characters of the token, half-open.
    words : int
        The number of words on each side.
    """
    limit = WORD_CHARACTERS * (words + 1)
    return _back(text, lo, words, limit), _forward(text, hi, words, limit)


def _back(text: str, lo: int, words: int, limit: int) -> int:
    width = limit // 2
    while True:
        first = max(0, lo - width)
        starts = [m.start() for m in _WORD.finditer(text, first, lo)]
        cut = lo
        if starts and lo < len(text) and not text[lo - 1].isspace() and not text[lo].isspace():
            cut = starts.pop()
        if first and not text[first].isspace() and not text[first - 1].isspace():
            if starts:
                starts = starts[1:]  # this word begins before the part that was searched
            else:
                cut = -1
        if first == 0 or (cut >= 0 and len(starts) >= max(words, 1)):
            return starts[-words:][0] if starts and words else cut
        if width == limit:
            return first if words or cut < 0 else cut
        width = limit


def _forward(text: str, hi: int, words: int, limit: int) -> int:
    width = limit // 2
    while True:
        last = min(len(text), hi + width)
        stops = [m.end() for m in _WORD.finditer(text, hi, last)]
        cut = hi
        if stops and hi and not text[hi - 1].isspace() and not text[hi].isspace():
            cut = stops.pop(0)
        if last < len(text) and not text[last - 1].isspace() and not text[last].isspace():
            if stops:
                stops = stops[:-1]
            else:
                cut = -1
        if last == len(text) or (cut >= 0 and len(stops) >= max(words, 1)):
            return stops[:words][-1] if stops and words else cut
        if width == limit:
            return last if words or cut < 0 else cut
        width = limit
