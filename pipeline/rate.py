"""How fast a model goes when nothing is read out of it: what extraction is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from actlas.pipeline.architecture import quiet
from actlas.pipeline.batching import Batch, Inputs
from actlas.pipeline.capture import Capture
from actlas.pipeline.device import synchronize, to_device
from actlas.store.schema import HookpointSpec

MIN_BATCHES = 3
"""Batches differ in length and so in speed: one or two stand for none."""


class Rate(NamedTuple):
    """Tokens that went through the model, padding not counted, and the seconds it took."""

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
    """Measure the forward pass as deep as the deepest hookpoint, with nothing gathered.

    Parameters
    ----------
    batches : sequence of Batch
        Taken evenly from first to last, since they are sorted by length.
    inputs : callable
        Gives batches their tokens.
    device : str
    max_seconds : float
        After this long no further batch is begun; nor after half of it, once there were three
        batches. The first batch runs once more before, since the first pass of all is slow.
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
                n_tokens += batch.n_fed
                seconds += time.perf_counter() - began
            if seconds >= (max_seconds / 2 if n >= MIN_BATCHES else max_seconds):
                break
    return Rate(n_tokens, seconds)


def _spread(n: int) -> list[int]:
    """Return 0 .. n - 1 so that every beginning of the list is spread evenly over the range.

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
