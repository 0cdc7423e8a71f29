"""Batch invariance: whether rows depend on the sequences that share their forward pass.

An attention mask hides padding from attention alone. A convolution over positions, a Fourier
transform, a mean over a sequence or experts of limited capacity read it all the same, some models
take no mask, and some draw random numbers. So a loaded model is tested: short and long sequences
alone, then beside each other, through the code that batches a run. Usage::

    samples = samples_for(model, plan.model, max_length, tokens_per_batch, pad_id=pad_id)
    batching, why = decide_batching(model, hookpoints, samples, device)
    batches = pack(sequences, tokens_per_batch, batching=batching)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from actlas.pipeline.forward.batching import Batching
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.checks.samples import Samples
from actlas.pipeline.forward.invariants import difference
from actlas.pipeline.model.device import to_device
from actlas.store.errors import HookpointError, ModelError
from actlas.store.format.schema import HookpointSpec

RARE = 0.35
"""Share of a sequence's rows that may differ by more than rounding in 16 bits: a rounded score may
choose another expert for single tokens. In float32 no row may."""

# Exceptions of models that cannot run an input.
_FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError)


def decide_batching(
    model: nn.Module, hookpoints: Sequence[HookpointSpec], samples: Samples, device: str
) -> tuple[Batching, str]:
    """Decide which sequences may share a forward pass, and return the reason.

    Parameters
    ----------
    model : torch.nn.Module
        The loaded model.
    hookpoints : sequence of HookpointSpec
        The hookpoints whose rows are compared; passes end after the deepest of them.
    samples : Samples
        The sequences to test it with.
    device : str
        The device of the model's input.

    Returns
    -------
    {"padded", "equal", "single"}
        Any sequences, those of equal length, or none, for which rows equal those of each sequence
        alone up to rounding.
    str
        The reason, for the record.

    Raises
    ------
    ModelError
        The model runs none of the sequences, or gives other rows for the same sequence when it runs
        again.
    HookpointError
        A hookpoint's tensor has another shape than the hookpoint was resolved with.
    """
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        trial = _Trial(capture, samples, device)
        trial.run_alone()
        together = trial.obstacle(samples.equal)
        if together is not None:
            return "single", together
        padded = trial.obstacle(samples.padded)
        if padded is None:
            return "padded", "seen on this model: each row is that of its sequence alone"
        together = trial.obstacle(samples.long)
    return ("equal", padded) if together is None else ("single", together)


class _Trial:
    """The forward passes of a model over samples."""

    def __init__(self, capture: Capture, samples: Samples, device: str) -> None:
        self.capture, self.samples, self.device = capture, samples, device
        self.alone: dict[int, dict[str, torch.Tensor]] = {}
        self.failed: dict[int, Exception] = {}

    def run_alone(self) -> None:
        """Run each sequence alone, the longest last, then the shortest and the longest again."""
        lengths = self.samples.lengths
        numbers = {number for batch in self.samples.padded + self.samples.equal for number in batch}
        for number in sorted(numbers, key=lengths.__getitem__):
            self._ensure_alone(number)
        name = type(self.capture.model).__name__
        if not self.alone:
            reason = _first_words(self.failed[min(numbers)])
            raise ModelError(
                f"{name} runs no sequence of {_listed(sorted(lengths))} positions alone "
                f"({reason}). Expected a model that runs on what its own tokenizer or image "
                "processor gives.",
                field="architecture",
            )
        for number in dict.fromkeys((next(iter(self.alone)), next(reversed(self.alone)))):
            [again] = self._run([number])
            if found := self._difference(number, again):
                raise ModelError(
                    f"{name} gives one sequence other rows when it runs again: at {found[0]} they "
                    f"change by {found[1]}. Rows must be reproducible: fix the seed of the model's "
                    "random numbers in its config.json, or take another model.",
                    field="architecture",
                    hookpoint=found[0],
                )

    def _ensure_alone(self, number: int) -> bool:
        """Run a sequence alone, unless that was tried; some models run none of a few tokens."""
        if number not in self.alone and number not in self.failed:
            try:
                [self.alone[number]] = self._run([number])
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                self.failed[number] = error
        return number in self.alone

    def obstacle(self, batches: Iterable[Sequence[int]]) -> str | None:
        """Return how rows in these batches differ from those of each sequence alone, if they do."""
        for batch in batches:
            numbers = [number for number in batch if self._ensure_alone(number)]
            if len(numbers) < 2:
                continue
            lengths = [self.samples.lengths[number] for number in numbers]
            try:
                found = self._run(numbers)
            except torch.OutOfMemoryError:
                raise
            except (*_FAILURES, HookpointError) as error:
                return f"sequences of {_listed(lengths)} positions fail together: " + _first_words(
                    error
                )
            for place, (number, rows) in enumerate(zip(numbers, found, strict=True)):
                if differs := self._difference(number, rows):
                    others = [*lengths[:place], *lengths[place + 1 :]]
                    return (
                        f"at {differs[0]} the rows of {lengths[place]} positions change by "
                        f"{differs[1]} beside a sequence of {_listed(others)}"
                    )
        return None

    def _run(self, numbers: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        inputs = self.samples.make(numbers)
        given: dict[str, Any] = to_device(inputs.arrays, self.device)
        found = self.capture(**given, shape=inputs.shape)
        return [
            {name: rows[i, : self.samples.lengths[number]] for name, rows in found.items()}
            for i, number in enumerate(numbers)
        ]

    def _difference(self, number: int, found: dict[str, torch.Tensor]) -> tuple[str, str] | None:
        for name, truth in self.alone[number].items():
            rare = 0.0 if truth.dtype == torch.float32 else RARE
            if reason := difference(found[name], truth, by_row=True, rare=rare):
                return name, reason
        return None


def _listed(lengths: Sequence[int]) -> str:
    return " and ".join(map(str, dict.fromkeys(lengths)))


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
