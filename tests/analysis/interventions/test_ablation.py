"""Ablation against hooks, loops and losses written by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.masks import mask_for
from support.models import VOCABULARY, build, save

import actlas
from actlas.analysis.figures import PNG
from actlas.analysis.interventions.ablation import ablated
from actlas.analysis.interventions.ablation_plot import draw
from actlas.analysis.interventions.ablation_result import Ablation
from actlas.analysis.interventions.conditions import condition_of
from actlas.analysis.interventions.loss import Losses, Window, losses
from actlas.analysis.localizer.masks import Mask
from actlas.pipeline.forward.generate import generate
from actlas.store.errors import ConfigError, MaskError, ModelError
from actlas.store.format.schema import HookpointSpec

UNITS: dict[str, dict[str, tuple[int, ...]]] = {
    "llama": {"resid_post.0": (1, 5), "resid_post.2": (0, 31), "mlp_out.1": (7,)},
    "gpt2": {"resid_post.0": (3,), "resid_post.1": (0, 30, 31), "mlp_out.2": (2, 9)},
}


def _module(hookpoint: str, name: str) -> str:
    """The module that a hookpoint is the output of."""
    kind, layer = hookpoint.split(".")
    return f"{BLOCKS[name]}.{layer}" + (".mlp" if kind == "mlp_out" else "")


BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h"}


@functools.cache
def model_and_mask(name: str) -> tuple[Any, Mask]:
    with tempfile.TemporaryDirectory() as folder:
        return build(name), mask_for(save(name, Path(folder)), {})


def ids(n: int = 12, rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(3, VOCABULARY, (rows, n)))


def by_hand(model: Any, places: dict[str, list[int]], tokens: torch.Tensor) -> torch.Tensor:
    """The logits with some units of some modules' outputs multiplied by zero."""
    handles = []
    for path, units in places.items():
        keep = torch.ones(32, dtype=next(model.parameters()).dtype)
        keep[units] = 0

        def hook(_module: Any, _args: Any, output: Any, keep: torch.Tensor = keep) -> Any:
            if isinstance(output, tuple):
                return (output[0] * keep, *output[1:])
            return output * keep

        handles.append(model.get_submodule(path).register_forward_hook(hook))
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(tokens).logits
            return logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_a_hook_written_by_hand(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    mask = mask_for(save(name, tmp_path / "model"), UNITS[name])
    model = build(name).to(dtype)
    places = {_module(hookpoint, name): list(units) for hookpoint, units in UNITS[name].items()}
    intact = by_hand(model, {}, ids())
    expected = by_hand(model, places, ids())
    with ablated(model, mask), torch.no_grad():
        found = model(ids()).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, intact)
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, intact), "every hook is off again"


def test_the_input_of_a_block(tmp_path: Path) -> None:
    mask = mask_for(save("llama", tmp_path / "model"), {"resid_pre.1": (4, 9)})
    model = build("llama")
    expected = by_hand(model, {"model.layers.0": [4, 9]}, ids())
    with ablated(model, mask), torch.no_grad():
        assert torch.equal(model(ids()).logits, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_empty_mask_changes_no_bit(tmp_path: Path, name: str) -> None:
    mask = mask_for(save(name, tmp_path / "model"), UNITS[name]).empty()
    model = build(name)
    with torch.no_grad():
        intact = model(ids()).logits
        with ablated(model, mask):
            assert torch.equal(model(ids()).logits, intact)


def test_masks_and_ablated_are_public_names() -> None:
    assert actlas.ablated is ablated
    assert actlas.Mask is Mask


def test_masks_nest_and_hooks_come_off_after_an_exception(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "model")
    one, two = (mask_for(folder, {"resid_post.1": units}) for units in ((1,), (2, 3)))
    both = mask_for(folder, {"resid_post.1": (1, 2, 3)})
    model = build("llama")
    with torch.no_grad():
        intact = model(ids()).logits
        with ablated(model, both):
            expected = model(ids()).logits
        with ablated(model, one), ablated(model, two):
            assert torch.equal(model(ids()).logits, expected)
        with pytest.raises(KeyError), ablated(model, one):
            raise KeyError
        assert torch.equal(model(ids()).logits, intact)


def test_a_mask_that_does_not_fit_names_where(tmp_path: Path) -> None:
    mask = mask_for(save("llama", tmp_path / "model"), {"resid_post.1": (31,)})
    other = build("gpt2")
    with pytest.raises(MaskError, match=r"model\.layers\.1.*no such module"), ablated(other, mask):
        pass
    wide = build("llama", hidden_size=64, head_dim=8)
    with ablated(wide, mask), pytest.raises(MaskError, match="64 units wide, expected 32"):
        wide(ids())  # from the pass itself, so that code inside the block can handle it
    with torch.no_grad():
        wide(ids())  # hooks are off: no error


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_generation_is_a_loop_without_a_cache(tmp_path: Path, name: str) -> None:
    mask = mask_for(save(name, tmp_path / "model"), UNITS[name])
    model = build(name)
    prompt = ids(7, 1)[0].tolist()
    for each in (mask, mask.empty()):
        expected = list(prompt)
        with ablated(model, each), torch.no_grad():
            for _ in range(12):
                expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
            found = generate(model, prompt, 12)
        assert found == expected[7:]
    stopped = generate(model, prompt, 12, stop_ids=[found[3]])
    assert stopped == found[: found.index(found[3])]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty prompt, expected at least one token"):
        generate(build("gpt2"), [], 3)


def test_drawn_generation_is_seeded_and_leaves_the_global_generator_alone() -> None:
    model = build("llama")
    state = torch.random.get_rng_state()
    drawn = [generate(model, [1, 5, 9], 20, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
def test_losses_are_transformers_own_on_single_windows(name: str, tokens_per_batch: int) -> None:
    model = build(name)
    rng = np.random.default_rng(1)
    windows = [
        Window(document, rng.integers(3, VOCABULARY, n), 1, n)
        for document, n in enumerate([2, 9, 17, 5, 40, 3, 64])
        for _ in range(1 + document % 2)
    ]
    found = losses(model, windows, tokens_per_batch=tokens_per_batch)
    total, n_tokens = np.zeros(7), np.zeros(7, int)
    for window in windows:
        row = torch.from_numpy(window.ids)[None]
        with torch.no_grad():
            loss = float(model(row, labels=row).loss)
        total[window.document] += loss * (len(window.ids) - 1)
        n_tokens[window.document] += len(window.ids) - 1
    assert found.n_tokens.tolist() == n_tokens.tolist()
    np.testing.assert_allclose(found.total, total, rtol=1e-5)
    assert found.mean == pytest.approx(total.sum() / n_tokens.sum(), rel=1e-5)


def test_only_the_wanted_positions_count() -> None:
    model = build("llama")
    row = ids(10, 1)
    whole = Window(0, row[0].numpy(), 1, 10)
    with torch.no_grad():
        logits = model(row).logits.double().log_softmax(-1)
    expected = -float(logits[0, torch.arange(3, 8), row[0, 4:9]].sum())
    found = losses(model, [whole._replace(start=4, stop=9)])
    assert found.n_tokens.tolist() == [5]
    assert float(found.total[0]) == pytest.approx(expected, rel=1e-5)


def test_a_model_without_a_head_is_refused() -> None:
    headless = build("llama").model
    with pytest.raises(ModelError, match="no logits over a vocabulary"):
        losses(headless, [Window(0, ids(5, 1)[0].numpy(), 1, 5)])


def test_standard_errors_are_those_of_a_paired_ratio() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(1, 50, 200)
    intact, other = rng.random(200) * n, rng.random(200) * n + 0.1 * n
    found = condition_of("top", None, 3, Losses(other, n), Losses(intact, n))
    assert found.loss_delta == pytest.approx((other.sum() - intact.sum()) / n.sum())
    draws = []
    for _ in range(4000):
        pick = rng.integers(0, 200, 200)
        draws.append((other[pick] - intact[pick]).sum() / n[pick].sum())
    assert found.se == pytest.approx(np.std(draws), rel=0.1)
    alone = condition_of("top", None, 3, Losses(other[:1], n[:1]), Losses(intact[:1], n[:1]))
    assert math.isnan(alone.se)


def conditions(top: float, random: list[float], se: float = 0.01) -> Ablation:
    n = np.array([100])
    base = condition_of("intact", None, 0, Losses(np.array([300.0]), n), Losses(n * 3.0, n))
    made = [base]
    for name, seed, delta in [
        ("top", None, top),
        *(("random", i, d) for i, d in enumerate(random)),
    ]:
        one = condition_of(
            name, seed, 5, Losses(np.array([300.0 + 100 * delta]), n), Losses(n * 3.0, n)
        )
        made.append(dataclasses.replace(one, se=se))
    return Ablation(tuple(made), (), {"model": "<m>", "corpus": "c"})


@pytest.mark.parametrize(
    ("top", "random", "said"),
    [
        (0.5, [0.1, 0.05], "6.67 times as much loss as losing 5 random ones on average, and 5 tim"),
        (0.5, [-0.01, 0.03], "50 times as much loss as losing 5 random ones on average, and 16.7"),
        (
            0.5,
            [-0.1, 0.05],
            "loss, clearly more than the costliest of 2 random draws, which cost none on average:",
        ),
        (
            0.5,
            [-0.1, -0.05],
            "Losing the 5 top units costs loss, and losing 5 random ones costs none:",
        ),
        (0.12, [0.1, 0.05], "but not clearly more than the costliest of 2 random draws:"),
        (0.07, [-0.1, 0.05], "loss, but not clearly more than the costliest of 2 random draws, w"),
        (0.1, [0.1, 0.05], "The 5 top units do no more than 5 random ones"),
        (0.02, [0.1, 0.05], "The 5 top units do no more than 5 random ones"),
        (-0.2, [-0.1], "at most over 1 random draw."),
        (-0.1, [-0.2], "Neither losing the 5 top units nor losing 5 random ones costs any loss"),
        (math.nan, [0.1], "no finite number"),
        (0.5, [math.inf], "no finite number"),
        (0.5, [], "no random units were measured to compare with"),
    ],
)
def test_the_sentence_is_plain(top: float, random: list[float], said: str) -> None:
    found = conditions(top, random)
    assert said in found.sentence()
    assert f"{top:+.4f}" in found.sentence()
    assert "<table" in found._repr_html_() and "&lt;" not in found._repr_html_()
    json.dumps(found.summary(), allow_nan=False)


@pytest.mark.slow
def test_pictures_of_every_shape(tmp_path: Path) -> None:
    for number, random in enumerate(([], [0.1], [math.nan, 0.2], [-0.1] * 60)):
        found = conditions(0.5, random)
        ax = draw(found.conditions, "a title").axes[0]
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names == ["top units", *(f"random, seed {i}" for i in range(len(random)))]
        widths = [bar.get_width() for bar in ax.patches if bar.get_height() < 1]
        expected = [0.5, *random]
        np.testing.assert_allclose(widths[-len(expected) :], expected, atol=1e-12)
        PNG.save(draw(found.conditions, "a title"), tmp_path, f"{number}")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_units_equal_a_product_with_zeros(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["llama", "gpt2"]))
    chosen = data.draw(
        st.dictionaries(st.integers(0, 2), st.sets(st.integers(0, 31), min_size=1), max_size=3)
    )
    model, mask = model_and_mask(name)
    units = {f"resid_post.{layer}": tuple(sorted(each)) for layer, each in chosen.items()}
    places = {f"{BLOCKS[name]}.{layer}": sorted(each) for layer, each in chosen.items()}
    expected = by_hand(model, places, ids())
    with ablated(model, Mask(mask.key, units)), torch.no_grad():
        assert torch.equal(model(ids()).logits, expected)


def test_nan_and_infinity_become_zero_and_nothing_else_is_touched() -> None:
    model, mask = model_and_mask("llama")
    block = model.model.layers[1]
    seen: list[torch.Tensor] = []

    def spoil(_module: Any, _args: Any, output: Any) -> Any:
        tensor = (output[0] if isinstance(output, tuple) else output).clone()
        tensor[..., 4], tensor[..., 9] = math.nan, math.inf
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    def look(_module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    handles = [block.register_forward_hook(spoil)]
    handles += [model.model.layers[2].register_forward_pre_hook(look, with_kwargs=True)]
    try:
        with torch.no_grad():
            model(ids())
            with ablated(model, Mask(mask.key, {"resid_post.1": (4, 9)})):
                model(ids())
    finally:
        for handle in handles:
            handle.remove()
    before, after = seen
    assert torch.equal(after[..., [4, 9]], torch.zeros_like(after[..., [4, 9]]))
    rest = [i for i in range(32) if i not in (4, 9)]
    assert torch.equal(after[..., rest], before[..., rest])


class Parts(NamedTuple):
    first: torch.Tensor
    second: int


@pytest.mark.parametrize("kind", [tuple, list, Parts._make])
def test_the_first_of_a_tuple_and_nothing_else(kind: Any) -> None:
    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return kind([x, 7])

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x)

    key = model_and_mask("llama")[1].key
    spec = HookpointSpec(name="inner", module="inner", side="output", width=4)
    mask = Mask(key.model_copy(update={"hookpoints": (spec,)}), {"inner": (1, 3)})
    given_x = torch.ones(2, 3, 4)
    with ablated(Outer(), mask):
        found = Outer()(given_x)  # another model: no hook there
        assert torch.equal(found[0], given_x)
    model = Outer()
    with ablated(model, mask):
        found = model(given_x)
    assert type(found) is type(kind([0, 0])) and found[1] == 7
    assert torch.equal(found[0], torch.tensor([1.0, 0, 1, 0]).expand(2, 3, 4))
    assert torch.equal(given_x, torch.ones(2, 3, 4)), "what came in is as it was"


def test_hooks_come_off_when_one_cannot_be_installed() -> None:
    model, mask = model_and_mask("llama")
    good, bad = mask.key.hookpoints[0], mask.key.hookpoints[1]
    bad = bad.model_copy(update={"module": "model.nowhere"})
    key = mask.key.model_copy(update={"hookpoints": (good, bad)})
    units = {good.name: (0,), bad.name: (0,)}
    with pytest.raises(MaskError, match=r"model\.nowhere"), ablated(model, Mask(key, units)):
        pass
    assert not any(module._forward_hooks for module in model.modules())


@given(st.integers(0, 2**32), st.sets(st.integers(0, 95), min_size=1, max_size=48))
def test_random_controls_are_disjoint_seeded_and_as_many(seed: int, flat: set[int]) -> None:
    mask = Mask.from_flat(model_and_mask("llama")[1].key, np.array(sorted(flat)))
    drawn = mask.random(seed)
    assert drawn.n_units == len(flat) and drawn.units == mask.random(seed).units
    for name, units in drawn.units.items():
        assert not set(units) & set(mask.units.get(name, ()))
