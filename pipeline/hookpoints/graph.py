"""What a forward pass computed from what: its tensors, and the calls of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from actlas.pipeline.hookpoints.probe import Probe, probe_inputs
from actlas.pipeline.hookpoints.tensors import first_input, first_tensor
from actlas.pipeline.model.config import LOADING_ERRORS, quiet

if TYPE_CHECKING:
    import torch
    from torch import nn

Side = Literal["input", "output"]

# Operations that give the same vectors in another form.
_SAME = ("view", "_unsafe_view", "reshape", "clone", "detach", "alias", "_to_copy", "lift_fresh")


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor of the pass: the operation that gave it, and the tensors that it came from.

    ``operation`` is empty for a tensor that was there before the pass: a parameter, an input.
    """

    operation: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    plain: bool
    """Whether the operation has no factor beside its tensors (``add`` with an ``alpha``)."""


@dataclass(slots=True)
class Call:
    """One call of a module: its first input and output as node numbers; None for no tensor."""

    path: str
    began: int
    """Number of the first node made inside it."""
    given: int | None = None
    gave: int | None = None
    given_shape: tuple[int, ...] | str = ""
    gave_shape: tuple[int, ...] | str = ""
    index: int = -1
    """Its place among all calls."""
    entered: int = -1
    left: int = -1
    """Times at which it was entered and left, in one count; -1: never."""

    def node(self, side: Side) -> int | None:
        """Return the node on a side."""
        return self.given if side == "input" else self.gave

    def shape(self, side: Side) -> tuple[int, ...] | str:
        """Return the shape on a side; a word where there was no tensor."""
        return self.given_shape if side == "input" else self.gave_shape

    def time(self, side: Side) -> int:
        """Return when a side was seen."""
        return self.entered if side == "input" else self.left


@dataclass(slots=True)
class Trace:
    """A forward pass.

    Attributes
    ----------
    probe : Probe
    nodes : list of Node
    calls : list of Call
        In the order in which they were entered.
    failure : Exception or None
        What stopped the pass, if something did. On the meta device some architectures ask for
        numbers late in the pass, when all that was to be seen has been seen.
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
        """Take a tensor in and return its number."""
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
        """Return the tensor of which this one is another form with the same vectors."""
        return self._same[number]

    def enter(self, call: Call) -> None:
        """Take a call in."""
        call.index = len(self.calls)
        self.calls.append(call)
        self._by_path.setdefault(call.path, []).append(call)

    def of(self, path: str) -> list[Call]:
        """Return the calls of a module."""
        return self._by_path.get(path, [])

    def within(self, call: Call) -> Iterator[Call]:
        """Yield the calls that were made inside a call."""
        for inner in self.calls[call.index + 1 :]:
            if call.left >= 0 and inner.entered > call.left:
                return
            yield inner


def trace(model: nn.Module) -> Trace:
    """Run the smallest input through a model and return what was computed from what.

    Some models ask for a number on the way, which the meta device has not: for these the pass is
    run again with numbers in all that no weight went into, such as masks and positions.

    Parameters
    ----------
    model : torch.nn.Module
        On the meta device this costs milliseconds, whatever the size of the model.
    """
    probe = probe_inputs(model)
    found = _run(model, probe, numbers=False)
    if found.failure is not None and _on_meta(probe):
        again = _run(model, probe, numbers=True)
        if again.failure is None or len(again.calls) > len(found.calls):
            return again
    return found


def _on_meta(probe: Probe) -> bool:
    return all(array.is_meta for array in probe.arrays.values())


def _run(model: nn.Module, probe: Probe, *, numbers: bool) -> Trace:
    import torch

    found = Trace(probe)
    mode = recorder(found, numbers=numbers)
    arrays = probe.arrays
    if numbers:
        arrays = {name: torch.zeros_like(array, device="cpu") for name, array in arrays.items()}
    handles: list[Any] = []
    for path, module in model.named_modules(remove_duplicate=False):
        handles += _watch(path, module, found, mode)
        found.weights[path] = [tuple(p.shape) for p in module.parameters(recurse=False)]
    try:
        with torch.no_grad(), quiet(), mode:
            model(**arrays)
    except (*LOADING_ERRORS, IndexError, AssertionError) as error:
        found.failure = error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(path: str, module: nn.Module, found: Trace, mode: Any) -> list[Any]:
    open_calls: list[Call] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(path, began=len(found.nodes), entered=mode.tick())
        call.given, call.given_shape = mode.see(first_input(args, kwargs))
        open_calls.append(call)
        found.enter(call)

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls.pop()
        call.gave, call.gave_shape = mode.see(output)
        call.left = mode.tick()

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave),
    ]


def recorder(found: Trace, *, numbers: bool) -> Any:
    """Return a mode in which every operation is noted.

    With ``numbers``, a tensor that is made on the meta device is made on the CPU, and is taken to
    the meta device only where it meets another one there.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map

    def to_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Holds every tensor, so that no two share an address."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.numbers: dict[int, int] = {}
            self.held: list[torch.Tensor] = []
            self.time = 0

        def tick(self) -> int:
            self.time += 1
            return self.time

        def number(self, tensor: torch.Tensor) -> int:
            if id(tensor) not in self.numbers:
                self.put(tensor, Node("", (), tuple(tensor.shape), plain=True))
            return self.numbers[id(tensor)]

        def put(self, tensor: torch.Tensor, node: Node) -> None:
            self.numbers[id(tensor)] = found.add(node)
            self.held.append(tensor)

        def see(self, value: Any) -> tuple[int | None, tuple[int, ...] | str]:
            tensor = first_tensor(value)
            if tensor is None:
                return None, type(value).__name__
            return self.number(tensor), tuple(tensor.shape)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
            inputs = tuple(self.number(tensor) for tensor in given)
            if numbers:
                if "device" in kwargs:
                    kwargs["device"] = torch.device("cpu")
                if any(tensor.is_meta for tensor in given):
                    kwargs.pop("device", None)
                    args, kwargs = tree_map(to_meta, (args, kwargs))
            result = func(*args, **kwargs)
            name = func._schema.name.removeprefix("aten::").removesuffix("_")
            plain = kwargs.get("alpha", 1) == 1
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.put(tensor, Node(name, inputs, tuple(tensor.shape), plain))
            return result

    return Recorder()
