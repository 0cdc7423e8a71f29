"""Speed of forward passes on this machine: with empty weights for estimates, bare for reports."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from actlas.pipeline.forward.batching import Batch, Inputs
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.model.config import quiet
from actlas.pipeline.model.describe import ModelDescription
from actlas.pipeline.model.device import resolve_device, synchronize, to_device
from actlas.pipeline.model.vision import blank_pixels
from actlas.store.format.schema import HookpointSpec

MAX_PARAMETERS = 200_000_000
"""Largest model that is built with empty weights; of larger ones the speed is extrapolated from a
matrix product."""

_BATCH_TOKENS = 1024

_PASSES = 3

_ENOUGH_S = 1.0

_MATRIX = 1024


class Speed(NamedTuple):
    """An estimated speed.

    Attributes
    ----------
    tokens_per_s : float or None
        Tokens per second; None where unknown.
    how : str
        How the speed was measured, or why it is unknown.
    """

    tokens_per_s: float | None
    how: str


def forward_speed(model: ModelDescription, max_length: int) -> Speed:
    """Measure a forward pass of the base model, without the projection onto the vocabulary.

    Parameters
    ----------
    model : ModelDescription
        The model; its weights are not read.
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
        tensor.data.zero_()  # arbitrary bits, such as subnormal numbers, may be slow
    body = getattr(empty, "base_model", empty)
    n_sequences = max(1, _BATCH_TOKENS // max_length)
    name, batch = _blank(model, n_sequences, max_length, device, dtype)
    seconds: list[float] = []
    with torch.inference_mode():
        # The first pass also allocates and compiles.
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
    """Return a blank batch, and the name of the model's input."""
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


MIN_BATCHES = 3
"""Batches of a measurement at least, since batches differ in length and so in speed."""


class Rate(NamedTuple):
    """A measured speed.

    Attributes
    ----------
    n_tokens : int
        Tokens that went through the model, without padding.
    seconds : float
        Duration of the passes.
    """

    n_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second."""
        return self.n_tokens / self.seconds if self.seconds else 0.0


def bare_forward_rate(
    model: nn.Module,
    hookpoints: Sequence[HookpointSpec],
    batches: Sequence[Batch],
    inputs: Callable[[Sequence[Batch]], Iterable[tuple[Batch, Inputs]]],
    device: str,
    max_seconds: float = 2.0,
) -> Rate:
    """Measure the forward pass as deep as the deepest hookpoint, without gathering rows.

    Parameters
    ----------
    model : torch.nn.Module
        The loaded model.
    hookpoints : sequence of HookpointSpec
        The hookpoints that a run would read.
    batches : sequence of Batch
        The batches of a run, sorted by length; some are chosen evenly over all.
    inputs : callable
        Yields batches with their inputs.
    device : str
        The device of the model's input.
    max_seconds : float
        No further batch starts after this time, or after half of it with at least MIN_BATCHES
        batches. The first batch runs once before, not timed, since the first pass is slow.
    """
    n_tokens, seconds = 0, 0.0
    chosen = [batches[i] for i in _spread(len(batches))]
    with quiet(), torch.inference_mode(), Capture(model, hookpoints) as capture:
        for n, (batch, tokens) in enumerate(inputs([chosen[0], *chosen])):
            began = time.perf_counter()
            given = to_device(tokens.arrays, device)
            capture(**given, shape=tokens.shape, read=lambda _name, _tensor: None)
            synchronize(device)
            if n > 0:
                n_tokens += batch.n_input_tokens
                seconds += time.perf_counter() - began
            if seconds >= (max_seconds / 2 if n >= MIN_BATCHES else max_seconds):
                break
    return Rate(n_tokens, seconds)


def _spread(n: int) -> list[int]:
    """Return 0 .. n - 1 in an order whose every prefix is spread evenly over the range.

    Examples
    --------
    >>> _spread(5)
    [0, 4, 2, 1, 3]
    """
    step = 1 << max(0, (n - 1).bit_length() - 1)
    order: list[int] = []
    while step:
        order += range(0, n, step)
        step //= 2
    return list(dict.fromkeys(order))
