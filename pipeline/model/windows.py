"""How long a window of a model may be, from its configuration and its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actlas.pipeline.model.fields import size_field
from actlas.store.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def context_length_of(text: Any, skeleton: nn.Module) -> int | None:
    """Return the number of positions that a model supports; None where nothing states it."""
    import torch

    length = size_field(text, "max_position_embeddings")
    for name, module in skeleton.named_modules():
        rows = getattr(module, "num_embeddings", None)
        weight = getattr(module, "weight", None)
        if rows is None and isinstance(weight, torch.Tensor) and weight.ndim == 2:
            rows = weight.shape[0]  # an embedding of the model's own kind
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and rows is not None and padding is not None:
            # RoBERTa numbers positions from padding_idx + 1.
            length = min(length or rows, rows - padding - 1)
    return length


def check_windows(config: Any, context_length: int | None, max_length: int) -> None:
    """Check that a model supports windows of a length, and encodes positions independent of it.

    Some rotary embeddings (dynamic NTK, LongRoPE) rotate every position by other angles once a
    sequence exceeds a given length. Activations would then depend on the other sequences of a
    batch and on the borders of shards.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration.
    context_length : int or None
        Positions that the model supports; None where not known.
    max_length : int
        Tokens of a window, special tokens included.

    Raises
    ------
    ModelError
        The windows are too long; the message gives the longest permitted length.
    """
    steady = _steady_length(config)
    longest = min(filter(None, (context_length, steady)), default=None)
    if longest is not None and max_length > longest:
        why = f"the number of positions that the model of {type(config).__name__} has"
        if longest == steady:
            why = (
                f"up to which {type(config).__name__} encodes a position the same way whatever "
                "follows it"
            )
        raise ModelError(
            f"Windows of {max_length} tokens are longer than {longest}, {why}. Plan with "
            f"--max-length {longest} or less.",
            max_length=max_length,
            longest=longest,
        )


def _steady_length(config: Any) -> int | None:
    """Return the length beyond which rotary embeddings change; None where they do not."""
    text = config.get_text_config()
    stated = getattr(text, "rope_parameters", None)
    stated = stated if isinstance(stated, dict) else {}
    kinds = [stated, *(value for value in stated.values() if isinstance(value, dict))]
    name = "original_max_position_embeddings"
    lengths = [
        kind.get(name) or size_field(text, name, "max_position_embeddings")
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(filter(None, lengths), default=None)
