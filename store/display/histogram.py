"""A histogram of activations as an SVG that needs no other file."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from actlas.store.display.text import counted, html_text

BINS = 40

_WIDTH, _HEIGHT, _BELOW = 360, 70, 16
"""Pixels of the bars, and of the line of numbers below them."""


class Histogram(NamedTuple):
    """A histogram with bins of equal width.

    Attributes
    ----------
    start, stop : float
        The first and the last edge.
    counts : tuple of int, length BINS
        Values in each bin.
    of : str
        What is counted, such as ``activations above zero``.
    """

    start: float
    stop: float
    counts: tuple[int, ...]
    of: str


def histogram_of(values: ArrayLike, of: str) -> Histogram | None:
    """Return the histogram of finite values; None if there are none.

    Parameters
    ----------
    values : array-like, shape [n]
        The values; those that are NaN or infinite are left out.
    of : str
        What is counted.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    counts, edges = np.histogram(finite, BINS)
    return Histogram(float(edges[0]), float(edges[-1]), tuple(counts.tolist()), of)


def histogram_html(found: Histogram) -> str:
    """Return a histogram as SVG, the height of a bar by the logarithm of its count.

    Parameters
    ----------
    found : Histogram
        The histogram.
    """
    tallest = math.log1p(max(found.counts))
    step = _WIDTH / len(found.counts)
    bars = "".join(
        f"<rect x='{i * step:.1f}' y='{_HEIGHT - height:.1f}' width='{step - 1:.1f}' "
        f"height='{height:.1f}'><title>{counted(n, 'token')}</title></rect>"
        for i, n in enumerate(found.counts)
        if (height := _HEIGHT * math.log1p(n) / tallest) > 0
    )
    words = f"{counted(sum(found.counts), 'token')}: {found.of}; the bars are on a log scale"
    numbers = "".join(
        f"<text x='{x}' y='{_HEIGHT + _BELOW - 4}' text-anchor='{anchor}'>{value:.4g}</text>"
        for x, anchor, value in (
            (0, "start", found.start),
            (_WIDTH / 2, "middle", (found.start + found.stop) / 2),
            (_WIDTH, "end", found.stop),
        )
    )
    return (
        f"<figure style='margin:.5em 0'><svg viewBox='0 0 {_WIDTH} {_HEIGHT + _BELOW}' "
        f"width='{_WIDTH}' height='{_HEIGHT + _BELOW}' role='img' "
        f"aria-label='{html_text(words)}' style='max-width:100%'>"
        f"<g fill='rgb(230,120,0)'>{bars}</g>"
        f"<path d='M0 {_HEIGHT}.5H{_WIDTH}' stroke='currentColor' opacity='.5'/>"
        f"<g fill='currentColor' font-size='11' opacity='.8'>{numbers}</g></svg>"
        f"<figcaption style='opacity:.7;font-size:.85em'>{html_text(words)}</figcaption></figure>"
    )
