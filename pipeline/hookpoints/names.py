"""Names of hookpoints, and the modules whose inputs or outputs they are.

The stack of blocks and the parts of a block are identified by their structure, not by a table of
names: see :mod:`actlas.pipeline.hookpoints.blocks`. In a sequential block with its norm first::

                    ┌─────────────────────────────────────────────┐
    resid_pre.L ──┬─│────────────(+)── resid_mid.L ──┬────(+)─────│─▶ resid_post.L = resid_pre.L+1
                  │ │             │ attn_out.L       │     │ mlp_out.L
                  └▶│ norm ▶ heads ▶ matrix          └▶ norm ▶ MLP ▶ matrix
                    └───────── attn_z.L ┘─────────────── mlp_hidden.L ┘

``attn_z`` is the input of attention's output projection: the concatenated outputs of the heads.
``mlp_hidden`` is the input of the MLP's last matrix: its neurons. ``embed`` is the output of the
token embedding; learned positions or a scale that a model applies to it are part of
``resid_pre.0`` and not of ``embed``. Any other name is the path of a module in the model, and
means the module's output.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from actlas.pipeline.hookpoints.blocks import KINDS, examine, find_blocks
from actlas.pipeline.hookpoints.globs import glob_regex
from actlas.pipeline.hookpoints.graph import Side, Trace, trace
from actlas.pipeline.hookpoints.shapes import HookpointShape, check_positions, measure, observe
from actlas.store.errors import HookpointError
from actlas.store.format.aliases import lens_name, module_place
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn


def available(model: nn.Module) -> tuple[str, ...]:
    """Return the hookpoint names of a model, without the paths of its modules.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model, on any device, the meta device too.
    """
    return tuple(place.name for place in survey(model).named)


def resolve(model: nn.Module, patterns: Sequence[str]) -> tuple[HookpointSpec, ...]:
    """Return the hookpoints that match patterns, each once, in the order of the forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model, best on the meta device: one forward pass of a few tokens gives the
        widths.
    patterns : sequence of str
        Names (``embed``, ``resid_pre.L``, ``resid_post.L``, with ``middle`` and ``last`` for L),
        module paths, or globs of either, in which ``*`` and ``?`` stay between two dots and ``**``
        does not. A glob that fits a name means names only. Names of TransformerLens and paths of
        nnsight stand for the hookpoints that they mean; see ``store/format/aliases.py``.

    Raises
    ------
    HookpointError
        A pattern matches nothing, or a matched module gives no ``[batch, position, unit]`` tensor.

    Examples
    --------
    ``resolve(skeleton, ["resid_post.*", "model.layers.*.mlp"])``
    """
    known = survey(model)
    return resolve_in(known, model, patterns)


def resolve_in(
    known: Survey, model: nn.Module, patterns: Sequence[str]
) -> tuple[HookpointSpec, ...]:
    """Return the result of :func:`resolve` from a survey that exists already.

    Parameters
    ----------
    known : Survey
        The named hookpoints of the model.
    model : torch.nn.Module
        The surveyed model.
    patterns : sequence of str
        See :func:`resolve`.
    """
    paths = [path for path, _ in model.named_modules() if path]
    chosen: dict[tuple[str, Side], NamedHookpoint] = {}
    for pattern in patterns:
        for place in _match(pattern, known, paths):
            chosen.setdefault((place.module, place.side), place)
    if not chosen:
        raise HookpointError(f"No hookpoints were given. {_what_exists(known, paths)}")
    for place in known.named:  # A name takes precedence over the path of the same module.
        if (place.module, place.side) in chosen:
            chosen[place.module, place.side] = place
    ordered = sorted(chosen.values(), key=lambda place: time_of(known.traced, place))
    seen = _observe(known, ordered)
    check_positions({name: place.n_positions for name, place in seen.items()})
    return specs(known, ordered)


def specs(known: Survey, chosen: Sequence[NamedHookpoint]) -> tuple[HookpointSpec, ...]:
    """Return the specifications of hookpoints, with their widths.

    Parameters
    ----------
    known : Survey
        The survey of their model.
    chosen : sequence of NamedHookpoint
        The hookpoints.

    Raises
    ------
    HookpointError
        A hookpoint is not one vector per position.
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


def _observe(known: Survey, chosen: Sequence[NamedHookpoint]) -> dict[str, HookpointShape]:
    return observe(known.traced, [(place.name, place.module, place.side) for place in chosen])


def _match(pattern: str, known: Survey, paths: list[str]) -> list[NamedHookpoint]:
    matched = _match_own(pattern, known, paths)
    if matched:
        return matched
    if (ours := lens_name(pattern, known.architecture)) is not None:
        return _match_own(ours, known, paths) or _refuse(ours, known, paths)
    return _match_module(pattern, known, paths) or _refuse(pattern, known, paths)


def _match_module(pattern: str, known: Survey, paths: list[str]) -> list[NamedHookpoint]:
    """Return the hookpoints that a path of nnsight means, ``model.layers[-1].output[0]``."""
    place = module_place(pattern)
    if place is None:
        return []
    stack, n_layers = re.escape(known.blocks), known.n_layers
    for path in place.paths:
        at = rf"(?<=^{stack}\.)-(\d+)(?=\.|$)"
        fits = glob_regex(re.sub(at, lambda found: str(n_layers - int(found[1])), path))
        if place.side == "output":
            found = [NamedHookpoint(each, each, "output") for each in paths if fits.fullmatch(each)]
        else:
            inputs = [each for each in known.named if each.side == "input"]
            found = [each for each in inputs if fits.fullmatch(each.module)]
        if found:
            return found
    return []


def _match_own(pattern: str, known: Survey, paths: list[str]) -> list[NamedHookpoint]:
    """Return the hookpoints that a name, a module's path or a glob of either matches."""
    fits = _regex(pattern, known)
    matched = [place for place in known.named if fits.fullmatch(place.name)]
    if not matched:
        matched = [NamedHookpoint(path, path, "output") for path in paths if fits.fullmatch(path)]
    return matched


def _regex(pattern: str, known: Survey) -> re.Pattern[str]:
    """Return the regular expression of a pattern, in which ``middle`` and ``last`` are layers."""
    stem, _, layer = pattern.rpartition(".")
    if layer in ("middle", "last") and any(glob_regex(stem).fullmatch(kind) for kind in KINDS):
        n_layers = known.n_layers
        return glob_regex(f"{stem}.{n_layers // 2 if layer == 'middle' else n_layers - 1}")
    return glob_regex(pattern)


def _refuse(pattern: str, known: Survey, paths: list[str]) -> NoReturn:
    """Raise the error for a pattern that matches nothing."""
    stem = pattern.rpartition(".")[0]
    fits = _regex(pattern, known)
    names = [place.name for place in known.named]
    kinds = glob_regex(stem) if not known.n_layers else fits
    why = next((w for n, w in known.absent.items() if fits.fullmatch(n) or kinds.fullmatch(n)), "")
    near = difflib.get_close_matches(pattern, [*names, *paths], n=4, cutoff=0.6)
    hint = f": {why.rstrip('.')}." if why else f". Nearest: {', '.join(near)}." if near else "."
    raise HookpointError(
        f"No hookpoint {pattern!r} in this model{hint} {_what_exists(known, paths)}",
        pattern=pattern,
        available=names,
    )


def _what_exists(known: Survey, paths: list[str]) -> str:
    groups = collapse(place.name for place in known.named)
    such = _such(known, paths)
    if such is None:
        n_positions = known.traced.probe.shape[1]
        of = f" of {n_positions} tokens" if n_positions is not None else ""
        return f"No module of this model gives one vector for each position of an input{of}."
    more = ", their globs (resid_post.*), .middle and .last" if known.n_layers else ""
    named = f"Hookpoints are {', '.join(groups)}{more}, and any" if groups else "Hookpoints are any"
    return f"{named} module's path, such as {such} (a * stays between two dots)."


def _such(known: Survey, paths: list[str]) -> str | None:
    """Return a module that can be a hookpoint, a block if possible; None where there is none."""
    blocks = [f"{known.blocks}.0"] if known.n_layers else []
    numbered = [path for path in paths if path.endswith(".0")]
    if known.traced.failure is not None:  # the pass may end where a loaded model goes on
        return next(iter([*blocks, *numbered, *paths[-1:]]), None)
    for path in [*blocks, *numbered, *paths]:
        calls = known.traced.of(path)
        if len(calls) == 1 and measure(known.traced, calls[0].gave_shape) is not None:
            return path
    return None


def collapse(names: Iterable[str]) -> list[str]:
    """Return names, with those of consecutive layers merged into ranges.

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
class NamedHookpoint:
    """A hookpoint of unknown width: its name, and the input or output of a module at a path."""

    name: str
    module: str
    side: Side


@dataclass(frozen=True, slots=True)
class Survey:
    """The named hookpoints of a model.

    Attributes
    ----------
    named : tuple of NamedHookpoint
        The hookpoints in the order in which a forward pass reaches them.
    absent : mapping of str to str
        Names that this model lacks and the reasons; kinds without a layer for a model without a
        stack of blocks.
    n_layers : int
        Number of blocks; 0 for a model without a stack of them.
    blocks : str
        The path of the stack.
    traced : Trace
        The forward pass in which the hookpoints were found.
    architecture : str
        The model's class.
    """

    named: tuple[NamedHookpoint, ...]
    absent: Mapping[str, str]
    n_layers: int
    blocks: str
    traced: Trace
    architecture: str = ""


def survey(model: nn.Module) -> Survey:
    """Find the named hookpoints of a model in one forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model, best on the meta device.
    """
    traced = trace(model)
    named: list[NamedHookpoint] = []
    absent: dict[str, str] = {}
    try:
        embedding = _embedding(model)
        observe(traced, [(EMBED, embedding, "output")])
        named.append(NamedHookpoint(EMBED, embedding, "output"))
    except HookpointError as error:
        absent[EMBED] = error.message
    try:
        blocks = find_blocks(model, traced)
    except HookpointError as error:
        absent |= dict.fromkeys(KINDS, error.message)
        return Survey(tuple(named), absent, 0, "", traced, type(model).__name__)
    n_layers = len(model.get_submodule(blocks))  # type: ignore[arg-type]
    for layer in range(n_layers):
        block = examine(traced, f"{blocks}.{layer}")
        for kind, (path, side) in block.parts.items():
            named.append(NamedHookpoint(f"{kind}.{layer}", path, side))
        absent |= {f"{kind}.{layer}": why for kind, why in block.absent.items()}
    ordered = tuple(sorted(named, key=lambda place: time_of(traced, place)))
    return Survey(ordered, absent, n_layers, blocks, traced, type(model).__name__)


def _embedding(model: nn.Module) -> str:
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        embedding = None
    for name, module in model.named_modules():
        if module is embedding:
            return str(name)
    raise HookpointError(f"{type(model).__name__} has no embedding")


def time_of(traced: Trace, place: NamedHookpoint) -> int:
    """Return the time at which a pass reaches a hookpoint; -1 where it does not."""
    calls = traced.of(place.module)
    return calls[0].time(place.side) if calls else -1
