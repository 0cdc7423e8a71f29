"""HTML of contexts: each token shaded by its activation, the peak outlined, all text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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
        shown = html_text(token).replace("\n", "↵\n")
        if style:
            pieces.append(f'<span style="{style}" title="{value:.4g}">{shown}</span>')
        else:
            pieces.append(shown)
    return f'<div style="{_TEXT}">{"".join(pieces)}</div>'


def share_of(value: float, scale: float) -> float:
    """Return the depth of a value's shade, from 0 to 1: ``|value| / scale``, 0 if not finite."""
    return min(1.0, abs(value) / scale) if scale > 0 and math.isfinite(value) else 0.0


def contexts_html(
    title: str, facts: Mapping[str, str], texts: Sequence[ShadedText], scale: float
) -> str:
    """Return contexts under a title and a line of facts.

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
    """
    line = " · ".join(f"{html_text(name)} {html_text(value)}" for name, value in facts.items())
    head = f"<h3>{html_text(title)}</h3><p style='{_SMALL}'>{line}</p>"
    if not texts:
        return head + "<p>There is no token to show.</p>"
    entries = (
        f"<div style='margin:0 0 1em'><div style='{_SMALL}'>{html_text(text.heading)}</div>"
        f"{shaded_html(text, scale)}</div>"
        for text in texts
    )
    return head + "".join(entries)


def page_html(title: str, bodies: Iterable[str]) -> str:
    """Return a complete page that needs no other file.

    Parameters
    ----------
    title : str
        The page's title, escaped here.
    bodies : iterable of str
        Pieces of HTML, separated by rules.
    """
    return _PAGE.format(title=html_text(title), body="<hr>".join(bodies))
