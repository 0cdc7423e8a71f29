"""What a forward pass computed from what: its tensors, and the calls of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from actlas.pipeline.probe import Probe

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
