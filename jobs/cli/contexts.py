"""``actlas contexts``: the tokens with the largest activations of a feature or a unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.options import AtLeast, asked_for, run_options
from actlas.jobs.derived.extremes import units_of
from actlas.jobs.formatting import counted
from actlas.jobs.output import check_file, write_whole
from actlas.jobs.run.reports.analysis import ContextsReport, FeatureContexts
from actlas.jobs.terminal import Line, Span, echo, is_terminal
from actlas.pipeline.options import RunOptions
from actlas.store.display.contexts_html import share_of
from actlas.store.errors import ConfigError, FeatureError
from actlas.store.features.contexts import ActivationContext, Contexts, contexts_page
from actlas.store.store import Store, open_store

_UP, _DOWN = (255, 150, 40), (90, 160, 255)

_BOLD, _DIM, _BLACK = "1", "2", "38;2;0;0;0"

_PEAK = ("\u27e6", "\u27e7")
"""White square brackets, which mark the token on terminals without colour."""


def lines(contexts: Contexts, *, colour: bool) -> Iterator[Line]:
    """Yield the lines of contexts for a terminal.

    Parameters
    ----------
    contexts : Contexts
        The contexts.
    colour : bool
        Shade the tokens by their activation; otherwise only mark the token with brackets.
    """
    yield contexts.title + ": " + ", ".join(f"{n} {v}" for n, v in contexts.facts.items())
    if not len(contexts):
        yield "active on no token"
    for entry in contexts:
        where = f"{entry.value:>9.4g}  {entry.doc_idx}:{entry.pos_idx}"
        if entry.label is not None:
            where += f" {entry.label}"
        yield ""
        yield [Span(where, _DIM)] if colour else where
        yield _shaded(entry, contexts.scale) if colour else f"  {_marked(entry)}"


def _marked(entry: ActivationContext) -> str:
    left, right = _PEAK
    return _line(entry.before) + left + _line(entry.token) + right + _line(entry.after)


def _line(text: str) -> str:
    """Return text on one line, with arrows for line breaks."""
    return text.replace("\n", "\u21b5")


def _shaded(entry: ActivationContext, scale: float) -> list[Span]:
    pieces = [Span("  ")]
    for i, (token, value) in enumerate(zip(entry.tokens, entry.activations, strict=True)):
        share = share_of(value, scale)
        here = i == entry.peak
        text = _PEAK[0] + _line(token) + _PEAK[1] if here else _line(token)
        style = [_BOLD] if here else []
        if share >= 0.05:
            deep = _UP if value > 0 else _DOWN
            red, green, blue = (int(255 - share * (255 - c)) for c in deep)
            style += [_BLACK, f"48;2;{red};{green};{blue}"]
        pieces.append(Span(text, ";".join(style)))
    return pieces


def _contexts(store: Store, asked: dict[str, Any], run: RunOptions) -> list[Contexts]:
    """Return the contexts of one feature, of some features, or of one raw unit."""
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
        return [units_of(store, hookpoint, run).contexts(unit, k, **options)]
    got = ", ".join(f"--{name} {asked[name]}" for name in _WHICH if name in given) or "none of them"
    raise ConfigError(
        f"give --sae NAME and --feature F (or --some N), or --hookpoint H and --unit U; got {got}."
    )


_WHICH = ("sae", "feature", "some", "hookpoint", "unit")


@click.command("contexts", short_help="Show the tokens where a feature or unit is most active.")
@click.argument("store")
@click.option(
    "--sae", metavar="NAME", help="Name of a set of features; see `actlas sae`.  [default: none]"
)
@click.option("--feature", type=int, help="Index of a feature of that set.  [default: none]")
@click.option(
    "--some",
    type=AtLeast(1),
    metavar="N",
    help="Show N features of the set, drawn from those active on 0.1 % to 5 % of the tokens.  "
    "[default: none]",
)
@click.option("--hookpoint", help="Hookpoint of a raw unit.  [default: none]")
@click.option("--unit", type=int, help="Index of a unit of that hookpoint.  [default: none]")
@click.option("-k", type=AtLeast(1), default=20, help="Number of contexts.  [default: 20]")
@click.option(
    "--bottom",
    is_flag=True,
    help="Show a feature's smallest activations above zero, or a unit's smallest.  [default: no]",
)
@click.option(
    "--words",
    type=AtLeast(0),
    default=20,
    help="Words of context on each side.  [default: 20]",
)
@click.option("--distinct", is_flag=True, help="At most one context per document.  [default: no]")
@click.option(
    "--html",
    type=click.Path(),
    metavar="FILE",
    help="Write an HTML page.  [default: print to the terminal]",
)
@run_options("executor", "workers", "address", "deadline_floor_s", "retry_quarantined")
@json_option
@debug_option
def command(store: str, html: str | None, as_json: bool, **options: Any) -> None:
    """Show the tokens of STORE on which a feature, or a raw unit, is most active.

    Brackets mark the token; the other tokens are shaded by their activation. The first command for
    a raw unit collects the extremes of all units of its hookpoint in one pass over the store.
    """
    if as_json and html is not None:
        raise ConfigError("--json prints, --html writes a page: give one of them.")
    if html is not None:
        check_file(html)
    found = _contexts(open_store(store), options, asked_for(options).run)
    if not found:
        echo(
            f"no feature of {options['sae']} is active on 0.1 % to 5 % of the tokens, from which "
            "--some draws: give --feature F",
            err=True,
        )
    if as_json:
        bodies = [FeatureContexts(**contexts.to_json()) for contexts in found]
        several = options["some"] is not None
        echo(ContextsReport(bodies if several else bodies[0]).to_json())
    elif html is not None:
        write_whole(html, contexts_page(found))
        n, titles = sum(map(len, found)), "; ".join(contexts.title for contexts in found)
        echo(f"done: {counted(n, 'context')} of {titles or 'no feature'} -> {Path(html)}")
    else:
        for number, contexts in enumerate(found):
            echo(*([""] if number else []), *lines(contexts, colour=is_terminal()))
