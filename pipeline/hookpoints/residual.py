"""The residual stream of a block, followed back from its output through additions and norms.

::

    input ─────────┬──────────────(+)──────┬───────────(+)──▶ output        sequential, norm first
                   └▶ norm ▶ attention┘    └▶ norm ▶ MLP┘

    input ──┬──────────(+)──▶ norm ──┬────(+)──▶ norm ──▶ output            norm last
            └▶ attention┘            └▶ MLP┘

    input ──┬──────────────────────(+)──▶ output                            parallel
            └▶ norm ▶ attention + MLP┘

What is added on the way are the block's *terms*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property
from typing import NamedTuple

from actlas.pipeline.hookpoints.graph import Call, Side, Trace
from actlas.pipeline.hookpoints.shapes import measure

Place = tuple[str, Side]
"""A module's path, and whether its input or its output is meant."""

_SIDES: tuple[Side, Side] = ("output", "input")

# Operations by which positions see each other, besides a softmax over them.
_MIXING = ("convolution", "fft", "constant_pad_nd", "scaled_dot_product")


class Step(NamedTuple):
    """One addition on the residual stream: to the tensor ``stream``, of the terms ``added``."""

    stream: int
    added: tuple[int, ...]


class Residual:
    """The residual stream of one block. Tensors are numbers of nodes in the trace.

    Parameters
    ----------
    found : Trace
    call : Call
        Of the block: it takes a tensor and gives one.

    Attributes
    ----------
    steps : list of Step or None
        The additions between the block's input and its output, in their order; None where there
        is no way from one to the other through additions and norms.
    """

    def __init__(self, found: Trace, call: Call) -> None:
        assert call.given is not None
        assert call.gave is not None
        self.found, self.call = found, call
        self.source = found.same(call.given)
        self.calls = list(found.within(call))
        self.outputs: dict[int, list[Call]] = {}
        for inner in self.calls:
            if inner.gave is not None:
                self.outputs.setdefault(found.same(inner.gave), []).append(inner)
        # A way through additions alone is taken before one through norms.
        steps = self._walk(call.gave, norms=False)
        self.steps = self._walk(call.gave, norms=True) if steps is None else steps
        self.cone = cache(self._cone)

    def attends(self, term: int) -> bool:
        """Whether a softmax over positions lies behind a term."""
        return any(self._is_attention(number) for number in self.cone(term))

    def mixes(self, term: int) -> bool:
        """Whether a term has an operation behind it by which positions see each other."""
        nodes = (self.found.nodes[number] for number in self.cone(term) if self._is_inside(number))
        return any(
            any(word in node.operation for word in _MIXING)
            or (len(node.shape) > 2 and node.shape[-1] == self._n_positions)
            for node in nodes
        )

    def routes(self, term: int) -> bool:
        """Whether a term comes from experts: from a choice among them, or from stacked matrices."""
        nodes = (self.found.nodes[number] for number in self.cone(term) if self._is_inside(number))
        return any(
            "topk" in node.operation or (not node.operation and len(node.shape) == 3)
            for node in nodes
        )

    def read_by(self, term: int) -> int | None:
        """Return the stream after the block's input that a term is computed from, if it is."""
        streams = {step.stream for step in self.steps or ()} - {self.source}
        return max(self.cone(term) & streams, default=None)

    def place(self, number: int) -> Place | None:
        """Return the module, outermost and first, that gives a tensor or else takes it."""
        for side in _SIDES:
            for call in self._once:
                at = call.node(side)
                if at is None or self.found.same(at) != number:
                    continue
                if measure(self.found, call.shape(side)) is not None:
                    return call.path, side
        return None

    def before(self, number: int) -> Place | None:
        """Return the module's output that a tensor is a multiple of."""
        if self.found.nodes[number].operation != "mul":
            return None
        factors = self._computed(number)
        return self.place(self.found.same(factors[0])) if len(factors) == 1 else None

    def projection(self, term: int) -> str | None:
        """Return the last module with one matrix that a term came through, if it ran once."""
        number = term
        while self._is_inside(number):
            calls = self.outputs.get(number, [])
            matrix = [call for call in calls if self._is_matrix(call)]
            if matrix:
                once = len(self.found.of(matrix[0].path)) == 1
                fits = measure(self.found, matrix[0].given_shape) is not None
                return matrix[0].path if once and fits else None
            through = [call for call in calls if self._keeps_vectors(call)]
            onwards = [self._given(call) for call in through if self._given(call) != number]
            if not onwards and (
                self._is_sum(number) or self.found.nodes[number].operation == "mul"
            ):
                onwards = [self.found.same(n) for n in self._computed(number)]
                onwards = onwards if len(onwards) == 1 else []
            if not onwards:
                return None
            number = onwards[0]
        return None

    def _walk(self, number: int, *, norms: bool) -> list[Step] | None:
        number = self.found.same(number)
        if number == self.source:
            return []
        if not self._is_inside(number):
            return None
        if self._is_sum(number):
            first, second = self.found.nodes[number].inputs
            for stream, added in ((first, second), (second, first)):
                before = self._walk(stream, norms=norms)
                if before is not None:
                    return [*before, Step(self.found.same(stream), tuple(self._terms(added)))]
        for call in self.outputs.get(number, ()) if norms else ():
            if self._keeps_vectors(call) and self._given(call) != number:
                return self._walk(self._given(call), norms=norms)
        return None

    def _terms(self, number: int) -> Iterator[int]:
        """Yield the modules' outputs of which what is added is the sum."""
        number = self.found.same(number)
        if number in self.outputs or not self._is_inside(number) or not self._is_sum(number):
            yield number
            return
        for part in self.found.nodes[number].inputs:
            yield from self._terms(part)

    def _cone(self, term: int) -> frozenset[int]:
        """Return all that a term is computed from, back to the residual stream."""
        streams = {self.source, *(step.stream for step in self.steps or ())}
        cone: set[int] = set()
        todo = [term]
        while todo:
            number = self.found.same(todo.pop())
            if number in cone:
                continue
            cone.add(number)
            if number not in streams and self._is_inside(number):
                todo += self.found.nodes[number].inputs
        return frozenset(cone)

    @cached_property
    def _once(self) -> list[Call]:
        """The calls of modules that run once, the outermost modules first."""
        once = [call for call in self.calls if len(self.found.of(call.path)) == 1]
        return sorted(once, key=lambda call: (call.path.count("."), call.entered))

    @property
    def _n_positions(self) -> int:
        return self.found.probe.shape[1] or self.found.nodes[self.source].shape[1]

    def _is_inside(self, number: int) -> bool:
        return number >= self.call.began

    def _is_attention(self, number: int) -> bool:
        node = self.found.nodes[number]
        if "scaled_dot_product" in node.operation:
            return True
        if "softmax" not in node.operation or len(node.shape) < 3:
            return False
        rows, columns = node.shape[-2:]
        return rows == self._n_positions and columns in (rows, rows + 1)  # one more: a sink

    def _is_sum(self, number: int) -> bool:
        made = self.found.nodes[number]
        return (
            made.operation == "add"
            and made.plain
            and len(made.inputs) == 2
            and all(self.found.nodes[n].shape == made.shape for n in made.inputs)
        )

    def _computed(self, number: int) -> list[int]:
        """Return the inputs of a tensor that were computed in the block, from more than weights."""
        inputs = self.found.nodes[number].inputs
        return [n for n in inputs if self._is_inside(n) and self.found.nodes[n].operation]

    def _given(self, call: Call) -> int:
        return -1 if call.given is None else self.found.same(call.given)

    def _keeps_vectors(self, call: Call) -> bool:
        """Whether a call is of a norm, a dropout, a scale: without modules, without a matrix."""
        return (
            call.given is not None
            and call.gave_shape == call.given_shape
            and not any(True for _ in self.found.within(call))
            and all(len(shape) < 2 for shape in self.found.weights[call.path])
        )

    def _is_matrix(self, call: Call) -> bool:
        """Whether a call is of a module with a matrix of its own and none stacked."""
        sizes = [len(shape) for shape in self.found.weights[call.path]]
        return max(sizes, default=0) == 2
