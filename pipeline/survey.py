"""The named places of a model: the embedding of tokens, and the parts of every block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actlas.pipeline.blocks import KINDS, examine, find_blocks
from actlas.pipeline.flow import Side, Trace
from actlas.pipeline.shapes import observe
from actlas.pipeline.trace import trace
from actlas.store.errors import HookpointError

if TYPE_CHECKING:
    from torch import nn

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
