"""``actlas hookpoints``: the hookpoints of a model, their width and their size in a store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.options import model_options
from actlas.jobs.formatting import count, counted, n_bytes
from actlas.jobs.run.hookpoints import hookpoints_of
from actlas.jobs.run.reports.contents import HookpointEntry, HookpointsReport
from actlas.jobs.terminal import echo
from actlas.pipeline.options import PlanOptions
from actlas.store.format.dtypes import ACTIVATION_DTYPES


def _lines(listing: HookpointsReport) -> Iterable[str]:
    blocks = f"{listing.n_layers} blocks, {listing.blocks}.L"
    yield (
        f"{listing.model} ({listing.architecture}): "
        f"{blocks if listing.blocks else 'no stack of blocks'}"
    )
    if listing.hookpoints:
        yield ""
        yield from _table(listing)
    if listing.absent and not listing.patterns:
        yield ""
        yield "Not in this model:"
        yield from _absent(listing.absent)
    if listing.modules is not None:
        yield ""
        yield from _module_lines(listing)
    elif not listing.hookpoints:
        yield "No named hookpoints: --modules lists module paths, which are hookpoints too."


def _table(listing: HookpointsReport) -> Iterable[str]:
    images = listing.reads == "images"
    each = "position" if images else "token"
    head = f"{'positions':>11}" if images else ""
    yield f"{'hookpoint':<44}{'width':>8}{head}   {listing.dtype} bytes per {each}"
    for group in _groups(listing.hookpoints):
        first = group[0]
        positions = "" if first.positions is None else f"{count(first.positions):>11}"
        size = n_bytes(first.bytes_per_token * len(group))
        one = f" ({len(group)} x {n_bytes(first.bytes_per_token)})" if len(group) > 1 else ""
        yield f"{_span(group):<44}{count(first.width):>8}{positions}   {size}{one}"
    for match in listing.patterns if len(listing.patterns) > 1 else ():
        what = f"{match.pattern}: {counted(len(match.hookpoints), 'hookpoint')}"
        yield f"{what:<55}{n_bytes(match.bytes_per_token)}"
    total = listing.bytes_per_token
    n = len(listing.hookpoints)
    many = n_bytes(total * 10**6)
    yield f"{f'all {n}':<55}{n_bytes(total)}; {many} for a million {each}s"


def _groups(hookpoints: list[HookpointEntry]) -> list[list[HookpointEntry]]:
    """Group hookpoints of one kind and size in consecutive layers."""
    groups: list[list[HookpointEntry]] = []
    open_group: dict[tuple[str, ...], list[HookpointEntry]] = {}
    for hookpoint in hookpoints:
        stem, layer = _numbered(hookpoint.name)
        key = (*stem, str(hookpoint.width), str(hookpoint.positions))
        group = open_group.get(key)
        if layer is not None and group and _numbered(group[-1].name)[1] == layer - 1:
            group.append(hookpoint)
        else:
            open_group[key] = [hookpoint]
            groups.append(open_group[key])
    return groups


def _numbered(name: str) -> tuple[tuple[str, str], int | None]:
    """Split a name at its first number: the text before, the text after, and the number."""
    match = re.search(r"(?<=\.)\d+(?=\.|$)", name)
    if match is None:
        return (name, ""), None
    return (name[: match.start()], name[match.end() :]), int(match.group())


def _span(group: list[HookpointEntry]) -> str:
    first, last = group[0].name, group[-1].name
    return str(first) if len(group) == 1 else f"{first} to {last}"


def _absent(absent: dict[str, str]) -> Iterable[str]:
    """Yield each reason once, with all hookpoints that share it."""
    from actlas.pipeline.hookpoints.names import collapse

    by_reason: dict[str, list[str]] = {}
    for name, reason in absent.items():
        _, layer = _numbered(name)
        alike = reason if layer is None else re.sub(rf"\.{layer}\b", ".L", reason)
        by_reason.setdefault(alike, []).append(name)
    for reason, names in by_reason.items():
        yield f"  {', '.join(collapse(names))}: {reason}"


def _module_lines(listing: HookpointsReport) -> Iterable[str]:
    """Yield each module path; paths in the blocks once, with a star for the block's number."""
    images = listing.reads == "images"
    yield f"{'module':<64}{'width':>8}" + (f"{'positions':>11}" if images else "")
    stem = f"{listing.blocks}."
    alike: dict[tuple[str, int, int], list[str]] = {}
    for module in listing.modules or ():
        path = module.module
        if listing.blocks and path.startswith(stem):
            path = stem + re.sub(r"^\d+", "*", path.removeprefix(stem))
        key = path, module.width, module.positions
        alike.setdefault(key, []).append(module.module)
    for (path, width, positions), paths in alike.items():
        times = f"  {len(paths)} of {listing.n_layers} blocks" if path != paths[0] else ""
        yield f"{path:<64}{count(width):>8}" + (f"{count(positions):>11}" if images else times)


@click.command("hookpoints", short_help="List the hookpoints of a model.")
@click.argument("model")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option(
    "--dtype",
    type=click.Choice(ACTIVATION_DTYPES),
    default="bfloat16",
    help="Data type for the byte counts.  [default: bfloat16]",
)
@model_options(PlanOptions, "revision", "trust_remote_code")
@click.option("--modules", is_flag=True, help="List module paths as well.  [default: no]")
@json_option
@debug_option
def command(model: str, patterns: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """List the hookpoints of MODEL: a hub id, a folder, or builtin:NAME.

    With a PATTERN (resid_post.*, 'mlp_*.last', model.layers.*.mlp.up_proj), list its matches. No
    weights are read. docs/hookpoints.md explains each name.
    """
    listing = hookpoints_of(
        model, patterns, **{name: value for name, value in options.items() if value is not None}
    )
    echo(*([listing.to_json()] if as_json else _lines(listing)))
