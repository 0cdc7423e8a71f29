"""Widths and layouts of modules' inputs and outputs, read from a traced forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actlas.pipeline.hookpoints.graph import Side, Trace
from actlas.store.errors import HookpointError
from actlas.store.format.schema import Layout


@dataclass(frozen=True, slots=True)
class HookpointShape:
    """The shape of a hookpoint: units, positions, and the layout of its tensor."""

    width: int
    n_positions: int
    layout: Layout


def observe(traced: Trace, places: Sequence[tuple[str, str, Side]]) -> dict[str, HookpointShape]:
    """Return the shapes of hookpoints, each of which must be one vector per position.

    Parameters
    ----------
    traced : Trace
        A forward pass of the model.
    places : sequence of (name, module path, "input" or "output")
        The hookpoints.

    Raises
    ------
    HookpointError
        A hookpoint is not reached in the pass, is reached several times, or is no
        ``[batch, position, unit]`` tensor (for images also ``[batch, unit, height, width]``); the
        message gives its shape.
    """
    return {name: _seen(traced, name, path, side) for name, path, side in places}


def check_positions(positions: Mapping[str, int]) -> int:
    """Return the number of positions that all hookpoints share.

    Parameters
    ----------
    positions : mapping of str to int
        The number of positions of each hookpoint.

    Raises
    ------
    HookpointError
        The numbers differ; the message lists them all.
    """
    if len(set(positions.values())) > 1:
        listed = ", ".join(f"{name} {n:,}" for name, n in positions.items())
        raise HookpointError(
            f"These hookpoints give one image different numbers of positions ({listed}), and rows "
            "are shared by all hookpoints of a store. Make a store for each number.",
            positions=positions,
        )
    return next(iter(positions.values()))


def _seen(traced: Trace, name: str, path: str, side: Side) -> HookpointShape:
    calls = [call for call in traced.of(path) if call.time(side) >= 0]
    if not calls:
        why = (
            f" (the pass ended with {traced.failure!r:.300})" if traced.failure is not None else ""
        )
        raise HookpointError(
            f"Hookpoint {name} (module {path}) is not reached in a forward pass over "
            f"{traced.probe.what}{why}. Name another module.",
            hookpoint=name,
        )
    if len(calls) > 1:
        raise HookpointError(
            f"Hookpoint {name}: module {path} runs {len(calls)} times in one forward pass, so its "
            f"{side} is not one activation per position. Name a module that runs once.",
            hookpoint=name,
        )
    shape = calls[0].shape(side)
    seen = measure(traced, shape)
    if seen is None:
        n_batch, n_positions = traced.probe.shape
        got = shape if isinstance(shape, str) else f"a tensor of shape {list(shape)}"
        each = f" of {n_positions} tokens" if n_positions is not None else ""
        raise HookpointError(
            f"Hookpoint {name}: the {side} of module {path} is {got} for "
            f"{n_batch} {traced.probe.what}{each}; expected "
            f"[{n_batch}, {n_positions or 'positions'}, units]. Name another module.",
            hookpoint=name,
        )
    return seen


def measure(traced: Trace, shape: tuple[int, ...] | str) -> HookpointShape | None:
    """Return the hookpoint shape of a tensor's shape; None if not one vector per position.

    Some modules have ``[batch * position, unit]`` as their input. The units of an image's map come
    first (``[batch, unit, height, width]``, as in convolutions) or last.

    Parameters
    ----------
    traced : Trace
        The pass, whose probe gives the numbers of sequences and positions.
    shape : tuple of int or str
        The tensor's shape; a word where a module had no tensor.
    """
    n_batch, n_positions = traced.probe.shape
    if isinstance(shape, str) or 0 in shape:
        return None
    if len(shape) == 2 and n_positions is not None and shape[0] == n_batch * n_positions:
        return HookpointShape(shape[1], n_positions, "positions")
    if shape[:1] != (n_batch,):
        return None
    if len(shape) == 3 and n_positions in (None, shape[1]):
        return HookpointShape(shape[2], shape[1], "positions")
    if len(shape) == 4 and n_positions is None:
        return _map_shape(traced, shape)
    return None


def _map_shape(traced: Trace, shape: tuple[int, ...]) -> HookpointShape | None:
    """Return the hookpoint shape of a map, whose units are its first axis or its last.

    The other two axes have the proportions of the image. None is returned where both fit, or none.
    """
    height, width = traced.probe.arrays["pixel_values"].shape[-2:]

    def is_place(rows: int, columns: int) -> bool:
        return abs(rows * width - columns * height) < max(height, width)

    _, first, middle, last = shape
    units_first, units_last = is_place(middle, last), is_place(first, middle)
    if units_first == units_last:
        return None
    if units_first:
        return HookpointShape(first, middle * last, "feature_map")
    return HookpointShape(last, first * middle, "positions")
