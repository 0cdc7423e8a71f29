"""HTML of contexts: each token shaded by its activation, the peak outlined, all text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from actlas.store.display.histogram import Histogram, histogram_html
from actlas.store.display.text import html_text

_UP, _DOWN = "230,120,0", "30,110,220"
"""Orange above zero and blue below: colour-blind readers can tell them apart."""

_PEAK = "outline:2px solid currentColor;border-radius:2px;font-weight:600"

_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7"

_SMALL = "opacity:.7;font-size:.85em"

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.5em }} h3 {{ font-size: 1.15em; margin: 0 }} hr {{ opacity: .3; margin: 2em 0 }}
nav ol {{ columns: 18em; padding-left: 2em }} section {{ scroll-margin-top: 1em }}
</style>
<body>
{body}
</body>
</html>
"""


class ShadedText(NamedTuple):
    """One context as it is shown: a heading, and tokens with their activations.

    Attributes
    ----------
    heading : str
        Says which token of which document this is.
    tokens : sequence of str, length n
        Consecutive pieces of the document's text.
    activations : sequence of float, length n
        The activation of each token.
    peak : int
        The index in ``tokens`` of the token that the context is about.
    """

    heading: str
    tokens: Sequence[str]
    activations: Sequence[float]
    peak: int


def shaded_html(text: ShadedText, scale: float) -> str:
    """Return the tokens of one context, each shaded in proportion to its activation.

    Parameters
    ----------
    text : ShadedText
        The tokens and their activations.
    scale : float
        The absolute activation that is shaded fully.
    """
    pieces = []
    for i, (token, value) in enumerate(zip(text.tokens, text.activations, strict=True)):
        share = share_of(value, scale)
        style = ""
        if share >= 0.01:
            colour = _UP if value > 0 else _DOWN
            style = f"background:rgba({colour},{0.75 * share:.2f});"
        if i == text.peak:
            style += _PEAK
        shown = html_text(token).replace("\n", "↵&#8203;")  # on one line, which may break there
        if style:
            pieces.append(f'<span style="{style}" title="{value:.4g}">{shown}</span>')
        else:
            pieces.append(shown)
    return f'<div style="{_TEXT}">{"".join(pieces)}</div>'


def share_of(value: float, scale: float) -> float:
    """Return the depth of a value's shade, from 0 to 1: ``|value| / scale``, 0 if not finite."""
    return min(1.0, abs(value) / scale) if scale > 0 and math.isfinite(value) else 0.0


def legend_html(texts: Sequence[ShadedText], scale: float) -> str:
    """Return what the shades and the outline mean.

    Parameters
    ----------
    texts : sequence of ShadedText
        The contexts that are shown: blue is explained where an activation is below zero.
    scale : float
        The absolute activation that is shaded fully.
    """
    shares = [0.25, 0.5, 0.75, 1.0]
    if any(value < 0 for text in texts for value in text.activations):
        shares = [*(-share for share in reversed(shares)), *shares]
    swatches = "".join(
        f'<span style="background:rgba({_UP if share > 0 else _DOWN},{0.75 * abs(share):.2f});'
        f'padding:0 .4em">{share * scale:.4g}</span>'
        for share in shares
    )
    return (
        f"<p style='font-size:.85em'>Shade: activation {swatches}; "
        f'<span style="{_PEAK};padding:0 .3em;margin:0 .2em">outlined</span> the token of the '
        "heading; ↵ a line break</p>"
    )


def contexts_html(
    title: str,
    facts: Mapping[str, str],
    texts: Sequence[ShadedText],
    scale: float,
    histogram: Histogram | None = None,
) -> str:
    """Return contexts under a title, a line of facts, a histogram and a legend.

    Parameters
    ----------
    title : str
        Names the feature or unit.
    facts : mapping of str to str
        Names and values, shown below the title.
    texts : sequence of ShadedText
        The contexts, in the order shown.
    scale : float
        The absolute activation that is shaded fully.
    histogram : Histogram, optional
        The distribution of the feature's or unit's activations.
    """
    line = " · ".join(f"{html_text(name)} {html_text(value)}" for name, value in facts.items())
    head = f"<h3>{html_text(title)}</h3><p style='{_SMALL}'>{line}</p>"
    if histogram is not None:
        head += histogram_html(histogram)
    if not texts:
        return head + "<p>There is no token to show.</p>"
    entries = (
        f"<div style='margin:0 0 1em'><div style='{_SMALL}'>{html_text(text.heading)}</div>"
        f"{shaded_html(text, scale)}</div>"
        for text in texts
    )
    return head + legend_html(texts, scale) + "".join(entries)


def page_html(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a complete page that needs no other file, with a table of contents if it is long.

    Parameters
    ----------
    title : str
        The page's title, escaped here.
    sections : iterable of (str, str)
        The name of each section, escaped here, and its HTML.
    """
    named = list(sections)
    body = "<hr>".join(
        f"<section id='s{number}'>{html}</section>" for number, (_, html) in enumerate(named, 1)
    )
    if len(named) > 1:
        entries = "".join(
            f"<li><a href='#s{number}'>{html_text(name)}</a></li>"
            for number, (name, _) in enumerate(named, 1)
        )
        head = f"<h1>{html_text(title)}</h1><nav aria-label='Contents'><ol>{entries}</ol></nav>"
        body = f"{head}<hr>{body}"
    return _PAGE.format(title=html_text(title), body=body)
