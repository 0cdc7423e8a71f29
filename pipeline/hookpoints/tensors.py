"""The tensor that a module takes or returns, whatever container holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def first_tensor(value: Any) -> torch.Tensor | None:
    """Return a tensor, or the first element of a tuple or list where that is one; else None."""
    import torch

    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a module is called with: its first argument, or ``hidden_states`` by keyword."""
    return args[0] if args else kwargs.get("hidden_states")
