"""Names of places in a model, and the modules they mean.

The stack of blocks and the parts of a block are found by structure, not by a table of names: see
:mod:`actlas.pipeline.hookpoints.blocks`. In a sequential block with its norm first the names mean::

                    ┌─────────────────────────────────────────────┐
    resid_pre.L ──┬─│────────────(+)── resid_mid.L ──┬────(+)─────│─▶ resid_post.L = resid_pre.L+1
                  │ │             │ attn_out.L       │     │ mlp_out.L
                  └▶│ norm ▶ heads ▶ matrix          └▶ norm ▶ MLP ▶ matrix
                    └───────── attn_z.L ┘─────────────── mlp_hidden.L ┘

``attn_z`` is what goes into attention's output projection: the heads' outputs side by side.
``mlp_hidden`` is what goes into the MLP's last matrix: its neurons. ``embed`` is what the embedding
of tokens gives: where a model adds learned positions to it or scales it, ``resid_pre.0`` has that
and ``embed`` has not. Any other name is a module's path in the model, and stands for the module's
output.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actlas.pipeline.hookpoints.blocks import KINDS, examine, find_blocks
from actlas.pipeline.hookpoints.globs import glob_regex
from actlas.pipeline.hookpoints.graph import Side, Trace, trace
from actlas.pipeline.hookpoints.shapes import Seen, check_positions, observe
from actlas.store.errors import HookpointError
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn


def available(model: nn.Module) -> tuple[str, ...]:
    """Return the names that this model has, besides the paths of its modules.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model, on any device, the meta device too.
    """
    return tuple(place.name for place in survey(model).named)


def resolve(model: nn.Module, patterns: Sequence[str]) -> tuple[HookpointSpec, ...]:
    """Return the hookpoints that patterns mean, in model order, each once.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model, best on the meta device: one forward pass of a few tokens finds the
        widths.
    patterns : sequence of str
        Names (``embed``, ``resid_pre.L``, ``resid_post.L``, with ``middle`` and ``last`` for L),
        module paths, or globs of either, in which ``*`` and ``?`` stay between two dots and ``**``
        does not. A glob that fits a name means names only.

    Raises
    ------
    HookpointError
        A pattern fits nothing, or what it fits gives no ``[batch, position, unit]`` tensor.

    Examples
    --------
    ``resolve(skeleton, ["resid_post.*", "model.layers.*.mlp"])``
    """
    known = survey(model)
    return resolve_in(known, model, patterns)


def resolve_in(
    known: Survey, model: nn.Module, patterns: Sequence[str]
) -> tuple[HookpointSpec, ...]:
    """Return what :func:`resolve` does, from a survey that was made before."""
    paths = [path for path, _ in model.named_modules() if path]
    chosen: dict[tuple[str, Side], Place] = {}
    for pattern in patterns:
        for place in _match(pattern, known, paths):
            chosen.setdefault((place.module, place.side), place)
    if not chosen:
        raise HookpointError(f"No hookpoints were asked for. {_what_exists(known, paths)}")
    for place in known.named:  # A name wins over the module path that means the same.
        if (place.module, place.side) in chosen:
            chosen[place.module, place.side] = place
    ordered = sorted(chosen.values(), key=lambda place: time_of(known.found, place))
    seen = _observe(known, ordered)
    check_positions({name: place.n_positions for name, place in seen.items()})
    return specs(known, ordered)


def specs(known: Survey, chosen: Sequence[Place]) -> tuple[HookpointSpec, ...]:
    """Return places with their widths.

    Raises
    ------
    HookpointError
        One of them gives no vector per position.
    """
    seen = _observe(known, chosen)
    return tuple(
        HookpointSpec(
            name=place.name,
            module=place.module,
            side=place.side,
            width=seen[place.name].width,
            layout=seen[place.name].layout,
        )
        for place in chosen
    )


def _observe(known: Survey, chosen: Sequence[Place]) -> dict[str, Seen]:
    return observe(known.found, [(place.name, place.module, place.side) for place in chosen])


def _match(pattern: str, known: Survey, paths: list[str]) -> list[Place]:
    stem, _, layer = pattern.rpartition(".")
    fits = glob_regex(pattern)
    if layer in ("middle", "last") and any(glob_regex(stem).fullmatch(kind) for kind in KINDS):
        n_layers = known.n_layers
        fits = glob_regex(f"{stem}.{n_layers // 2 if layer == 'middle' else n_layers - 1}")
    matched = [place for place in known.named if fits.fullmatch(place.name)]
    if not matched:
        matched = [Place(path, path, "output") for path in paths if fits.fullmatch(path)]
    if not matched:
        names = [place.name for place in known.named]
        kinds = glob_regex(stem) if not known.n_layers else fits
        why = next(
            (w for n, w in known.absent.items() if fits.fullmatch(n) or kinds.fullmatch(n)), ""
        )
        near = difflib.get_close_matches(pattern, [*names, *paths], n=4, cutoff=0.6)
        hint = f": {why.rstrip('.')}." if why else f". Nearest: {', '.join(near)}." if near else "."
        raise HookpointError(
            f"No hookpoint {pattern!r} in this model{hint} {_what_exists(known, paths)}",
            pattern=pattern,
            available=names,
        )
    return matched


def _what_exists(known: Survey, paths: list[str]) -> str:
    groups = collapse(place.name for place in known.named)
    such = f"{known.blocks}.0" if known.n_layers else _first_numbered(paths)
    more = ", their globs (resid_post.*), .middle and .last" if known.n_layers else ""
    named = f"There are {', '.join(groups)}{more}, and any" if groups else "There is any"
    return f"{named} module's path, such as {such} (a * stays between two dots)."


def _first_numbered(paths: list[str]) -> str:
    return next((path for path in paths if path.endswith(".0")), paths[-1])


def collapse(names: Iterable[str]) -> list[str]:
    """Return names with those of consecutive layers as one range.

    >>> collapse(["embed", "resid_pre.0", "attn_z.0", "resid_pre.1", "resid_pre.2", "attn_z.2"])
    ['embed', 'resid_pre.0 to resid_pre.2', 'attn_z.0', 'attn_z.2']
    """
    layers: dict[str, list[list[int]]] = {}
    for name in names:
        kind, _, layer = name.rpartition(".")
        if not kind or not layer.isdigit():
            layers[name] = []
            continue
        runs = layers.setdefault(kind, [])
        if runs and runs[-1][1] == int(layer) - 1:
            runs[-1][1] += 1
        else:
            runs.append([int(layer), int(layer)])
    found = []
    for kind, runs in layers.items():
        found += [f"{kind}.{a}" if a == b else f"{kind}.{a} to {kind}.{b}" for a, b in runs]
        found += [] if runs else [kind]
    return found


EMBED = "embed"


@dataclass(frozen=True, slots=True)
class Place:
    """A name, the module that it means, and whether that module's input or output is read."""

    name: str
    module: str
    side: Side


@dataclass(frozen=True, slots=True)
class Survey:
    """The named places of a model.

    Attributes
    ----------
    named : tuple of Place
        In the order in which a forward pass comes to them.
    absent : mapping of str to str
        Names that other models have and this one has not, and why; a kind without a layer where
        there is no stack of blocks.
    n_layers : int
        Blocks; 0 where there is no stack of them.
    blocks : str
        The path of the stack.
    found : Trace
        The forward pass that was looked at.
    """

    named: tuple[Place, ...]
    absent: Mapping[str, str]
    n_layers: int
    blocks: str
    found: Trace


def survey(model: nn.Module) -> Survey:
    """Look for the named places of a model in one forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model, best on the meta device.
    """
    found = trace(model)
    named: list[Place] = []
    absent: dict[str, str] = {}
    try:
        embedding = _embedding(model)
        observe(found, [(EMBED, embedding, "output")])
        named.append(Place(EMBED, embedding, "output"))
    except HookpointError as error:
        absent[EMBED] = error.message
    try:
        blocks = find_blocks(model)
    except HookpointError as error:
        absent |= dict.fromkeys(KINDS, error.message)
        return Survey(tuple(named), absent, 0, "", found)
    n_layers = len(model.get_submodule(blocks))  # type: ignore[arg-type]
    for layer in range(n_layers):
        block = examine(found, f"{blocks}.{layer}")
        for kind, (path, side) in block.parts.items():
            named.append(Place(f"{kind}.{layer}", path, side))
        absent |= {f"{kind}.{layer}": why for kind, why in block.absent.items()}
    ordered = tuple(sorted(named, key=lambda place: time_of(found, place)))
    return Survey(ordered, absent, n_layers, blocks, found)


def _embedding(model: nn.Module) -> str:
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        embedding = None
    for name, module in model.named_modules():
        if module is embedding:
            return str(name)
    raise HookpointError(f"{type(model).__name__} has no embedding")


def time_of(found: Trace, place: Place) -> int:
    """Return when a pass comes to a place; -1 where it does not."""
    calls = found.of(place.module)
    return calls[0].time(place.side) if calls else -1
