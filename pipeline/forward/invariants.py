"""Checks of a loaded model: causality, and the comparison of activations up to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.model.vision import blank_pixels, build_processor
from actlas.store.errors import ModelError
from actlas.store.format.schema import HookpointSpec, ProcessorSpec

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int64
    from torch import Tensor, nn

N_POSITIONS = 6

MIN_VOCABULARY = 16

# Largest difference of activations that differ by rounding only, relative to the largest magnitude.
_TOLERANCE = {"torch.float32": 1e-4, "torch.float16": 1e-2, "torch.bfloat16": 4e-2}


def check_causal(
    model: nn.Module, hookpoints: Sequence[HookpointSpec], processor: ProcessorSpec | None = None
) -> None:
    """Check that a model which the plan calls causal does not attend to later positions.

    Two sequences that differ in their last token go through the model; the activations at all other
    positions must agree. Cutting sequences at shard borders and padding without a mask rely on it.

    Parameters
    ----------
    model : torch.nn.Module
        The loaded model.
    hookpoints : sequence of HookpointSpec
        The hookpoints whose activations are compared.
    processor : ProcessorSpec, optional
        The image processor of a model that reads images in text: each sequence then has an image in
        its middle.

    Raises
    ------
    ModelError
        The activations differ.
    """
    import torch

    from actlas.pipeline.model.device import input_device

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary = embedding.num_embeddings
    if vocabulary < 2:
        return
    tokens = torch.arange(N_POSITIONS, device=input_device(model)) % vocabulary
    pair = tokens.repeat(2, 1)
    given: dict[str, Any] = {}
    if processor is not None:
        patches = pair.new_full((2, math.prod(processor.grid)), processor.image_token_id or 0)
        pair = torch.cat([pair, patches, pair], dim=1)
        blank = torch.from_numpy(blank_pixels(build_processor(processor), 2))
        given["pixel_values"] = blank.to(pair.device, embedding.weight.dtype)
    pair[1, -1] = (pair[1, -1] + 1) % vocabulary
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        activations = capture(pair, **given)
    for name, rows in activations.items():
        if reason := difference(rows[0, :-1], rows[1, :-1]):
            raise ModelError(
                f"The plan says that {type(model).__name__} is causal, but at {name} earlier rows "
                f"change by {reason} with the last token. Correct is_decoder or is_causal in its "
                "config.json, and plan again.",
                field="model.causal",
                hookpoint=name,
            )


def difference(
    found: Float[Tensor, "positions units"],
    truth: Float[Tensor, "positions units"],
    *,
    by_row: bool = False,
) -> str | None:
    """Return the difference of activations in words, or None where it is rounding only.

    Parameters
    ----------
    found, truth : Tensor, shape [position, unit]
        Activations to compare. They differ where only one of them is finite.
    by_row : bool
        Whether the difference of each row is relative to the row's own largest magnitude, so that
        one row of large norm hides no other; if not, to the largest of all rows.
    """
    dtype, found, truth = str(truth.dtype), found.float(), truth.float()
    finite = truth.isfinite()
    if not bool((finite == found.isfinite()).all()):
        return "NaN or infinity"
    apart = (found - truth).abs().nan_to_num(0.0)
    largest = truth.abs().nan_to_num(0.0, posinf=0.0)
    largest = largest.amax(-1) if by_row else largest.max()
    share = apart.amax(-1) / largest.clamp(min=1e-30)
    if bool((share <= _TOLERANCE.get(dtype, 4e-2)).all()):
        return None
    return f"{float(apart.max()):.3g} (of at most {float(truth.abs().max()):.3g})"


def probe_tokens(model: nn.Module, n: int) -> Int64[Tensor, " tokens"] | None:
    """Return tokens to test a model with, or None where its vocabulary is too small.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    n : int
        Number of tokens. Consecutive ones differ.
    """
    import torch

    from actlas.pipeline.model.device import input_device

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary = embedding.num_embeddings
    if vocabulary < MIN_VOCABULARY:
        return None
    tokens: torch.Tensor = (1 + 7 * torch.arange(n, device=input_device(model))) % vocabulary
    return tokens
