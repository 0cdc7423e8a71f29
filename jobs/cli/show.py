"""``actlas show``: one document with its tokens and their norms at each hookpoint."""

from __future__ import annotations

from collections.abc import Iterable

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.options import AtLeast
from actlas.jobs.formatting import count, counted, printable
from actlas.jobs.run.describe import show_of
from actlas.jobs.run.reports.contents import ShowReport
from actlas.jobs.terminal import echo
from actlas.store.store import open_store

AROUND = 8
"""Number of tokens shown on each side of ``--pos``."""

TEXT_CHARACTERS = 1200
"""Largest number of characters of a document's text that are shown."""


def _lines(shown: ShowReport) -> Iterable[str]:
    n_tokens = len(shown.tokens)
    label = f", label {shown.label}" if shown.label is not None else ""
    yield (
        f"document {shown.doc_idx}: record {shown.record} of {shown.source}"
        f"{label}, {counted(n_tokens, 'token')}, {counted(len(shown.text), 'character')}"
    )
    yield ""
    if shown.pos_idx is None or shown.context is None:
        text = shown.text
        more = (
            f" … and {count(len(text) - TEXT_CHARACTERS)} more"
            if len(text) > TEXT_CHARACTERS
            else ""
        )
        yield text[:TEXT_CHARACTERS] + more
        first, last = 0, min(n_tokens, 4 * AROUND)
    else:
        before, token, after = shown.context
        yield f"… {before}>>{token}<<{after} …"
        first, last = max(0, shown.pos_idx - AROUND), min(n_tokens, shown.pos_idx + AROUND + 1)
    yield ""
    yield from _table(shown, first, last)
    if last - first < n_tokens:
        shown_range = f"tokens [{first}, {last}) of {count(n_tokens)}"
        yield f"{shown_range}; --pos N shows the tokens around token N"
    if shown.pooled_norms:
        yield ""
        yield "pooled rows (L2 norms)"
    for hookpoint, pooled in shown.pooled_norms.items():
        norms = "".join(f"{pool:>8} {norm:<9.4g}" for pool, norm in pooled.items())
        yield f"  {hookpoint:<24}{norms}".rstrip()


def _table(shown: ShowReport, first: int, last: int) -> Iterable[str]:
    """Yield a line per token: position, id, text, columns, and L2 norm at each hookpoint."""
    hookpoints = list(shown.norms)
    unit = "   (L2 norms)" if hookpoints else ""
    widths = [max(9, len(name) + 2) for name in hookpoints]
    heads = "".join(f"{name:>{width}}" for name, width in zip(hookpoints, widths, strict=True))
    columns = {
        name: [_short("-" if value is None else value) for value in values]
        for name, values in shown.columns.items()
    }
    wide = {name: max(map(len, (_short(name), *columns[name]))) + 2 for name in columns}
    named = "".join(f"{_short(name):<{wide[name]}}" for name in columns)
    yield f"  {'pos':>6} {'id':>7}  {'token':<18}{named}{heads}{unit}"
    for pos in range(first, last):
        piece = _short(shown.tokens[pos])
        said = "".join(f"{values[pos]:<{wide[name]}}" for name, values in columns.items())
        norms = "".join(
            f"{shown.norms[name][pos]:>{width}.4g}"
            for name, width in zip(hookpoints, widths, strict=True)
        )
        mark = ">" if pos == shown.pos_idx else " "
        line = f"{mark} {pos:>6} {shown.token_id[pos]:>7}  {'|' + piece + '|':<18}{said}{norms}"
        yield line.rstrip()


def _short(text: str) -> str:
    text = printable(text)  # as it is printed, since it is padded to a column
    return text if len(text) <= 16 else text[:15] + "…"


@click.command("show", short_help="Show a document: text, tokens and norms.")
@click.argument("store")
@click.option(
    "--doc",
    type=AtLeast(0),
    required=True,
    help="Index of the document (doc_idx), from 0.",
)
@click.option(
    "--pos",
    type=AtLeast(0),
    help="Position of a token (pos_idx) to mark and show with its context.  [default: the "
    "document's beginning]",
)
@json_option
@debug_option
def command(store: str, doc: int, pos: int | None, as_json: bool) -> None:
    """Show a document of STORE: its text, its tokens, and their L2 norms at each hookpoint."""
    shown = show_of(open_store(store), doc, pos)
    echo(*([shown.to_json()] if as_json else _lines(shown)))
