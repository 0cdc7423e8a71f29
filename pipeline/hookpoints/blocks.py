"""The stack of blocks and the parts of a block, identified in the graph of a forward pass.

The parts that a block adds to its residual stream (see :mod:`actlas.pipeline.hookpoints.residual`)
are distinguished by their operations, not by their names: a part with a softmax over positions is
attention; a part that mixes no positions is the MLP. A part that cannot be identified has no name,
and the reason is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from actlas.pipeline.hookpoints.graph import Call, Side, Trace, trace
from actlas.pipeline.hookpoints.residual import ModuleTensor, Residual
from actlas.pipeline.hookpoints.shapes import measure
from actlas.store.errors import HookpointError

if TYPE_CHECKING:
    from torch import nn

KINDS = ("resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post")
"""Kinds of hookpoints in a block, in the order of a sequential block."""

_STREAM: Mapping[str, Side] = {"resid_pre": "input", "resid_post": "output"}


@dataclass(frozen=True, slots=True)
class Block:
    """The hookpoints of one block.

    Attributes
    ----------
    parts : dict of str to (module path, side)
        The module and the side, by kind of hookpoint.
    absent : dict of str to str
        The reason why each other kind is absent.
    """

    parts: dict[str, ModuleTensor] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def find_blocks(model: nn.Module, traced: Trace | None = None) -> str:
    """Return the path of the stack of blocks.

    The stack is a ``ModuleList`` with as many modules as the configuration has layers, in which
    each module's output is the next one's input. Of several, those that a forward pass reaches are
    preferred, then those in the part of the model that this configuration belongs to, then those
    whose modules are of one class, then the list with the most parameters.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model.
    traced : Trace, optional
        A forward pass of it. Default: one is run.

    Raises
    ------
    HookpointError
        The model has no such list. The message gives the lists that it has.
    """
    from torch import nn

    traced = trace(model) if traced is None else traced
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    n_layers = getattr(config, "num_hidden_layers", None)
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    fitting = {path: module for path, module in lists.items() if len(module) == n_layers}
    gaps = {path: _gap(traced, path, len(module)) for path, module in fitting.items()}
    chained = {path: module for path, module in fitting.items() if gaps[path] is None}
    if not chained:
        listed = ", ".join(f"{path} ({len(module)})" for path, module in lists.items()) or "none"
        wanted = f"stack of {n_layers} blocks" if n_layers else "single stack of blocks"
        why = f"its lists of modules are {listed}"
        if gaps:
            why += ", and " + "; ".join(dict.fromkeys(filter(None, gaps.values())))
        raise HookpointError(
            f"No {wanted} in {type(model).__name__}: {why}. Use module paths instead of names such "
            "as resid_pre and resid_post."
        )

    def fitness(path: str) -> tuple[bool, bool, bool, int]:
        one_class = len({type(module) for module in chained[path]}) == 1
        own = _config_above(model, path) is config
        reached = all(traced.of(f"{path}.{i}") for i in range(len(chained[path])))
        return reached, own, one_class, sum(p.numel() for p in chained[path].parameters())

    best: str = max(chained, key=fitness)
    return best


def _gap(traced: Trace, path: str, n: int) -> str | None:
    """Return where the members of a list do not chain; None where they do, as far as they run."""
    runs = [traced.of(f"{path}.{i}") for i in range(n)]
    for i, (calls, following) in enumerate(pairwise(runs)):
        if len(calls) != 1 or len(following) != 1:
            continue  # not reached, or run several times: such a block has no names
        [call], [after] = calls, following
        if call.gave is None or after.entered < 0 or call.left < 0:
            continue
        entries = after.entries if after.given is None else (after.given,)
        if traced.same(call.gave) not in map(traced.same, entries):
            return f"the output of {path}.{i} is not the input of {path}.{i + 1}"
    if n == 1 and len(runs[0]) == 1:
        [call] = runs[0]
        if None not in (call.given, call.gave) and Residual(traced, call).steps is None:
            return f"the output of {path}.0 is not its input plus something added"
    return None


def _config_above(model: nn.Module, path: str) -> Any:
    """Return the configuration of the innermost module around a path that has one."""
    while path:
        path = path.rpartition(".")[0]
        config = getattr(model.get_submodule(path), "config", None)
        if config is not None:
            return config
    return None


def examine(traced: Trace, path: str) -> Block:
    """Identify the parts of a block in a forward pass.

    Parameters
    ----------
    traced : Trace
        The forward pass.
    path : str
        Path of a block in the stack that :func:`find_blocks` returns.
    """
    block = Block()
    calls = traced.of(path)
    if len(calls) != 1:
        why = f"{path} runs {len(calls)} times in a pass" if calls else _unreached(traced, path)
        block.absent.update(dict.fromkeys(KINDS, why))
        return block
    [call] = calls
    for kind, side in _STREAM.items():
        if measure(traced, call.shape(side)) is not None:
            block.parts[kind] = path, side
    whole = all(kind in block.parts for kind in _STREAM)
    if whole:
        _name_parts(Residual(traced, call), block)
    why = _unreached(traced, path) if call.left < 0 else _stream_shapes(call)
    if whole:
        why = f"the output of {path} is not its input plus something added"
    for kind in KINDS:
        if kind not in block.parts:
            block.absent.setdefault(kind, why)
    return block


def _unreached(traced: Trace, path: str) -> str:
    end = f" (it ended with {traced.failure!r:.300})" if traced.failure is not None else ""
    return f"a forward pass over {traced.probe.what} does not reach {path}{end}"


def _stream_shapes(call: Call) -> str:
    return (
        f"{call.path} has no residual stream of one vector per position: its input is "
        f"{call.given_shape}, its output {call.gave_shape}"
    )


def _name_parts(stream: Residual, block: Block) -> None:
    """Name the parts between the input of a block and its output."""
    if stream.steps is None:
        return
    terms = [term for step in stream.steps for term in step.added]
    attention = [term for term in terms if stream.attends(term)]
    mixing = [term for term in terms if term not in attention and stream.mixes(term)]
    mlps = [term for term in terms if term not in attention and term not in mixing]
    _name_part(stream, block, ("attn_out", "attn_z", "attention"), attention, mixing)
    _name_part(stream, block, ("mlp_out", "mlp_hidden", "MLP"), mlps, mixing)
    _name_middle(stream, block, terms)


def _name_part(
    stream: Residual,
    block: Block,
    names: tuple[str, str, str],
    terms: list[int],
    mixing: list[int],
) -> None:
    """Name the output that a part adds to the stream, and the input of the part's last matrix."""
    out, inner, what = names
    path = stream.call.path
    if len(terms) != 1:
        why = f"{path} has no {what}"
        if terms:
            why = f"{path} adds the outputs of several parts: {_listed(stream, terms)}"
        elif mixing:
            why += f"; positions are mixed in {_listed(stream, mixing)}"
        block.absent[out] = block.absent[inner] = why
        return
    [term] = terms
    place = stream.place(term)
    if place is not None:
        block.parts[out] = place
    else:
        before = stream.before(term)
        block.absent[out] = f"{path} does not add the {what}'s output unchanged" + (
            f", but scaled; before that it is the {before[1]} of {before[0]}" if before else ""
        )
    projection = stream.projection(term)
    if what == "MLP" and stream.routes(term):
        block.absent[inner] = (
            f"{path} has a mixture of experts, and no single hidden layer: each expert has its own"
        )
    elif projection is None:
        block.absent[inner] = f"the {what} in {path} does not end in one matrix"
    else:
        block.parts[inner] = projection, "input"


def _name_middle(stream: Residual, block: Block, terms: list[int]) -> None:
    """Name the stream between the first part and the second."""
    path = stream.call.path
    if len(terms) != 2:
        parts = "one part" if len(terms) == 1 else f"{len(terms)} parts"
        block.absent["resid_mid"] = f"{path} adds {parts} to the stream, not two"
        return
    between = stream.read_by(terms[1])
    if between is None:
        also = " and ".join(kind for kind in ("attn_out", "mlp_out") if kind in block.parts)
        block.absent["resid_mid"] = (
            f"{path} is parallel: both its parts read resid_pre, so no stream lies between them"
            + (f"; it has {also}" if also else "")
        )
        return
    place = stream.place(between)
    if place is None:
        block.absent["resid_mid"] = f"it is the input or output of no module in {path}"
    else:
        block.parts["resid_mid"] = place


def _listed(stream: Residual, terms: list[int]) -> str:
    places = (stream.place(term) for term in terms)
    return ", ".join("the output of no module" if place is None else place[0] for place in places)
