"""How wide a module's input or output is: seen in a forward pass, best without numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actlas.pipeline.hookpoints.graph import Side, Trace
from actlas.store.errors import HookpointError
from actlas.store.format.schema import Layout


@dataclass(frozen=True, slots=True)
class Seen:
    """What one place gives: units, positions, and how its tensor lies."""

    width: int
    n_positions: int
    layout: Layout


def observe(found: Trace, places: Sequence[tuple[str, str, Side]]) -> dict[str, Seen]:
    """Return what every place gives, which must be one vector per position.

    Parameters
    ----------
    found : Trace
        Of the model.
    places : sequence of (name, module path, "input" or "output")

    Raises
    ------
    HookpointError
        A place is not reached in a forward pass, is reached several times, or gives no
        ``[batch, position, unit]`` (of images also ``[batch, unit, height, width]``); the message
        says what it gives.
    """
    return {name: _seen(found, name, path, side) for name, path, side in places}


def check_positions(positions: Mapping[str, int]) -> int:
    """Return the number of positions of hookpoints, which must be one number.

    Raises
    ------
    HookpointError
        They have different numbers of positions: it lists them all.
    """
    if len(set(positions.values())) > 1:
        listed = ", ".join(f"{name} {n:,}" for name, n in positions.items())
        raise HookpointError(
            f"These hookpoints give one image different numbers of positions ({listed}), and rows "
            "are shared by all hookpoints of a store. Make a store for each number.",
            positions=positions,
        )
    return next(iter(positions.values()))


def _seen(found: Trace, name: str, path: str, side: Side) -> Seen:
    calls = [call for call in found.of(path) if call.time(side) >= 0]
    if not calls:
        why = f" (the pass ended with {found.failure!r:.300})" if found.failure is not None else ""
        raise HookpointError(
            f"Hookpoint {name} (module {path}) is not reached in a forward pass over "
            f"{found.probe.what}{why}. Name another module.",
            hookpoint=name,
        )
    if len(calls) > 1:
        raise HookpointError(
            f"Hookpoint {name}: module {path} runs {len(calls)} times in one forward pass, so its "
            f"{side} is not one activation per position. Name a module that runs once.",
            hookpoint=name,
        )
    shape = calls[0].shape(side)
    seen = measure(found, shape)
    if seen is None:
        n_batch, n_positions = found.probe.shape
        got = shape if isinstance(shape, str) else f"a tensor of shape {list(shape)}"
        each = f" of {n_positions} tokens" if n_positions is not None else ""
        raise HookpointError(
            f"Hookpoint {name}: module {path} {'takes' if side == 'input' else 'gives'} {got} for "
            f"{n_batch} {found.probe.what}{each}; expected "
            f"[{n_batch}, {n_positions or 'positions'}, units]. Name another module.",
            hookpoint=name,
        )
    return seen


def measure(found: Trace, shape: tuple[int, ...] | str) -> Seen | None:
    """Return what a shape amounts to; None where it is not one vector per position.

    Some modules take ``[batch * position, unit]``.
    """
    n_batch, n_positions = found.probe.shape
    if isinstance(shape, str) or 0 in shape:
        return None
    if len(shape) == 2 and n_positions is not None and shape[0] == n_batch * n_positions:
        return Seen(shape[1], n_positions, "positions")
    if shape[:1] != (n_batch,):
        return None
    if len(shape) == 3 and n_positions in (None, shape[1]):
        return Seen(shape[2], shape[1], "positions")
    if len(shape) == 4 and n_positions is None:
        return Seen(shape[1], shape[2] * shape[3], "feature_map")
    return None
