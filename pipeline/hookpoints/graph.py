"""The graph of a forward pass: its tensors with their origins, and the calls of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from actlas.pipeline.hookpoints.probe import Probe, probe_inputs
from actlas.pipeline.hookpoints.tensors import first_input, first_tensor
from actlas.pipeline.model.config import LOADING_ERRORS, quiet

if TYPE_CHECKING:
    from torch import nn

Side = Literal["input", "output"]

# Operations whose result has the same vectors in another form.
_SAME = ("view", "_unsafe_view", "reshape", "clone", "detach", "alias", "_to_copy", "lift_fresh")


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor of the pass: the operation that produced it, and the operation's input tensors.

    ``operation`` is empty for a tensor that existed before the pass: a parameter, an input.
    """

    operation: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    plain: bool
    """Whether the operation has no factor besides its tensors, as ``add`` with an ``alpha`` has."""


@dataclass(slots=True)
class Call:
    """One call of a module: its first input and output as node numbers, None for no tensor."""

    path: str
    began: int
    """Number of the first node made inside it."""
    given: int | None = None
    gave: int | None = None
    entries: tuple[int, ...] = ()
    """Node numbers of all tensors among its inputs."""
    given_shape: tuple[int, ...] | str = ""
    gave_shape: tuple[int, ...] | str = ""
    index: int = -1
    """Position among all calls."""
    entered: int = -1
    left: int = -1
    """Times at which the call was entered and left, on one clock; -1: never."""

    def node(self, side: Side) -> int | None:
        """Return the node number of the input or the output."""
        return self.given if side == "input" else self.gave

    def shape(self, side: Side) -> tuple[int, ...] | str:
        """Return the shape of the input or the output; the type's name where it is no tensor."""
        return self.given_shape if side == "input" else self.gave_shape

    def time(self, side: Side) -> int:
        """Return the time of the input or the output."""
        return self.entered if side == "input" else self.left


@dataclass(slots=True)
class Trace:
    """A traced forward pass.

    Attributes
    ----------
    probe : Probe
        The input.
    nodes : list of Node
        All tensors; a tensor's number is its index here.
    calls : list of Call
        The calls of modules, in the order in which they were entered.
    failure : Exception or None
        The exception that ended the pass early, if one did. On the meta device some architectures
        ask for values late in a pass, after all relevant calls.
    weights : dict of str to list of tuple of int
        Shapes of each module's own parameters, by its path.
    """

    probe: Probe
    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    weights: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    failure: Exception | None = None
    _same: list[int] = field(default_factory=list)
    _by_path: dict[str, list[Call]] = field(default_factory=dict)

    def add(self, node: Node) -> int:
        """Add a tensor and return its number."""
        self.nodes.append(node)
        number = len(self.nodes) - 1
        same = number
        if node.operation in _SAME and node.inputs:
            source = self.nodes[node.inputs[0]].shape
            if source[-1:] == node.shape[-1:]:
                same = self._same[node.inputs[0]]
        self._same.append(same)
        return number

    def same(self, number: int) -> int:
        """Return the number of the first tensor with the same vectors, in whatever form."""
        return self._same[number]

    def enter(self, call: Call) -> None:
        """Add a call."""
        call.index = len(self.calls)
        self.calls.append(call)
        self._by_path.setdefault(call.path, []).append(call)

    def of(self, path: str) -> list[Call]:
        """Return all calls of the module at a path."""
        return self._by_path.get(path, [])

    def within(self, call: Call) -> Iterator[Call]:
        """Yield the calls made within a call."""
        for inner in self.calls[call.index + 1 :]:
            if call.left >= 0 and inner.entered > call.left:
                return
            yield inner


def trace(model: nn.Module) -> Trace:
    """Run the smallest input through a model and return the graph of the pass.

    Some models ask for a tensor's values on the way, which the meta device lacks. For these the
    pass is repeated with real values in all tensors that no weight contributes to, such as masks
    and positions.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model. On the meta device a pass takes some tenths of a second, whatever its
        size, and is made once for a model as long as its modules are the same.
    """
    modules = {path: id(module) for path, module in model.named_modules(remove_duplicate=False)}
    before = _TRACED.get(model)
    if before is not None and before[0] == modules:
        return before[1]
    traced = _traced(model)
    if _on_meta(traced.probe) and traced.failure is None:  # an error would keep the model alive
        _TRACED[model] = modules, traced
    return traced


_TRACED: WeakKeyDictionary[nn.Module, tuple[dict[str, int], Trace]] = WeakKeyDictionary()


def _traced(model: nn.Module) -> Trace:
    probe = probe_inputs(model)
    traced = _run(model, probe, numbers=False)
    if traced.failure is not None and _on_meta(probe):
        again = _run(model, probe, numbers=True)
        if again.failure is None or len(again.calls) > len(traced.calls):
            return again
    return traced


def _on_meta(probe: Probe) -> bool:
    return all(array.is_meta for array in probe.arrays.values())


def _run(model: nn.Module, probe: Probe, *, numbers: bool) -> Trace:
    traced = Trace(probe)
    mode = Recorder(traced, numbers=numbers)
    arrays = probe.arrays
    if numbers:
        arrays = {name: torch.zeros_like(array, device="cpu") for name, array in arrays.items()}
    handles: list[Any] = []
    for path, module in model.named_modules(remove_duplicate=False):
        handles += _watch(path, module, traced, mode)
        traced.weights[path] = [tuple(p.shape) for p in module.parameters(recurse=False)]
    try:
        with torch.no_grad(), quiet(), mode:
            model(**arrays)
    except (*LOADING_ERRORS, IndexError, AssertionError) as error:
        traced.failure = error
    finally:
        for handle in handles:
            handle.remove()
    return traced


def _watch(path: str, module: nn.Module, traced: Trace, mode: Recorder) -> list[Any]:
    open_calls: list[Call] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(path, began=len(traced.nodes), entered=mode.tick())
        call.given, call.given_shape = mode.see(first_input(args, kwargs))
        tensors = (v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor))
        call.entries = tuple(mode.number(tensor) for tensor in tensors)
        open_calls.append(call)
        traced.enter(call)

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls.pop()
        call.gave, call.gave_shape = mode.see(output)
        call.left = mode.tick()

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave),
    ]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that records every operation, and keeps every tensor alive.

    Parameters
    ----------
    traced : Trace
        The record.
    numbers : bool
        Whether tensors created on the meta device are created on the CPU with real values; they
        move to the meta device where they meet another tensor there.
    """

    def __init__(self, traced: Trace, *, numbers: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._traced = traced
        self._with_numbers = numbers
        self._number_of: dict[int, int] = {}
        self._held: list[torch.Tensor] = []  # Alive, so that no two share an identity.
        self._time = 0

    def tick(self) -> int:
        """Advance the clock and return its time."""
        self._time += 1
        return self._time

    def number(self, tensor: torch.Tensor) -> int:
        """Return the node number of a tensor, which is added if it is new."""
        if id(tensor) not in self._number_of:
            self._put(tensor, Node("", (), tuple(tensor.shape), plain=True))
        return self._number_of[id(tensor)]

    def see(self, value: Any) -> tuple[int | None, tuple[int, ...] | str]:
        """Return node number and shape of a module's input or output; a word for no tensor."""
        tensor = first_tensor(value)
        if tensor is None:
            return None, type(value).__name__
        return self.number(tensor), tuple(tensor.shape)

    def _put(self, tensor: torch.Tensor, node: Node) -> None:
        self._number_of[id(tensor)] = self._traced.add(node)
        self._held.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        inputs = tuple(self.number(tensor) for tensor in given)
        if self._with_numbers:
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            if any(tensor.is_meta for tensor in given):
                kwargs.pop("device", None)
                args, kwargs = tree_map(_to_meta, (args, kwargs))
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        plain = kwargs.get("alpha", 1) == 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._put(tensor, Node(name, inputs, tuple(tensor.shape), plain))
        return result


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value
