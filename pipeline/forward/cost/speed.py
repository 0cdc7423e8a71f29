"""Speed of forward passes on this machine: with empty weights for estimates, bare for reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from actlas.pipeline.forward.batching import Batch, Inputs
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.cost.lengths import MIN_LENGTH, Fit, fit_range, time_lengths
from actlas.pipeline.forward.hooks import accepted_inputs
from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.reached import unreached
from actlas.pipeline.model.config import build_skeleton, quiet
from actlas.pipeline.model.describe import ModelDescription, load_config
from actlas.pipeline.model.device import (
    default_tokens_per_batch,
    resolve_device,
    synchronize,
    to_device,
)
from actlas.pipeline.model.vision import blank_pixels
from actlas.store.errors import HookpointError
from actlas.store.format.schema import HookpointSpec

MAX_SECONDS = 0.8
"""Seconds of passes for an estimate; building a model for them takes some tenths more."""

TIMED_PARAMETERS = 4_000_000
"""Parameters of the blocks that are timed for an estimate, at least one block: the others are taken
to be as fast."""

BESIDE = 1.3
"""How much longer a run may take than its forward passes: writing, statistics, loading."""

MIN_PASSES = 3
"""Timed passes after which half of the time is enough: batches differ in length and in speed."""

_Given = TypeVar("_Given")


class Speed(NamedTuple):
    """An estimated speed, as a range.

    Attributes
    ----------
    fits : tuple of Fit, or None
        Seconds of forward passes: at best, and at worst with all that a run does beside them.
        None where they are unknown.
    how : str
        How the speed was measured, or why it is unknown.
    """

    fits: tuple[Fit, Fit] | None
    how: str

    def seconds(self, n_tokens: float, n_pairs: float) -> tuple[float, float] | None:
        """Return the range of seconds for a run, or None.

        Parameters
        ----------
        n_tokens, n_pairs : float
            Tokens that the model reads, and the sum of the squared lengths of its sequences.
        """
        if self.fits is None:
            return None
        low, high = sorted(fit.seconds(n_tokens, n_pairs) for fit in self.fits)
        return low, high


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


def forward_speed(
    model: ModelDescription,
    hookpoints: Sequence[HookpointSpec],
    longest: int,
    *,
    with_loss: bool = False,
    max_seconds: float = MAX_SECONDS,
) -> Speed:
    """Time forward passes without the model's weights, and fit seconds to sequence lengths.

    The model has the attention implementation that a run uses, and zeros as weights, which take no
    memory on a CPU. Of a stack of like blocks only the first ones run.

    Parameters
    ----------
    model : ModelDescription
        The model; its weights are not read.
    hookpoints : sequence of HookpointSpec
        The hookpoints of the run, whose deepest ends a pass.
    longest : int
        Tokens of the longest sequence.
    with_loss : bool
        Whether a run computes the whole model, with its projection onto the vocabulary.
    max_seconds : float
        Seconds of passes; see :func:`~actlas.pipeline.forward.cost.lengths.time_lengths`.
    """
    device = resolve_device("auto")
    try:
        part = _Part.of(model, hookpoints, with_loss)
        run = _passes(model, part, device)
        most = default_tokens_per_batch(device)
        equal = model.spec.modality == "image"  # sequences of one length: pairs need no part
        shortest = longest if equal else MIN_LENGTH
        pair_share = 0.0 if equal else part.pair_share
        with quiet(), torch.inference_mode():
            taken = time_lengths(
                run, longest, most, max_seconds, pair_share=pair_share, shortest=shortest
            )
    except Exception as error:  # noqa: BLE001 - what a model raises without weights is its own
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return Speed(None, f"a forward pass with empty weights failed: {reason}")
    low, high = fit_range(taken, pair_share)
    ends = sorted(taken)
    of = "the model" if part.whole else f"{part.n_timed} of {part.n_reached} blocks"
    lengths = f"{ends[0]:,}" if len(ends) == 1 else f"{ends[0]:,} to {ends[-1]:,}"
    beyond = "; longer ones are extrapolated" if ends[-1] < longest else ""
    return Speed(
        (_scaled(low, part.scale), _scaled(high, BESIDE * part.scale)),
        f"{of} timed here on {device} with empty weights, in sequences of {lengths} tokens{beyond}",
    )


def _scaled(fit: Fit, factor: float) -> Fit:
    return Fit(fit.token_s * factor, fit.pair_s * factor)


class _EndedError(BaseException):
    """Raised inside a pass to end it; no ``Exception``, which a model might catch."""


class _Part(NamedTuple):
    """The part of a model that is timed.

    ``last`` is where a pass ends, if before the model's own end; ``scale`` are the seconds of a
    run's pass over those of the part; ``pair_share`` are the operations of attention for a pair of
    tokens over those of all matrices for a token.
    """

    last: HookpointSpec | None
    left_out: tuple[str, ...]
    n_timed: int = 0
    n_reached: int = 0
    scale: float = 1.0
    pair_share: float = 0.0

    @property
    def whole(self) -> bool:
        return self.n_timed == self.n_reached

    @classmethod
    def of(
        cls, model: ModelDescription, hookpoints: Sequence[HookpointSpec], with_loss: bool
    ) -> _Part:
        skeleton = model.skeleton
        mixed = model.spec.modality == "mixed"
        left_out = () if with_loss else unreached(skeleton, hookpoints, mixed=mixed)
        whole = cls(None if with_loss else hookpoints[-1], left_out)
        try:
            stack = find_blocks(skeleton)
        except HookpointError:
            return whole
        blocks: Any = skeleton.get_submodule(stack)
        sizes = [
            sum(parameter.numel() for parameter in block.parameters())
            for i, block in enumerate(blocks)
            if f"{stack}.{i}" not in left_out
        ]
        if not sizes or not min(sizes) or max(sizes) > 1.5 * min(sizes):
            return whole
        n_timed = max(1, min(len(sizes), TIMED_PARAMETERS // sizes[0]))
        scale, head = sum(sizes) / sum(sizes[:n_timed]), skeleton.get_output_embeddings()  # type: ignore[operator]
        if with_loss and head is not None:
            scale *= 1 + sum(parameter.numel() for parameter in head.parameters()) / sum(sizes)
        last = HookpointSpec(
            name="timed",
            module=f"{stack}.{n_timed - 1}",
            side="output",
            width=model.spec.d_model,
        )
        left_out = tuple(f"{stack}.{i}" for i in range(n_timed, len(blocks)))
        share = 2 * model.spec.d_model / (sum(sizes) / len(sizes))
        return cls(last, left_out, n_timed, len(sizes), scale, share)


def _passes(
    model: ModelDescription, part: _Part, device: str
) -> Callable[[int, int], float | None]:
    """Return a function that runs one pass of so many sequences of a length over the part.

    On a CPU the function returns the processor time of each thread of torch.
    """
    spec = model.spec
    dtype: torch.dtype = getattr(torch, spec.compute_dtype)
    config = load_config(model.folder, trust_remote_code=spec.trust_remote_code)
    empty = build_skeleton(
        config, spec.architecture, trust_remote_code=spec.trust_remote_code, traceable=False
    )

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        if device != "cpu":
            return torch.zeros(tensor.shape, dtype=kind, device=device)
        n_bytes = tensor.numel() * kind.itemsize  # numpy's zeros take no memory until written to
        return torch.from_numpy(np.zeros(n_bytes, np.uint8)).view(kind).reshape(tensor.shape)

    for path, module in empty.named_modules():
        if not any(path == out or path.startswith(f"{out}.") for out in part.left_out):
            module._apply(zeros, recurse=False)

    def end(*_: object) -> None:
        raise _EndedError

    if part.last is not None:
        module = empty.get_submodule(part.last.module)
        before = part.last.side == "input"
        (module.register_forward_pre_hook if before else module.register_forward_hook)(end)

    def run(n_sequences: int, length: int) -> float | None:
        if spec.modality == "image":
            pixels = torch.from_numpy(blank_pixels(model.processor, n_sequences))
            given = {"pixel_values": pixels.to(device, dtype)}
        else:
            ids = torch.zeros(n_sequences, length, dtype=torch.long)
            given = {"input_ids": ids.to(device)}
        began = time.process_time()
        with suppress(_EndedError):
            empty(**given, **accepted_inputs(empty, {"use_cache": False}))
        synchronize(device)
        spent = time.process_time() - began
        return spent / torch.get_num_threads() if device == "cpu" else None

    return run


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
