"""How wide a module's output is: seen in a forward pass of a few tokens, best without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actlas.pipeline.capture import first_tensor
from actlas.store.errors import HookpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

N_BATCH = 2
N_POSITIONS = 3


def observe(model: nn.Module, places: Sequence[tuple[str, str, str]]) -> dict[str, int]:
    """Return the width of every place, each of which must give ``[batch, position, unit]``.

    Parameters
    ----------
    model : torch.nn.Module
        On the meta device this costs milliseconds, whatever the size of the model.
    places : sequence of (name, module path, "input" or "output")

    Raises
    ------
    HookpointError
        A place is not reached in a forward pass, is reached several times, or gives no tensor of
        that shape; the message says what it gives.
    """
    seen: dict[str, list[str | tuple[int, ...]]] = {name: [] for name, _, _ in places}
    handles = [_watch(model.get_submodule(path), side, seen[name]) for name, path, side in places]
    try:
        failure = _forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _width(name, path, seen[name], failure) for name, path, _ in places}


def _watch(module: nn.Module, side: str, shapes: list[str | tuple[int, ...]]) -> Any:
    def note(value: Any) -> None:
        tensor = first_tensor(value)
        shapes.append(type(value).__name__ if tensor is None else tuple(tensor.shape))

    if side == "input":
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: note(args or kwargs.get("hidden_states")), with_kwargs=True
        )
    return module.register_forward_hook(lambda _module, _args, output: note(output))


def _forward(model: nn.Module) -> Exception | None:
    """Run a few tokens through the model; return what stopped it, if something did.

    On the meta device some architectures ask for numbers late in the pass, when all that was to be
    seen has been seen: whether that matters is for the caller to say.
    """
    import torch

    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    tokens = torch.zeros((N_BATCH, N_POSITIONS), dtype=torch.long, device=weight.device)
    try:
        with torch.no_grad():
            model(tokens)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        return error
    return None


def _width(
    name: str, path: str, shapes: list[str | tuple[int, ...]], failure: Exception | None
) -> int:
    if not shapes:
        why = f" (the pass ended with {failure!r:.300})" if failure is not None else ""
        raise HookpointError(
            f"Hookpoint {name} (module {path}) is not reached in a forward pass over tokens{why}. "
            "Name another module.",
            hookpoint=name,
        )
    if len(shapes) > 1:
        raise HookpointError(
            f"Hookpoint {name}: module {path} runs {len(shapes)} times in one forward pass, so its "
            "output is not one activation per token. Name a module that runs once.",
            hookpoint=name,
        )
    shape = shapes[0]
    if isinstance(shape, str) or len(shape) != 3 or shape[:2] != (N_BATCH, N_POSITIONS):
        got = shape if isinstance(shape, str) else f"a tensor of shape {list(shape)}"
        raise HookpointError(
            f"Hookpoint {name}: module {path} gives {got} for {N_BATCH} sequences of {N_POSITIONS} "
            f"tokens; expected [{N_BATCH}, {N_POSITIONS}, units]. Name another module.",
            hookpoint=name,
        )
    return shape[2]
