"""Words around a place in a text: where a context begins and ends."""

from __future__ import annotations

import re

_WORD = re.compile(r"\S+")

WORD_CHARACTERS = 64
"""A context has at most so many characters for each word asked for, and for one more."""


def context_window(text: str, lo: int, hi: int, words: int) -> tuple[int, int]:
    """Return where ``words`` whole words before ``text[lo:hi]`` begin and as many after it end.

    A word that ``text[lo:hi]`` lies in is taken in whole and counts for neither side. Only the
    neighbourhood is looked at, so that a book is no slower than a page; and on each side there are
    at most ``64 * (words + 1)`` characters, since not every text has white space.
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
                starts = starts[1:]  # where it begins is not seen
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
