"""Attaching a hook to a hookpoint: the one mechanism behind capture and intervention."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from actlas.pipeline.hookpoints.tensors import first_input
from actlas.store.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from actlas.store.format.schema import HookpointSpec

Visit = Callable[[Any], "torch.Tensor | None"]
"""Called with the value at a hookpoint: what its module takes or returns, containers included.

The tensor that a visit returns takes the place of the hookpoint's tensor; after None the pass goes
on unchanged.
"""


def attach(model: nn.Module, hookpoint: HookpointSpec, visit: Visit) -> RemovableHandle:
    """Call ``visit`` whenever a forward pass of a model comes to a hookpoint.

    Hooks of one hookpoint run in the order in which they were attached; each sees what the earlier
    ones put in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model that contains the hookpoint's module.
    hookpoint : HookpointSpec
        A module's path, and whether its input or its output is visited.
    visit : callable
        Sees the value, and may return a tensor to take its place.

    Returns
    -------
    RemovableHandle
        Its ``remove()`` takes the hook off.

    Raises
    ------
    AttributeError
        The model has no module at the hookpoint's path.
    """
    module = model.get_submodule(hookpoint.module)

    def before(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        tensor = visit(first_input(args, kwargs))
        if tensor is None:
            return None
        if args:
            return (tensor, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": tensor}

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        tensor = visit(output)
        return None if tensor is None else with_first(output, tensor)

    if hookpoint.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def with_first(value: Any, tensor: torch.Tensor) -> Any:
    """Return a module's output with a tensor in the place of its own.

    Parameters
    ----------
    value : Tensor, tuple or list
        The output: a tensor, or a container (a named tuple too) that has the tensor first.
    tensor : Tensor
        The tensor that takes the place.
    """
    if isinstance(value, list):
        return [tensor, *value[1:]]
    if isinstance(value, tuple):
        parts = (tensor, *value[1:])
        return type(value)(*parts) if hasattr(value, "_fields") else parts
    return tensor


def masked(model: nn.Module, attention_mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the argument that masks padding; none where there is none to mask.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    attention_mask : Tensor of int64, shape [batch, position], or None
        1 for tokens, 0 for padding.

    Raises
    ------
    ModelError
        The model's ``forward`` takes no mask: its rows would depend on padding.
    """
    if attention_mask is None:
        return {}
    given = accepted_inputs(model, {"attention_mask": attention_mask})
    if not given:
        raise ModelError(
            f"{type(model).__name__} takes no attention_mask, and the batch has padding. Run "
            "sequences of equal length together, or each alone.",
            field="architecture",
        )
    return given


def accepted_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those optional inputs that a model's ``forward`` accepts and that are not None.

    Parameters
    ----------
    model : torch.nn.Module
        The model; one whose ``forward`` has ``**kwargs`` accepts every input.
    inputs : mapping of str to object
        Optional inputs by the names of their parameters, such as ``use_cache``.
    """
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {
        name: value
        for name, value in inputs.items()
        if value is not None and (open_ended or name in parameters)
    }
