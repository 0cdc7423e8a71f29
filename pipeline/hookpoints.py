"""Names of places in a model, and the modules they mean.

The stack of blocks is found by its structure, not by a table of names: the ``ModuleList`` of as
many modules as the configuration has layers. What the names mean::

    embed ──▶ resid_pre.0 ┌─────────┐ resid_post.0 = resid_pre.1 ┌─────────┐ resid_post.1 ──▶ …
                          │ block 0 │                            │ block 1 │
                          └─────────┘                            └─────────┘

``embed`` is what the embedding of tokens gives: where a model adds learned positions to it or
scales it, ``resid_pre.0`` has that and ``embed`` has not. Any other name is a module's path in the
model, and stands for the module's output.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from actlas.pipeline.shapes import observe
from actlas.store.errors import HookpointError
from actlas.store.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn

Side = Literal["input", "output"]

EMBED = "embed"
RESIDUAL: dict[str, Side] = {"resid_pre": "input", "resid_post": "output"}
_GLOB = re.compile(r"[*?]")


@dataclass(frozen=True, slots=True)
class Place:
    """A name, the module that it means, and whether that module's input or output is read."""

    name: str
    module: str
    side: Side


def find_blocks(model: nn.Module) -> str:
    """Return the path of the stack of blocks.

    It is the ``ModuleList`` with as many modules as the configuration has layers, all of one class
    where there is such a one; of several, the one with the most parameters.

    Raises
    ------
    HookpointError
        The model has no such list. The message says which lists it has.
    """
    from torch import nn

    n_layers = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    fitting = {path: module for path, module in lists.items() if len(module) == n_layers}
    if not fitting:
        found = ", ".join(f"{path} ({len(module)})" for path, module in lists.items()) or "none"
        raise HookpointError(
            f"No stack of {n_layers} blocks in {type(model).__name__}: its lists of modules are "
            f"{found}. Name module paths instead of resid_pre and resid_post."
        )

    def fitness(path: str) -> tuple[bool, int]:
        one_class = len({type(module) for module in fitting[path]}) == 1
        return one_class, sum(parameter.numel() for parameter in fitting[path].parameters())

    best: str = max(fitting, key=fitness)
    return best


def places(model: nn.Module) -> tuple[Place, ...]:
    """Return the named places of a model, in the order in which a forward pass comes to them."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    path: str = next(name for name, module in model.named_modules() if module is embedding)
    blocks = find_blocks(model)
    n_layers = len(model.get_submodule(blocks))  # type: ignore[arg-type]
    residual = (
        Place(f"{kind}.{layer}", f"{blocks}.{layer}", side)
        for layer in range(n_layers)
        for kind, side in RESIDUAL.items()
    )
    return (Place(EMBED, path, "output"), *residual)


def available(model: nn.Module) -> tuple[str, ...]:
    """Return the names that this model has, besides the paths of its modules.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model, on any device, the meta device too.
    """
    return tuple(place.name for place in places(model))


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
    named = places(model)
    modules = dict(model.named_modules())
    chosen: dict[tuple[str, Side], Place] = {}
    for pattern in patterns:
        for place in _match(pattern, named, modules):
            chosen.setdefault((place.module, place.side), place)
    if not chosen:
        raise HookpointError(f"No hookpoints were asked for. {_what_exists(named)}")
    for place in named:  # A name wins over the module path that means the same.
        if (place.module, place.side) in chosen:
            chosen[place.module, place.side] = place
    order = _model_order(modules)
    ordered = sorted(chosen.values(), key=lambda place: order[place.module, place.side])
    widths = observe(model, [(place.name, place.module, place.side) for place in ordered])
    return tuple(
        HookpointSpec(name=p.name, module=p.module, side=p.side, width=widths[p.name])
        for p in ordered
    )


def _match(pattern: str, named: Sequence[Place], modules: dict[str, nn.Module]) -> list[Place]:
    n_layers = sum(place.side == "input" for place in named)
    stem, _, layer = pattern.rpartition(".")
    if layer in ("middle", "last") and any(_compile(stem).fullmatch(kind) for kind in RESIDUAL):
        fits = _compile(f"{stem}.{n_layers // 2 if layer == 'middle' else n_layers - 1}")
    else:
        fits = _compile(pattern)
    matched = [place for place in named if fits.fullmatch(place.name)]
    if not matched:
        matched = [Place(path, path, "output") for path in modules if path and fits.fullmatch(path)]
    if not matched:
        near = _nearest(pattern, [place.name for place in named], list(modules))
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise HookpointError(
            f"No hookpoint {pattern!r} in this model.{hint} {_what_exists(named)}",
            pattern=pattern,
            available=[place.name for place in named],
        )
    return matched


def _compile(pattern: str) -> re.Pattern[str]:
    if not _GLOB.search(pattern):
        return re.compile(re.escape(pattern))
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    meaning = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def _nearest(pattern: str, names: list[str], paths: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(pattern, [*names, *(p for p in paths if p)], n=4, cutoff=0.6)


def _what_exists(named: Sequence[Place]) -> str:
    blocks = [place for place in named if place.name != EMBED]
    last = blocks[-1].name.rpartition(".")[2]
    ranges = ", ".join(f"{kind}.0 to {kind}.{last}" for kind in RESIDUAL)
    return (
        f"There are {EMBED}, {ranges}, their globs (resid_post.*), .middle and .last, and any "
        f"module's path, such as {blocks[0].module} (a * stays between two dots)."
    )


def _model_order(modules: dict[str, nn.Module]) -> dict[tuple[str, Side], tuple[int, int, int]]:
    """Rank every module's input and output by the order in which modules were put together.

    A module's input comes before all that is inside it, its output after.
    """
    paths = list(modules)
    first = {path: i for i, path in enumerate(paths)}
    last = dict(first)
    for path in reversed(paths):
        parent = path.rpartition(".")[0]
        if path and parent in last:
            last[parent] = max(last[parent], last[path])
    order: dict[tuple[str, Side], tuple[int, int, int]] = {}
    for path in paths:
        order[path, "input"] = (first[path], 0, 0)
        order[path, "output"] = (last[path], 1, -first[path])
    return order
