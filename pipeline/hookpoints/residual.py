"""The residual stream of a block, traced from its output back through additions and norms.

::

    input ─────────┬──────────────(+)──────┬───────────(+)──▶ output        sequential, norm first
                   └▶ norm ▶ attention┘    └▶ norm ▶ MLP┘

    input ──┬──────────(+)──▶ norm ──┬────(+)──▶ norm ──▶ output            norm last
            └▶ attention┘            └▶ MLP┘

    input ──┬──────────────────────(+)──▶ output                            parallel
            └▶ norm ▶ attention + MLP┘

The tensors added on the way are the block's *terms*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property
from typing import NamedTuple

from actlas.pipeline.hookpoints.graph import Call, Side, Trace
from actlas.pipeline.hookpoints.shapes import measure

ModuleTensor = tuple[str, Side]
"""A module's path, and its input or output."""

_SIDES: tuple[Side, Side] = ("output", "input")

# Operations that mix positions, besides a softmax over them.
_MIXING = ("convolution", "fft", "constant_pad_nd", "scaled_dot_product")


class Step(NamedTuple):
    """One addition to the residual stream: the tensor ``stream``, and the terms ``added`` to it."""

    stream: int
    added: tuple[int, ...]


class Residual:
    """The residual stream of one block. Tensors are given as node numbers of the trace.

    Parameters
    ----------
    traced : Trace
        The forward pass.
    call : Call
        The call of the block, with a tensor as its input and as its output.

    Attributes
    ----------
    steps : list of Step or None
        The additions between the block's input and its output, in order; None where no path of
        additions and norms connects the two.
    """

    def __init__(self, traced: Trace, call: Call) -> None:
        assert call.given is not None
        assert call.gave is not None
        self.traced, self.call = traced, call
        self.source = traced.same(call.given)
        self.calls = list(traced.within(call))
        self.outputs: dict[int, list[Call]] = {}
        for inner in self.calls:
            if inner.gave is not None:
                self.outputs.setdefault(traced.same(inner.gave), []).append(inner)
        # A path of additions alone is preferred to one that passes norms.
        steps = self._walk(call.gave, norms=False)
        self.steps = self._walk(call.gave, norms=True) if steps is None else steps
        self.cone = cache(self._cone)

    def attends(self, term: int) -> bool:
        """Return whether a term is computed from a softmax over positions."""
        return any(self._is_attention(number) for number in self.cone(term))

    def mixes(self, term: int) -> bool:
        """Return whether an operation that mixes positions contributes to a term."""
        nodes = (self.traced.nodes[number] for number in self.cone(term) if self._is_inside(number))
        return any(
            any(word in node.operation for word in _MIXING)
            or (len(node.shape) > 2 and node.shape[-1] == self._n_positions)
            for node in nodes
        )

    def routes(self, term: int) -> bool:
        """Return whether a term comes from a mixture of experts: a top-k or stacked matrices."""
        nodes = (self.traced.nodes[number] for number in self.cone(term) if self._is_inside(number))
        return any(
            "topk" in node.operation or (not node.operation and len(node.shape) == 3)
            for node in nodes
        )

    def read_by(self, term: int) -> int | None:
        """Return the latest stream after the block's input that a term is computed from, if any."""
        streams = {step.stream for step in self.steps or ()} - {self.source}
        return max(self.cone(term) & streams, default=None)

    def place(self, number: int) -> ModuleTensor | None:
        """Return the outermost, first module with a tensor as its output, or else as its input."""
        for side in _SIDES:
            for call in self._once:
                at = call.node(side)
                if at is None or self.traced.same(at) != number:
                    continue
                if measure(self.traced, call.shape(side)) is not None:
                    return call.path, side
        return None

    def before(self, number: int) -> ModuleTensor | None:
        """Return the module whose output a tensor is a multiple of; None where it is none."""
        if self.traced.nodes[number].operation != "mul":
            return None
        factors = self._computed(number)
        return self.place(self.traced.same(factors[0])) if len(factors) == 1 else None

    def projection(self, term: int) -> str | None:
        """Return the last module with a single matrix on a term's path, if that runs once."""
        number = term
        while self._is_inside(number):
            calls = self.outputs.get(number, [])
            matrix = [call for call in calls if self._is_matrix(call)]
            if matrix:
                once = len(self.traced.of(matrix[0].path)) == 1
                fits = measure(self.traced, matrix[0].given_shape) is not None
                return matrix[0].path if once and fits else None
            through = [call for call in calls if self._keeps_vectors(call)]
            onwards = [self._given(call) for call in through if self._given(call) != number]
            if not onwards and (
                self._is_sum(number) or self.traced.nodes[number].operation == "mul"
            ):
                onwards = [self.traced.same(n) for n in self._computed(number)]
                onwards = onwards if len(onwards) == 1 else []
            if not onwards:
                return None
            number = onwards[0]
        return None

    def _walk(self, number: int, *, norms: bool) -> list[Step] | None:
        number = self.traced.same(number)
        if number == self.source:
            return []
        if not self._is_inside(number):
            return None
        if self._is_sum(number):
            first, second = self.traced.nodes[number].inputs
            for stream, added in ((first, second), (second, first)):
                before = self._walk(stream, norms=norms)
                if before is not None:
                    return [*before, Step(self.traced.same(stream), tuple(self._terms(added)))]
        for call in self.outputs.get(number, ()) if norms else ():
            if self._keeps_vectors(call) and self._given(call) != number:
                return self._walk(self._given(call), norms=norms)
        return None

    def _terms(self, number: int) -> Iterator[int]:
        """Yield the modules' outputs whose sum is added."""
        number = self.traced.same(number)
        if number in self.outputs or not self._is_inside(number) or not self._is_sum(number):
            yield number
            return
        for part in self.traced.nodes[number].inputs:
            yield from self._terms(part)

    def _cone(self, term: int) -> frozenset[int]:
        """Return all tensors that a term is computed from, back to the residual stream."""
        streams = {self.source, *(step.stream for step in self.steps or ())}
        cone: set[int] = set()
        todo = [term]
        while todo:
            number = self.traced.same(todo.pop())
            if number in cone:
                continue
            cone.add(number)
            if number not in streams and self._is_inside(number):
                todo += self.traced.nodes[number].inputs
        return frozenset(cone)

    @cached_property
    def _once(self) -> list[Call]:
        """Calls of modules that run once, the outermost modules first."""
        once = [call for call in self.calls if len(self.traced.of(call.path)) == 1]
        return sorted(once, key=lambda call: (call.path.count("."), call.entered))

    @property
    def _n_positions(self) -> int:
        return self.traced.probe.shape[1] or self.traced.nodes[self.source].shape[1]

    def _is_inside(self, number: int) -> bool:
        return number >= self.call.began

    def _is_attention(self, number: int) -> bool:
        node = self.traced.nodes[number]
        if "scaled_dot_product" in node.operation:
            return True
        if "softmax" not in node.operation or len(node.shape) < 3:
            return False
        rows, columns = node.shape[-2:]
        return rows == self._n_positions and columns in (rows, rows + 1)  # one more: a sink

    def _is_sum(self, number: int) -> bool:
        made = self.traced.nodes[number]
        return (
            made.operation == "add"
            and made.plain
            and len(made.inputs) == 2
            and all(self.traced.nodes[n].shape == made.shape for n in made.inputs)
        )

    def _computed(self, number: int) -> list[int]:
        """Return the inputs of an operation that the block computes, not from weights alone."""
        inputs = self.traced.nodes[number].inputs
        return [n for n in inputs if self._is_inside(n) and self.traced.nodes[n].operation]

    def _given(self, call: Call) -> int:
        return -1 if call.given is None else self.traced.same(call.given)

    def _keeps_vectors(self, call: Call) -> bool:
        """Return whether a call is of a norm, dropout or scale: no inner modules and no matrix."""
        return (
            call.given is not None
            and call.gave_shape == call.given_shape
            and not any(True for _ in self.traced.within(call))
            and all(len(shape) < 2 for shape in self.traced.weights[call.path])
        )

    def _is_matrix(self, call: Call) -> bool:
        """Return whether a call is of a module with a matrix of its own, and no stacked ones."""
        sizes = [len(shape) for shape in self.traced.weights[call.path]]
        return max(sizes, default=0) == 2
