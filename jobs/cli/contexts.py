"""``actlas contexts``: the tokens on which a feature or a unit fires most, among their words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.derived.extremes import units_of
from actlas.jobs.formatting import printable
from actlas.jobs.output import write_whole
from actlas.store.display.contexts_html import share_of
from actlas.store.errors import ConfigError, FeatureError
from actlas.store.features.contexts import ActivationContext, Contexts, contexts_page
from actlas.store.store import Store, open_store

_UP, _DOWN = (255, 150, 40), (90, 160, 255)

_PEAK = ("\u27e6", "\u27e7")
"""White square brackets around the token itself, where there is no colour."""


def lines(contexts: Contexts, *, colour: bool) -> Iterator[str]:
    """Yield contexts as a terminal shows them: shaded where it has colours, else in brackets."""
    yield contexts.title + ": " + ", ".join(f"{n} {v}" for n, v in contexts.facts.items())
    if not len(contexts):
        yield "it fires on no token"
    for entry in contexts:
        where = f"{entry.value:>9.4g}  {entry.doc_idx}:{entry.pos_idx}"
        if entry.label is not None:
            where += f" {printable(entry.label)}"
        yield ""
        yield click.style(where, dim=True) if colour else where
        yield "  " + (_shaded(entry, contexts.scale) if colour else _marked(entry))


def _marked(entry: ActivationContext) -> str:
    left, right = _PEAK
    return _line(entry.before) + left + _line(entry.token) + right + _line(entry.after)


def _line(text: str) -> str:
    """Return text on one line, line breaks as arrows."""
    return printable(text.replace("\n", "\u21b5"))


def _shaded(entry: ActivationContext, scale: float) -> str:
    pieces = []
    for i, (token, value) in enumerate(zip(entry.tokens, entry.activations, strict=True)):
        share = share_of(value, scale)
        here = i == entry.peak
        text = _PEAK[0] + _line(token) + _PEAK[1] if here else _line(token)
        if share >= 0.05:
            deep = _UP if value > 0 else _DOWN
            red, green, blue = (int(255 - share * (255 - c)) for c in deep)
            text = click.style(text, bg=(red, green, blue), fg=(0, 0, 0), bold=here)
        elif here:
            text = click.style(text, bold=True)
        pieces.append(text)
    return "".join(pieces)


def _contexts(store: Store, asked: dict[str, Any]) -> list[Contexts]:
    """Return what was asked for: one feature, some, or one raw unit."""
    given = {name for name in _WHICH if asked[name] is not None}
    options = {name: asked[name] for name in ("bottom", "words", "distinct")}
    k = asked["k"]
    if given in ({"sae", "feature"}, {"sae", "some"}):
        features = store.features(asked["sae"])
        wanted = features.some(asked["some"]) if "some" in given else [asked["feature"]]
        return [features.contexts(feature, k, **options) for feature in wanted]
    if given == {"hookpoint", "unit"}:
        hookpoint, unit = asked["hookpoint"], asked["unit"]
        width = store.activations[hookpoint].shape[1]
        if not 0 <= unit < width:
            raise FeatureError(f"unit {unit}: {hookpoint} has units 0 to {width - 1}.", unit=unit)
        return [units_of(store, hookpoint).contexts(unit, k, **options)]
    got = ", ".join(f"--{name} {asked[name]}" for name in _WHICH if name in given) or "none of them"
    raise ConfigError(
        f"give --sae NAME and --feature F (or --some N), or --hookpoint H and --unit U; got {got}."
    )


_WHICH = ("sae", "feature", "some", "hookpoint", "unit")


@click.command("contexts", short_help="Where a feature or a unit fires most.")
@click.argument("store")
@click.option("--sae", metavar="NAME", help="A set of features: see `actlas sae`.  [default: none]")
@click.option("--feature", type=int, help="Of that set.  [default: none]")
@click.option(
    "--some",
    type=click.IntRange(1),
    metavar="N",
    help="That many features of it, drawn from those that fire on 0.1 % to 5 % of the tokens.  "
    "[default: none]",
)
@click.option("--hookpoint", help="Of the store, for a raw unit.  [default: none]")
@click.option("--unit", type=int, help="Of that hookpoint.  [default: none]")
@click.option("-k", type=click.IntRange(1), default=20, help="How many contexts.  [default: 20]")
@click.option(
    "--bottom",
    is_flag=True,
    help="A feature's smallest activations above zero; a unit's smallest.  [default: no]",
)
@click.option("--words", type=click.IntRange(0), default=20, help="On each side.  [default: 20]")
@click.option(
    "--distinct", is_flag=True, help="At most one context of each document.  [default: no]"
)
@click.option(
    "--html",
    type=click.Path(),
    metavar="FILE",
    help="Write a page.  [default: print to the terminal]",
)
@json_option
@debug_option
def command(store: str, html: str | None, as_json: bool, **asked: Any) -> None:
    """Show the tokens of STORE on which a feature, or a raw unit, is largest.

    The token itself stands in brackets; the others are shaded by their activation. The first look
    at a raw unit gathers the extremes of all units of its hookpoint in one pass.
    """
    if as_json and html is not None:
        raise ConfigError("--json prints, --html writes a page: give one of them.")
    found = _contexts(open_store(store), asked)
    if as_json:
        bodies = [contexts.to_json() for contexts in found]
        click.echo(json.dumps(bodies if asked["some"] is not None else bodies[0]))
    elif html is not None:
        write_whole(html, contexts_page(found))
        n, titles = sum(map(len, found)), "; ".join(contexts.title for contexts in found)
        click.echo(f"done: {n} contexts of {titles} -> {Path(html)}")
    else:
        colour = sys.stdout.isatty()
        blocks = ["\n".join(lines(contexts, colour=colour)) for contexts in found]
        click.echo("\n\n".join(blocks))
