"""Contexts as HTML: every token shaded by its activation, the peak outlined, all text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actlas.store.features.contexts import ActivationContext, Contexts

_UP, _DOWN = "230,120,0", "30,110,220"
"""Orange above zero, blue below: told apart by every kind of eye."""

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


def shaded_html(entry: ActivationContext, scale: float) -> str:
    """Return one context: a token's colour is as deep as its activation is near ``scale``."""
    pieces = []
    for i, (token, value) in enumerate(zip(entry.tokens, entry.activations, strict=True)):
        share = share_of(value, scale)
        style = ""
        if share >= 0.01:
            colour = _UP if value > 0 else _DOWN
            style = f"background:rgba({colour},{0.75 * share:.2f});"
        if i == entry.peak:
            style += _PEAK
        text = escape(token).replace("\n", "↵\n")
        if style:
            pieces.append(f'<span style="{style}" title="{value:.4g}">{text}</span>')
        else:
            pieces.append(text)
    return f'<div style="{_TEXT}">{"".join(pieces)}</div>'


def share_of(value: float, scale: float) -> float:
    """Return how deep a value is shaded, 0 to 1; what is no number is not."""
    return min(1.0, abs(value) / scale) if scale > 0 and math.isfinite(value) else 0.0


def contexts_html(contexts: Contexts) -> str:
    """Return a list of contexts under their title and facts."""
    facts = " · ".join(f"{escape(n)} {escape(v)}" for n, v in contexts.facts.items())
    head = f"<h3>{escape(contexts.title)}</h3><p style='{_SMALL}'>{facts}</p>"
    if not len(contexts):
        return head + "<p>It fires on no token.</p>"
    return head + "".join(_entry_html(entry, contexts.scale) for entry in contexts)


def _entry_html(entry: ActivationContext, scale: float) -> str:
    label = f", label {entry.label}" if entry.label is not None else ""
    where = f"{entry.value:.4g} · document {entry.doc_idx}, token {entry.pos_idx}{label}"
    source = f" · {entry.source}"
    return (
        f"<div style='margin:0 0 1em'><div style='{_SMALL}'>{escape(where + source)}</div>"
        f"{shaded_html(entry, scale)}</div>"
    )


def contexts_page(several: Sequence[Contexts]) -> str:
    """Return a whole page that needs no other file."""
    title = "; ".join(contexts.title for contexts in several)
    body = "<hr>".join(contexts_html(contexts) for contexts in several)
    return _PAGE.format(title=escape(title), body=body)
