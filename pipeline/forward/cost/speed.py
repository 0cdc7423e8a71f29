"""Speed of forward passes on this machine: with empty weights for estimates, bare for reports."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

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

MIN_PASSES = 3
"""Timed passes after which half of the time is enough: batches differ in length and in speed."""

_BATCH_TOKENS = 1024

_MAX_SECONDS = 1.0

_MATRIX = 1024

_Given = TypeVar("_Given")


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


def forward_speed(model: ModelDescription, max_length: int) -> Speed:
    """Measure a forward pass of the base model, without its weights and the vocabulary projection.

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
        matrix = torch.zeros(_MATRIX, _MATRIX, dtype=dtype, device=device)
        seconds = _time(lambda a: a @ a, [matrix] * (1 + MIN_PASSES), device, _MAX_SECONDS)
        rate = _MATRIX**3 / min(seconds) / model.n_parameters  # 2 operations per element, weight
        return Speed(rate, f"at best: from {model.n_parameters:,} parameters and a matrix product")
    try:
        rate = _tokens_per_s(model, max_length, device, dtype)
    except Exception as error:  # noqa: BLE001 - what a model raises without weights is its own
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
    if model.spec.modality == "image":
        name, batch = "pixel_values", torch.from_numpy(blank_pixels(model.processor, n_sequences))
        batch = batch.to(device, dtype)
        short = batch[:1]
    else:
        name, batch = "input_ids", torch.zeros(n_sequences, max_length, dtype=torch.long).to(device)
        short = batch[:1, :8]
    batches = [short, *[batch] * MIN_PASSES]
    seconds = _time(lambda given: body(**{name: given}), batches, device, _MAX_SECONDS)
    return n_sequences * max_length / min(seconds)


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
        Seconds after which no further batch starts; after MIN_PASSES batches half of them.
    """
    chosen = [batches[i] for i in _spread(len(batches))]
    with Capture(model, hookpoints) as capture:

        def run(given: tuple[Batch, Inputs]) -> None:
            arrays, shape = to_device(given[1].arrays, device), given[1].shape
            capture(**arrays, shape=shape, read=lambda _name, _tensor: None)

        seconds = _time(run, inputs([chosen[0], *chosen]), device, max_seconds)
    n_tokens = sum(batch.n_input_tokens for batch in chosen[: len(seconds)])
    return Rate(n_tokens, sum(seconds))


def _time(
    run: Callable[[_Given], object], batches: Iterable[_Given], device: str, max_seconds: float
) -> list[float]:
    """Return the seconds of each pass but the first, which also allocates and compiles.

    No further pass starts after ``max_seconds``, or after half of it and MIN_PASSES passes.
    """
    seconds: list[float] = []
    with quiet(), torch.inference_mode():
        for n, batch in enumerate(batches):
            began = time.perf_counter()
            run(batch)
            synchronize(device)
            if n > 0:
                seconds.append(time.perf_counter() - began)
            enough = max_seconds / 2 if len(seconds) >= MIN_PASSES else max_seconds
            if sum(seconds) >= enough:
                break
    return seconds


def _spread(n: int) -> list[int]:
    """Return 0 .. n - 1 in an order whose every prefix is spread evenly over the range.

    >>> _spread(5)
    [0, 4, 2, 1, 3]
    """
    step = 1 << max(0, (n - 1).bit_length() - 1)
    order: list[int] = []
    while step:
        order += range(0, n, step)
        step //= 2
    return list(dict.fromkeys(order))
