"""Estimates of time from a few short passes: what they cost, what they find, how sure they are."""

from __future__ import annotations

import pytest
import torch

from actlas.pipeline.forward.cost import speed
from actlas.pipeline.forward.cost.lengths import Fit, Timed, fit_range, time_lengths
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model.describe import describe_model
from actlas.pipeline.options import PlanOptions


class Machine:
    """A machine whose passes take exactly what a fit says, times its load."""

    def __init__(self, fit: Fit, load: float = 1.0) -> None:
        self.fit, self.load, self.now = fit, load, 0.0
        self.passes: list[tuple[int, int]] = []

    def run(self, n_sequences: int, length: int) -> float:
        quiet_s = self.fit.seconds(n_sequences * length, n_sequences * length**2)
        self.now += quiet_s * self.load
        self.passes.append((n_sequences, length))
        return quiet_s

    def clock(self) -> float:
        return self.now

    def timed(self, longest: int, max_seconds: float = 2.0) -> dict[int, list[Timed]]:
        return time_lengths(self.run, longest, 2048, max_seconds, clock=self.clock)


FAST, SMOL, HUGE = Fit(1e-5, 1e-8), Fit(1e-4, 6e-8), Fit(0.05, 1e-6)


@pytest.mark.parametrize("fit", [FAST, SMOL, HUGE])
@pytest.mark.parametrize("longest", [5, 100, 512, 8192, 131_072])
def test_the_budget_holds_but_for_two_small_passes(fit: Fit, longest: int) -> None:
    machine = Machine(fit)
    assert machine.timed(longest)
    assert machine.now < 2.0 + 2 * fit.seconds(64, 64**2)
    assert max(length for _, length in machine.passes) <= longest
    assert all(n * length <= 2048 for n, length in machine.passes if n > 1)


@pytest.mark.parametrize("fit", [FAST, SMOL])
def test_long_sequences_are_extrapolated_from_short_ones(fit: Fit) -> None:
    for load in (1.0, 3.0):
        low, high = fit_range(Machine(fit, load).timed(8192), 0.0)
        wanted = fit.seconds(8192, 8192**2)
        assert low.seconds(8192, 8192**2) == pytest.approx(wanted, rel=0.01)
        assert high.seconds(8192, 8192**2) == pytest.approx(load * wanted, rel=0.01)


def test_a_single_length_leaves_the_quadratic_part_to_arithmetic() -> None:
    taken = {64: [Timed(0.01, 0.02)]}
    low, high = fit_range(taken, 1e-3)
    assert low == Fit(0.01, 0.0)
    assert high.seconds(64, 64**2) == pytest.approx(64 * 0.02)
    assert high.pair_s == pytest.approx(1e-3 * high.token_s)


def test_noise_gives_no_negative_part() -> None:
    for seconds in ([3.0, 2.0, 1.0], [0.01, 1.0, 40.0]):
        taken = {2 ** (6 + i): [Timed(each, each)] for i, each in enumerate(seconds)}
        low, _ = fit_range(taken, 0.0)
        assert min(low) >= 0 and max(low) > 0


def test_the_attention_that_will_run_is_timed_on_the_first_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.llama import modeling_llama

    model = describe_model(PlanOptions(model="builtin:actlas-6m", corpus="builtin:python-docs"))
    hookpoints = resolve(model.skeleton, ["resid_post.3"])
    seen: list[tuple[int | None, str]] = []
    forward = modeling_llama.LlamaAttention.forward

    def watched(self: modeling_llama.LlamaAttention, *args: object, **named: object) -> object:
        if self.o_proj.weight.device.type != "meta":  # where the model is only traced
            seen.append((self.layer_idx, self.config._attn_implementation))
        return forward(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", watched)
    found = speed.forward_speed(model, hookpoints, 16, max_seconds=0.05)
    assert found.fits is not None and set(seen) == {(i, "sdpa") for i in range(4)}
    seen.clear()
    block = model.skeleton.get_submodule("model.layers.0")
    n_parameters = sum(parameter.numel() for parameter in block.parameters())
    monkeypatch.setattr(speed, "TIMED_PARAMETERS", 2 * n_parameters)
    found = speed.forward_speed(model, hookpoints, 16, max_seconds=0.05)
    assert {layer for layer, _ in seen} == {0, 1}
    assert found.how.startswith("2 of 4 blocks timed here on ")
    assert not torch.is_inference_mode_enabled()
