"""Checks of a loaded model: causality, and the comparison of activations up to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.model.vision import blank_pixels, build_processor
from actlas.store.errors import ModelError
from actlas.store.format.schema import HookpointSpec, ProcessorSpec

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from numpy.typing import NDArray
    from torch import Tensor, nn

N_POSITIONS = 6

_SPECIAL = ("_token_id", "_token_index")

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

    tokens = torch.from_numpy(probe_ids(model, N_POSITIONS + 1)).to(input_device(model))
    if tokens[-1] == tokens[-2]:
        return  # a vocabulary of one
    pair = tokens[:-1].repeat(2, 1)
    given: dict[str, Any] = {}
    if processor is not None:
        patches = pair.new_full((2, math.prod(processor.grid)), processor.image_token_id or 0)
        pair = torch.cat([pair, patches, pair], dim=1)
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        blank = torch.from_numpy(blank_pixels(build_processor(processor), 2))
        given["pixel_values"] = blank.to(pair.device, dtype)
    pair[1, -1] = tokens[-1]
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
    rare: float = 0.0,
) -> str | None:
    """Return the difference of activations in words, or None where it is rounding only.

    Parameters
    ----------
    found, truth : Tensor, shape [position, unit]
        Activations to compare. They differ where only one of them is finite.
    by_row : bool
        Whether the difference of each row is relative to the row's own largest magnitude, so that
        one row of large norm hides no other; if not, to the largest of all rows.
    rare : float
        Share of the rows that may differ by more, from 0 to 1.
    """
    dtype, found, truth = str(truth.dtype), found.float(), truth.float()
    finite = truth.isfinite()
    if not bool((finite == found.isfinite()).all()):
        return "NaN or infinity"
    apart = (found - truth).abs().nan_to_num(0.0)
    largest = truth.abs().nan_to_num(0.0, posinf=0.0)
    largest = largest.amax(-1) if by_row else largest.max()
    share = apart.amax(-1) / largest.clamp(min=1e-30)
    if float((share > _TOLERANCE.get(dtype, 4e-2)).float().mean()) <= rare:
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

    if vocabulary_size(model) < MIN_VOCABULARY:
        return None
    return torch.from_numpy(probe_ids(model, n)).to(input_device(model))


def probe_ids(model: nn.Module, n: int) -> Int64[NDArray[np.int64], " tokens"]:
    """Return tokens to test a model with: none that its configuration gives a meaning.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    n : int
        Number of tokens. Consecutive ones differ, except in a vocabulary of one.
    """
    config: Any = model.config
    stated = {**config.to_dict(), **config.get_text_config().to_dict()}
    special: set[Any] = set()
    for name, value in stated.items():
        if name.endswith(_SPECIAL):
            special.update(value if isinstance(value, (list, tuple)) else [value])
    size = vocabulary_size(model)
    plain = [token for token in range(min(size, n + 64)) if token not in special] or [0]
    plain = plain[: len(plain) - (len(plain) % 7 == 0)]  # so that steps of 7 come to all of them
    return np.asarray(plain, np.int64)[(1 + 7 * np.arange(n)) % len(plain)]


def vocabulary_size(model: nn.Module) -> int:
    """Return the number of tokens that a model embeds.

    Parameters
    ----------
    model : torch.nn.Module
        A model of text.
    """
    from actlas.pipeline.model.device import input_embedding

    config: Any = model.config
    stated = getattr(config.get_text_config(), "vocab_size", None)
    return int(getattr(input_embedding(model), "num_embeddings", None) or stated or 256)
