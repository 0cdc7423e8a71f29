"""What must hold of a model before its rows are trusted: seen in the model itself, not believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actlas.pipeline.capture import Capture
from actlas.pipeline.vision import blank_pixels, build_processor
from actlas.store.errors import ModelError
from actlas.store.schema import HookpointSpec, ProcessorSpec

if TYPE_CHECKING:
    from torch import nn

N_POSITIONS = 6

# How far rows may differ that should be equal, as a share of the largest magnitude: rounding in
# another order, not another value.
_TOLERANCE = {"torch.float32": 1e-4, "torch.float16": 1e-2, "torch.bfloat16": 4e-2}


def check_causal(
    model: nn.Module, hookpoints: Sequence[HookpointSpec], processor: ProcessorSpec | None = None
) -> None:
    """See that a model which the plan calls causal looks at no later position.

    Two sequences that differ in their last token go through the model; all other rows must agree.
    Sequences are cut at shard borders and padded without a mask on the strength of this.

    Parameters
    ----------
    model : torch.nn.Module
    hookpoints : sequence of HookpointSpec
    processor : ProcessorSpec, optional
        Of a model that reads images in text: each sequence then has one in its middle.

    Raises
    ------
    ModelError
        They do not agree.
    """
    import torch

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary = embedding.num_embeddings
    if vocabulary < 2:
        return
    tokens = torch.arange(N_POSITIONS, device=embedding.weight.device) % vocabulary
    pair = tokens.repeat(2, 1)
    images = {}
    if processor is not None:
        patches = pair.new_full((2, math.prod(processor.grid)), processor.image_token_id or 0)
        pair = torch.cat([pair, patches, pair], dim=1)
        images = blank_pixels(build_processor(processor), 2)
    pair[1, -1] = (pair[1, -1] + 1) % vocabulary
    given = {name: torch.from_numpy(values).to(embedding.weight) for name, values in images.items()}
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        activations = capture(pair, **given)
    for name, rows in activations.items():
        earlier = rows[:, :-1].float()
        difference = float((earlier[0] - earlier[1]).abs().max())
        largest = float(earlier.abs().max())
        if difference > _TOLERANCE.get(str(rows.dtype), 4e-2) * largest:
            raise ModelError(
                f"The plan says that {type(model).__name__} is causal, but at {name} earlier rows "
                f"change by {difference:.3g} (of at most {largest:.3g}) with the last token. Set "
                "is_decoder or is_causal in its config.json as the model really is, and plan anew.",
                field="model.causal",
                hookpoint=name,
            )


def check_windows(config: Any, context_length: int | None, max_length: int) -> None:
    """See that the model knows as many positions as a window has, and reads each the same way.

    Some rotary embeddings turn every position otherwise once a sequence passes a given length.
    Rows would then depend on what else is in the batch and on where a shard is cut.

    Raises
    ------
    ModelError
        With the longest window that is right.
    """
    longest = min(filter(None, (context_length, _steady_length(config))), default=None)
    if longest is not None and max_length > longest:
        raise ModelError(
            f"Windows of {max_length} tokens are longer than the {longest} up to which "
            f"{type(config).__name__} reads a position the same way whatever follows it. Plan with "
            f"--max-length {longest} or less.",
            max_length=max_length,
            longest=longest,
        )


def _steady_length(config: Any) -> int | None:
    """Return the length at which rotary embeddings change, where they do."""
    text = config.get_text_config()
    stated = getattr(text, "rope_parameters", None) or {}
    kinds = [stated, *(value for value in stated.values() if isinstance(value, dict))]
    lengths = [
        kind.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=None)
