"""Changing activations inside a forward pass: zero, add, replace or clamp at any hookpoint.

An intervention is a value: an edit (the arithmetic), and where it applies (a hookpoint, units,
positions). :func:`intervene` applies interventions by hooks that always come off::

    [resid_post_3] = resolve(model, ["resid_post.3"])
    steer = Intervention(resid_post_3, Add(8 * direction), positions=slice(n_prompt, None))
    with intervene(model, [steer]):
        tokens = generate(model, prompt, 40)

Nothing here assumes inference: edits are out of place and differentiable, in the activations and in
their own values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from actlas.pipeline.forward.edits import Edit
from actlas.pipeline.forward.hooks import attach
from actlas.pipeline.hookpoints.tensors import first_tensor
from actlas.store.errors import ConfigError, HookpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from actlas.store.format.schema import HookpointSpec


class InterventionError(HookpointError):
    """An intervention does not fit the model that runs.

    ``details["hookpoint"]`` names the hookpoint, ``details["reason"]`` says what does not fit.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Intervention:
    """An edit, and where in a model it applies.

    Parameters
    ----------
    hookpoint : HookpointSpec
        As :func:`actlas.pipeline.hookpoints.names.resolve` gives it.
    edit : Edit
        One of :mod:`actlas.pipeline.forward.edits`.
    units : sequence of int, optional
        Distinct units, in the order of the edit's values; an empty one changes nothing. Default:
        all units.
    positions : sequence of int or slice, optional
        Distinct positions, in the order of the edit's values, or a slice without a step. A
        position is an index into the sequence that the model sees, special tokens included and
        counted from 0; in generation with a key-value cache, it continues after the cached ones.
        Default: all positions.

    Raises
    ------
    ConfigError
        Units or positions are out of range or repeated, or the edit's values do not fit them.
    """

    hookpoint: HookpointSpec
    edit: Edit
    units: Sequence[int] | None = None
    positions: Sequence[int] | slice | None = None

    def __post_init__(self) -> None:
        width, n_positions = self.hookpoint.width, None
        if self.units is not None:
            object.__setattr__(self, "units", tuple(self.units))
            self._check_distinct("units", self.units, width)
        if isinstance(self.positions, slice):
            edges = (self.positions.start or 0, self.positions.stop or 0)
            if self.positions.step not in (None, 1) or min(edges) < 0:
                raise self._wrong(f"expected a slice without step from 0 on, got {self.positions}")
        elif self.positions is not None:
            object.__setattr__(self, "positions", tuple(self.positions))
            self._check_distinct("positions", self.positions, None)
            n_positions = len(self.positions)
        try:
            self.edit.check(width if self.units is None else len(self.units), n_positions)
        except ValueError as error:
            raise self._wrong(str(error)) from error

    def _check_distinct(self, name: str, indices: Sequence[int], limit: int | None) -> None:
        if len(set(indices)) != len(indices):
            raise self._wrong(f"expected distinct {name}, got {list(indices)}")
        if any(i < 0 or (limit is not None and i >= limit) for i in indices):
            allowed = "of 0 or more" if limit is None else f"in [0, {limit})"
            raise self._wrong(f"expected {name} {allowed}, got {list(indices)}")

    def _wrong(self, reason: str) -> ConfigError:
        return ConfigError(
            f"intervention at {self.hookpoint.name}: {reason}.", hookpoint=self.hookpoint.name
        )

    def select(self, start: int, n: int) -> tuple[list[int], list[int]]:
        """Return the positions of a pass to edit, and which of the intervention's each is.

        Parameters
        ----------
        start : int
            Position in the sequence of the pass's first position.
        n : int
            Positions of the pass.
        """
        if self.positions is None:
            return list(range(n)), list(range(start, start + n))
        if isinstance(self.positions, slice):
            first = self.positions.start or 0
            stop = start + n if self.positions.stop is None else self.positions.stop
            inside = range(max(start, first), min(start + n, stop))
            return [p - start for p in inside], [p - first for p in inside]
        found = sorted((p, row) for row, p in enumerate(self.positions) if start <= p < start + n)
        return [p - start for p, _ in found], [row for _, row in found]


ErrorOf = Callable[[Intervention, str], Exception]
"""Makes the error for an intervention that does not fit, from the intervention and the reason."""


def misfit_error(each: Intervention, reason: str) -> Exception:
    """Return the error of an intervention that does not fit the model that runs.

    Parameters
    ----------
    each : Intervention
        The intervention.
    reason : str
        What does not fit, without a full stop.
    """
    where = f"{each.hookpoint.name} (module {each.hookpoint.module}, {each.hookpoint.side})"
    return InterventionError(
        f"intervention at {where}: {reason}. Resolve the hookpoint on the model that runs.",
        hookpoint=each.hookpoint.name,
        reason=reason,
    )


@contextmanager
def intervene(
    model: nn.Module,
    interventions: Iterable[Intervention],
    *,
    error_of: ErrorOf = misfit_error,
) -> Iterator[None]:
    """Apply interventions in every forward pass of a model, as long as this is open.

    They apply in the order given, and inside those of an outer ``intervene``. The hooks come off
    on the way out, after an error too. A :class:`~actlas.pipeline.forward.capture.Capture` that is
    entered inside reads the edited activations; one entered before reads those that the model
    computed. A later block may write to the same coordinates of the residual stream again.

    Parameters
    ----------
    model : torch.nn.Module
        In any dtype, on any device. Where an intervention is limited to positions, passes go
        through this module itself, not through a part of it.
    interventions : iterable of Intervention
        Several may share a hookpoint.
    error_of : callable
        Returns the error to raise for an intervention that does not fit, from the intervention and
        the reason. Default: an :class:`InterventionError`.

    Raises
    ------
    InterventionError
        The model has no such module; or, in a pass, its tensor has another width, or positions are
        unknown. The pass raises it, in place of the model's output.
    """
    current = _CurrentPass()
    handles: list[Any] = []
    try:
        handles.append(model.register_forward_pre_hook(current.begin, with_kwargs=True))
        handles.append(model.register_forward_hook(current.end, always_call=True))
        for each in interventions:
            visit = partial(_visit, each, current, error_of)
            try:
                handles.append(attach(model, each.hookpoint, visit))
            except AttributeError as error:
                raise error_of(each, f"{type(model).__name__} has no such module") from error
        yield
    finally:
        for handle in handles:
            handle.remove()


class _CurrentPass:
    """How many sequences the running pass has, and at which position it starts."""

    def __init__(self) -> None:
        self.n_sequences: int | None = None
        self.start: int | None = None

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [kwargs.get(name) for name in ("input_ids", "inputs_embeds", "pixel_values")]
        tensors = [value for value in (*named, *args) if isinstance(value, torch.Tensor)]
        self.n_sequences = len(tensors[0]) if tensors else None
        self.start = _n_cached([*args, *kwargs.values()], kwargs.get("cache_position"))

    def end(self, *_: Any) -> None:
        self.n_sequences = self.start = None


def _n_cached(inputs: Iterable[Any], cache_position: Tensor | None) -> int | None:
    """Return how many positions of the sequence a cache holds; None where it does not say."""
    for value in inputs:
        length: Callable[[], Any] | None = getattr(value, "get_seq_length", None)
        if length is not None:
            try:
                return int(length())
            except ValueError:  # A cache of linear attention alone counts no positions.
                return None if cache_position is None else int(cache_position[0])
    return 0 if cache_position is None else int(cache_position[0])


def _visit(
    each: Intervention, current: _CurrentPass, error_of: ErrorOf, value: Any
) -> Tensor | None:
    tensor, width = first_tensor(value), each.hookpoint.width
    if tensor is None:
        raise error_of(each, f"its value is a {type(value).__name__}, expected a tensor")
    is_map = each.hookpoint.layout == "feature_map" and tensor.ndim == 4
    rows = tensor.flatten(2).transpose(1, 2) if is_map else tensor
    if rows.ndim < 2 or rows.shape[-1] != width:
        raise error_of(each, f"its tensor is {rows.shape[-1]} units wide, expected {width}")
    if each.units == ():
        return None
    try:
        if each.positions is None and not each.edit.by_position:
            edited: Tensor | None = _edit_units(each, rows, None)
        else:
            edited = _edit_positions(each, current, rows)
    except ValueError as error:
        raise error_of(each, str(error)) from error
    if edited is None or not is_map:
        return edited
    return edited.transpose(1, 2).reshape(tensor.shape)


def _edit_positions(each: Intervention, current: _CurrentPass, rows: Tensor) -> Tensor | None:
    if current.start is None or current.n_sequences is None:
        raise ValueError("positions are unknown: run the model that intervene was given")
    shaped = rows
    if rows.ndim == 2:  # A model may lay its positions out as [batch * position].
        if len(rows) % current.n_sequences:
            raise ValueError(f"{len(rows)} rows are no multiple of {current.n_sequences} sequences")
        shaped = rows.reshape(current.n_sequences, -1, rows.shape[-1])
    if shaped.ndim != 3:
        raise ValueError(
            f"its tensor has shape {list(rows.shape)}, expected [batch, position, unit]"
        )
    chosen, numbers = each.select(current.start, shaped.shape[1])
    if not chosen:
        return None
    index = torch.tensor(chosen, device=rows.device)
    part = shaped.index_select(1, index)
    edited = _edit_units(each, part, numbers)
    return shaped.index_copy(1, index, edited).reshape(rows.shape)


def _edit_units(each: Intervention, rows: Tensor, numbers: Sequence[int] | None) -> Tensor:
    """Return a copy: what the model keeps of the tensor elsewhere stays as it is."""
    if each.units is None:
        return each.edit.apply(rows, numbers).to(rows.dtype)
    index = torch.tensor(each.units, device=rows.device)
    edited = each.edit.apply(rows.index_select(-1, index), numbers)
    return rows.index_copy(-1, index, edited.to(rows.dtype))
