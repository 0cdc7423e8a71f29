"""HTML for notebooks: tables, a document's tokens, a token in its context. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from actlas.store.display.text import counted, html_text

MAX_TOKENS = 400
"""A document's HTML shows at most so many of its tokens."""

_TABLE = "border-collapse:collapse;text-align:left"

_TOKEN = "border-bottom:1px solid #9ab;white-space:pre-wrap"


def table_html(rows: Iterable[tuple[str, Any]]) -> str:
    """Return a table of two columns, each row a name and its value, escaped."""
    cells = "".join(
        f"<tr><th style='padding-right:1em'>{html_text(str(name))}</th>"
        f"<td>{html_text(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table style='{_TABLE}'>{cells}</table>"


def tokens_html(title: str, tokens: Sequence[str], token_ids: Sequence[int]) -> str:
    """Return a title, the number of tokens, and the text with each token underlined.

    Parameters
    ----------
    title : str
        Shown in bold.
    tokens : sequence of str
        The text of each token, in order. At most the first 400 are shown.
    token_ids : sequence of int
        The id of each token, shown when the pointer rests on it.
    """
    shown = zip(tokens[:MAX_TOKENS], token_ids, strict=False)
    pieces = "".join(
        f"<span style='{_TOKEN}' title='pos {pos}, id {token_id}'>{html_text(token)}</span>&#8203;"
        for pos, (token, token_id) in enumerate(shown)
    )
    more = len(tokens) - MAX_TOKENS
    rest = f" <i>… and {more:,} more tokens</i>" if more > 0 else ""
    return (
        f"<div><b>{html_text(title)}</b>, {counted(len(tokens), 'token')}<br>{pieces}{rest}</div>"
    )


def marked_html(before: str, token: str, after: str, title: str) -> str:
    """Return ``before + token + after`` with the token marked.

    Parameters
    ----------
    before, token, after : str
        Three consecutive pieces of text.
    title : str
        Shown when the pointer rests on the token.
    """
    return (
        f"<div style='white-space:pre-wrap'>{html_text(before)}"
        f"<mark title='{html_text(title)}'>{html_text(token)}</mark>{html_text(after)}</div>"
    )
