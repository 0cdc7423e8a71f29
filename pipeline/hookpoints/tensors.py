"""The tensor among a module's inputs or outputs, whatever container holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def first_tensor(value: Any) -> torch.Tensor | None:
    """Return a tensor, or the tensor that is a tuple's or list's first element; else None."""
    import torch

    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a module's input: its first argument, or the keyword ``hidden_states``."""
    return args[0] if args else kwargs.get("hidden_states")
