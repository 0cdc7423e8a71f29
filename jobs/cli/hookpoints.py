"""``actlas hookpoints``: the places of a model, how wide they are, what a token takes there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.formatting import count, n_bytes, printable
from actlas.store.format.dtypes import ACTIVATION_DTYPES, numpy_dtype

if TYPE_CHECKING:
    from torch import nn

    from actlas.pipeline.hookpoints.names import Survey
    from actlas.store.format.schema import HookpointSpec


def hookpoints_of(
    model: str,
    patterns: Sequence[str] = (),
    *,
    dtype: str = "bfloat16",
    revision: str | None = None,
    trust_remote_code: bool = False,
    modules: bool = False,
) -> dict[str, Any]:
    """Return the hookpoints of a model as plain values, from its configuration alone.

    Parameters
    ----------
    model : str
        A hub id, a local folder, or ``builtin:NAME``. Its weights are not read.
    patterns : sequence of str
        As a plan takes them. None: all names.
    dtype : str
        What a store would hold, for the bytes.
    modules : bool
        Whether to list the modules too that give one vector per position.

    Raises
    ------
    ModelError
        The model is not there, or cannot be built.
    HookpointError
        A pattern fits nothing, or something of which no store could be made.
    """
    from actlas.pipeline.hookpoints.names import resolve_in, specs, survey
    from actlas.pipeline.model.config import architecture_of, build_skeleton
    from actlas.pipeline.model.describe import load_config
    from actlas.pipeline.model.files import locate_model

    located = locate_model(model, revision, code=trust_remote_code, weights=False)
    config = load_config(located.folder, trust_remote_code=trust_remote_code)
    architecture = architecture_of(config)
    skeleton = build_skeleton(config, architecture, trust_remote_code=trust_remote_code)
    known = survey(skeleton)
    item = numpy_dtype(dtype).itemsize
    asked = [_asked(pattern, resolve_in(known, skeleton, [pattern]), item) for pattern in patterns]
    chosen = resolve_in(known, skeleton, patterns) if patterns else specs(known, known.named)
    return {
        "model": located.identity,
        "revision": located.revision,
        "architecture": architecture,
        "reads": known.found.probe.what,
        "blocks": known.blocks or None,
        "n_layers": known.n_layers,
        "dtype": dtype,
        "patterns": asked,
        "hookpoints": [_values(known, hookpoint, item) for hookpoint in chosen],
        "bytes_per_token": sum(hookpoint.width for hookpoint in chosen) * item,
        "absent": dict(known.absent),
        "modules": _modules(known, skeleton) if modules else None,
    }


def _asked(pattern: str, found: Sequence[HookpointSpec], item: int) -> dict[str, Any]:
    return {
        "pattern": pattern,
        "hookpoints": [hookpoint.name for hookpoint in found],
        "bytes_per_token": sum(hookpoint.width for hookpoint in found) * item,
    }


def _values(known: Survey, hookpoint: HookpointSpec, item: int) -> dict[str, Any]:
    from actlas.pipeline.hookpoints.shapes import observe

    seen = observe(known.found, [(hookpoint.name, hookpoint.module, hookpoint.side)])
    images = known.found.probe.shape[1] is None
    return {
        **hookpoint.model_dump(),
        "positions": seen[hookpoint.name].n_positions if images else None,
        "bytes_per_token": hookpoint.width * item,
    }


def _modules(known: Survey, model: nn.Module) -> list[dict[str, Any]]:
    """Return every module that runs once and gives one vector per position."""
    from actlas.pipeline.hookpoints.shapes import measure

    found = []
    for path, _ in model.named_modules():
        calls = known.found.of(path)
        seen = measure(known.found, calls[0].gave_shape) if len(calls) == 1 and path else None
        if seen is not None:
            found.append({"module": path, "width": seen.width, "positions": seen.n_positions})
    return found


def _lines(listing: dict[str, Any]) -> Iterable[str]:
    blocks = f"{listing['n_layers']} blocks, {listing['blocks']}.L"
    yield (
        f"{printable(listing['model'])} ({listing['architecture']}): "
        f"{blocks if listing['blocks'] else 'no stack of blocks'}"
    )
    if listing["hookpoints"]:
        yield ""
        yield from _table(listing)
    if listing["absent"] and not listing["patterns"]:
        yield ""
        yield "Not in this model:"
        yield from _absent(listing["absent"])
    if listing["modules"] is not None:
        yield ""
        yield from _module_lines(listing)
    elif not listing["hookpoints"]:
        yield "--modules lists the paths of its modules, which are hookpoints too."


def _table(listing: dict[str, Any]) -> Iterable[str]:
    images = listing["reads"] == "images"
    each = "position" if images else "token"
    head = f"{'positions':>11}" if images else ""
    yield f"{'hookpoint':<44}{'width':>8}{head}   {listing['dtype']} bytes per {each}"
    for group in _groups(listing["hookpoints"]):
        first = group[0]
        positions = f"{count(first['positions']):>11}" if images else ""
        total = n_bytes(first["bytes_per_token"] * len(group))
        one = f" ({len(group)} x {n_bytes(first['bytes_per_token'])})" if len(group) > 1 else ""
        yield f"{_span(group):<44}{count(first['width']):>8}{positions}   {total}{one}"
    for asked in listing["patterns"] if len(listing["patterns"]) > 1 else ():
        n = len(asked["hookpoints"])
        what = f"{printable(asked['pattern'])}: {n} hookpoint{'s' if n != 1 else ''}"
        yield f"{what:<55}{n_bytes(asked['bytes_per_token'])}"
    total = listing["bytes_per_token"]
    n = len(listing["hookpoints"])
    many = n_bytes(total * 10**6)
    yield f"{f'all {n}':<55}{n_bytes(total)}; {many} for a million {each}s"


def _groups(hookpoints: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return runs of consecutive layers that are one kind and one size."""
    groups: list[list[dict[str, Any]]] = []
    open_group: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for hookpoint in hookpoints:
        stem, layer = _numbered(hookpoint["name"])
        key = (*stem, str(hookpoint["width"]), str(hookpoint["positions"]))
        group = open_group.get(key)
        if layer is not None and group and _numbered(group[-1]["name"])[1] == layer - 1:
            group.append(hookpoint)
        else:
            open_group[key] = [hookpoint]
            groups.append(open_group[key])
    return groups


def _numbered(name: str) -> tuple[tuple[str, str], int | None]:
    """Split a name at its first number: what is before, what is after, and the number."""
    match = re.search(r"(?<=\.)\d+(?=\.|$)", name)
    if match is None:
        return (name, ""), None
    return (name[: match.start()], name[match.end() :]), int(match.group())


def _span(group: list[dict[str, Any]]) -> str:
    first, last = group[0]["name"], group[-1]["name"]
    return str(first) if len(group) == 1 else f"{first} to {last}"


def _absent(absent: dict[str, str]) -> Iterable[str]:
    """Yield each reason once, for the first of the layers that share it."""
    from actlas.pipeline.hookpoints.names import collapse

    by_reason: dict[str, list[str]] = {}
    for name, reason in absent.items():
        _, layer = _numbered(name)
        alike = reason if layer is None else re.sub(rf"\.{layer}\b", ".L", reason)
        by_reason.setdefault(alike, []).append(name)
    for reason, names in by_reason.items():
        yield f"  {', '.join(collapse(names))}: {reason}"


def _module_lines(listing: dict[str, Any]) -> Iterable[str]:
    """Yield each path, those of all blocks once, with a star for the block."""
    images = listing["reads"] == "images"
    yield f"{'module':<64}{'width':>8}" + (f"{'positions':>11}" if images else "")
    stem = f"{listing['blocks']}."
    alike: dict[tuple[str, int, int], list[str]] = {}
    for module in listing["modules"]:
        path = module["module"]
        if listing["blocks"] and path.startswith(stem):
            path = stem + re.sub(r"^\d+", "*", path.removeprefix(stem))
        key = path, module["width"], module["positions"]
        alike.setdefault(key, []).append(module["module"])
    for (path, width, positions), paths in alike.items():
        times = f"  {len(paths)} of {listing['n_layers']} blocks" if path != paths[0] else ""
        yield f"{path:<64}{count(width):>8}" + (f"{count(positions):>11}" if images else times)


@click.command("hookpoints", short_help="The places of a model that can be stored.")
@click.argument("model")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option(
    "--dtype",
    type=click.Choice(ACTIVATION_DTYPES),
    default="bfloat16",
    help="What a store would hold.  [default: bfloat16]",
)
@click.option("--revision", help="Of a hub model: a commit, tag or branch.  [default: main]")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the model's own Python code.  [default: no]"
)
@click.option("--modules", is_flag=True, help="List paths of modules too.  [default: no]")
@json_option
@debug_option
def command(model: str, patterns: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """List the hookpoints of MODEL: a hub id, a folder, or builtin:NAME.

    With a PATTERN (resid_post.*, 'mlp_*.last', model.layers.*.mlp.up_proj), what it means. No
    weights are read. docs/hookpoints.md says what each name stands for.
    """
    listing = hookpoints_of(model, patterns, **options)
    click.echo(json.dumps(listing) if as_json else "\n".join(_lines(listing)))
