"""How fast a model goes here: a forward pass of the same shapes with empty weights, timed."""

from __future__ import annotations

import copy
import time
from typing import NamedTuple

import torch

from actlas.pipeline.device import resolve_device
from actlas.pipeline.model import ModelDescription
from actlas.pipeline.vision import blank_pixels

MAX_PARAMETERS = 200_000_000
"""A larger model is not built for this: its speed is reckoned from a product of matrices."""

_BATCH_TOKENS = 1024
_PASSES = 3
_ENOUGH_S = 1.0
_MATRIX = 1024


class Speed(NamedTuple):
    """Tokens per second, None where unknown; and how that was found, or why it was not."""

    tokens_per_s: float | None
    how: str


def forward_speed(model: ModelDescription, max_length: int) -> Speed:
    """Measure a forward pass of the base model, without a vocabulary projection.

    Parameters
    ----------
    model : ModelDescription
    max_length : int
        Tokens of each sequence of the batch.
    """
    device = resolve_device("auto")
    dtype: torch.dtype = getattr(torch, model.spec.compute_dtype)
    if model.n_parameters > MAX_PARAMETERS:
        seconds = _matrix_product_seconds(device, dtype)
        flops = 2 * _MATRIX**3 / seconds
        rate = flops / (2 * model.n_parameters)
        return Speed(rate, f"at best: from {model.n_parameters:,} parameters and a matrix product")
    try:
        rate = _tokens_per_s(model, max_length, device, dtype)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return Speed(None, f"a forward pass with empty weights failed: {reason}")
    return Speed(rate, f"a forward pass with empty weights, timed here on {device}")


def _tokens_per_s(
    model: ModelDescription, max_length: int, device: str, dtype: torch.dtype
) -> float:
    empty = copy.deepcopy(model.skeleton).to_empty(device=device).to(dtype)
    for tensor in (*empty.parameters(), *empty.buffers()):
        tensor.data.zero_()  # What lies in memory may be slow to compute with.
    body = getattr(empty, "base_model", empty)
    n_sequences = max(1, _BATCH_TOKENS // max_length)
    name, batch = _blank(model, n_sequences, max_length, device, dtype)
    seconds: list[float] = []
    with torch.inference_mode():
        # The first pass of all also allocates and compiles.
        body(**{name: batch[:1] if name == "pixel_values" else batch[:1, :8]})
        while len(seconds) < _PASSES and sum(seconds) < _ENOUGH_S:
            start = time.perf_counter()
            body(**{name: batch})
            _wait(device)
            seconds.append(time.perf_counter() - start)
    return n_sequences * max_length / min(seconds)


def _blank(
    model: ModelDescription, n_sequences: int, max_length: int, device: str, dtype: torch.dtype
) -> tuple[str, torch.Tensor]:
    """Return a batch of nothing, and what the model calls it."""
    if model.spec.modality == "image":
        pixels = torch.from_numpy(blank_pixels(model.processor, n_sequences))
        return "pixel_values", pixels.to(device, dtype)
    return "input_ids", torch.zeros(n_sequences, max_length, dtype=torch.long, device=device)


def _matrix_product_seconds(device: str, dtype: torch.dtype) -> float:
    a = torch.zeros(_MATRIX, _MATRIX, dtype=dtype, device=device)
    seconds = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        a @ a
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
