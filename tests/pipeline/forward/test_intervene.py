"""Interventions against hooks written by hand on transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from support.models import VOCABULARY, build
from support.vision import SHAPE, SIDE

from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.edits import Add, Clamp, Edit, Replace, Zero
from actlas.pipeline.forward.generate import generate
from actlas.pipeline.forward.intervene import Intervention, InterventionError, intervene
from actlas.pipeline.hookpoints.names import resolve
from actlas.store.errors import ConfigError
from actlas.store.format.schema import HookpointSpec

N, ROWS, WIDTH = 9, 2, 32
UNITS, POSITIONS = [30, 3, 7], [6, 0, 5]

PLACES: dict[str, dict[str, tuple[str, str]]] = {
    "llama": {
        "embed": ("model.embed_tokens", "output"),
        "resid_pre.1": ("model.layers.1", "input"),
        "resid_mid.1": ("model.layers.1.post_attention_layernorm", "input"),
        "resid_post.1": ("model.layers.1", "output"),
        "attn_out.0": ("model.layers.0.self_attn", "output"),
        "attn_z.2": ("model.layers.2.self_attn.o_proj", "input"),
        "mlp_out.0": ("model.layers.0.mlp", "output"),
        "mlp_hidden.1": ("model.layers.1.mlp.down_proj", "input"),
        "model.layers.1.mlp.up_proj": ("model.layers.1.mlp.up_proj", "output"),
        "model.layers.2.self_attn.q_proj": ("model.layers.2.self_attn.q_proj", "output"),
    },
    "gpt2": {
        "embed": ("transformer.wte", "output"),
        "resid_pre.1": ("transformer.h.1", "input"),
        "resid_mid.1": ("transformer.h.1.ln_2", "input"),
        "resid_post.1": ("transformer.h.1", "output"),
        "attn_out.0": ("transformer.h.0.attn", "output"),
        "attn_z.2": ("transformer.h.2.attn.c_proj", "input"),
        "mlp_out.0": ("transformer.h.0.mlp", "output"),
        "mlp_hidden.1": ("transformer.h.1.mlp.c_proj", "input"),
        "transformer.h.1.attn.c_attn": ("transformer.h.1.attn.c_attn", "output"),
    },
    "vit": {
        "resid_pre.1": ("layers.1", "input"),
        "resid_mid.1": ("layers.1.layernorm_after", "input"),
        "resid_post.1": ("layers.1", "output"),
        "mlp_out.0": ("layers.0.mlp", "output"),
        "layernorm": ("layernorm", "output"),
    },
}
"""For each hookpoint, as a reader of transformers' source says: a module and a side."""

CASES = [(name, hookpoint) for name, places in PLACES.items() for hookpoint in places]


def _vit() -> Any:
    import transformers as t

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return t.ViTModel(t.ViTConfig(**SHAPE), add_pooling_layer=False).eval()


MODELS: dict[str, Any] = {"llama": build("llama"), "gpt2": build("gpt2"), "vit": _vit()}


def inputs(name: str) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    if name == "vit":
        pixels = rng.standard_normal((ROWS, 3, SIDE, SIDE)).astype(np.float32)
        return {"pixel_values": torch.from_numpy(pixels)}
    return {"input_ids": torch.from_numpy(rng.integers(3, VOCABULARY, (ROWS, N)))}


def output(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model(**given)
    tensor: torch.Tensor = found.logits if "logits" in found else found.last_hidden_state
    return tensor


@contextmanager
def by_hand(
    model: Any, module: str, side: str, change: Callable[[torch.Tensor], None]
) -> Iterator[None]:
    """A hook as one writes it: a copy of the tensor is changed in place."""

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        change(copy)
        return copy

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": changed(kwargs["hidden_states"])}

    def after(_module: Any, _args: Any, found: Any) -> Any:
        if isinstance(found, tuple):
            return (changed(found[0]), *found[1:])
        return changed(found)

    place = model.get_submodule(module)
    if side == "input":
        handle = place.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = place.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def n_hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def numbers(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


ROW_VALUES = numbers(len(POSITIONS), len(UNITS))
BATCH_VALUES = numbers(ROWS, len(POSITIONS), len(UNITS))
UNIT_VALUES = numbers(len(UNITS))


def _zero(x: torch.Tensor) -> None:
    for unit in UNITS:
        x[..., unit] = 0.0


def _zero_at(x: torch.Tensor) -> None:
    for position in POSITIONS:
        for unit in UNITS:
            x[:, position, unit] = 0.0


def _add(x: torch.Tensor) -> None:
    for unit, value in zip(UNITS, UNIT_VALUES, strict=True):
        x[..., unit] += value


def _add_at(x: torch.Tensor) -> None:
    for i, position in enumerate(POSITIONS):
        for j, unit in enumerate(UNITS):
            x[:, position, unit] += ROW_VALUES[i, j]


def _mean(x: torch.Tensor) -> None:
    for unit, value in zip(UNITS, UNIT_VALUES, strict=True):
        x[..., unit] = value


def _rows(x: torch.Tensor) -> None:
    for i, position in enumerate(POSITIONS):
        for j, unit in enumerate(UNITS):
            x[:, position, unit] = ROW_VALUES[i, j]


def _batch_rows(x: torch.Tensor) -> None:
    for row in range(ROWS):
        for i, position in enumerate(POSITIONS):
            for j, unit in enumerate(UNITS):
                x[row, position, unit] = BATCH_VALUES[row, i, j]


def _from_two(x: torch.Tensor) -> None:
    x[:, 2:, :] = 0.25


def _clamp(x: torch.Tensor) -> None:
    for unit in UNITS:
        x[..., unit] = x[..., unit].clamp(-1e-3, 2e-3)


def _clamp_below(x: torch.Tensor) -> None:
    for unit, low in zip(UNITS, UNIT_VALUES, strict=True):
        x[:, 1:3, unit] = torch.maximum(x[:, 1:3, unit], low)


KINDS: dict[str, tuple[Edit, Any, Any, Callable[[torch.Tensor], None]]] = {
    "zero": (Zero(), UNITS, None, _zero),
    "zero at positions": (Zero(), UNITS, POSITIONS, _zero_at),
    "add a direction": (Add(UNIT_VALUES), UNITS, None, _add),
    "add rows": (Add(ROW_VALUES), UNITS, POSITIONS, _add_at),
    "replace by a mean": (Replace(UNIT_VALUES.numpy()), UNITS, None, _mean),
    "replace by rows": (Replace(ROW_VALUES), UNITS, POSITIONS, _rows),
    "replace by rows of a batch": (Replace(BATCH_VALUES), UNITS, POSITIONS, _batch_rows),
    "replace all units from a position on": (Replace(0.25), None, slice(2, None), _from_two),
    "clamp": (Clamp(-1e-3, 2e-3), UNITS, None, _clamp),
    "clamp below, by unit": (Clamp(low=UNIT_VALUES), UNITS, slice(1, 3), _clamp_below),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "hookpoint"), CASES)
def test_equals_a_hook_written_by_hand(name: str, hookpoint: str, kind: str) -> None:
    model, given = MODELS[name], inputs(name)
    edit, units, positions, change = KINDS[kind]
    [spec] = resolve(model, [hookpoint])
    module, side = PLACES[name][hookpoint]
    intact, before = output(model, given), n_hooks(model)
    with by_hand(model, module, side, change):
        expected = output(model, given)
    with intervene(model, [Intervention(spec, edit, units, positions)]):
        found = output(model, given)
    assert torch.equal(found, expected)
    assert not torch.equal(found, intact)
    assert n_hooks(model) == before
    assert torch.equal(output(model, given), intact)


@pytest.mark.parametrize("name", MODELS)
def test_no_units_or_positions_change_no_bit_and_all_zero_gives_zeros(name: str) -> None:
    model, given = MODELS[name], inputs(name)
    specs = resolve(model, ["resid_post.*", "mlp_out.*"])
    intact = output(model, given)
    for units, positions in (((), None), (None, ()), (None, slice(1000, None)), ((), [0])):
        with intervene(model, [Intervention(spec, Zero(), units, positions) for spec in specs]):
            assert torch.equal(output(model, given), intact)
    shape = (ROWS, N if name != "vit" else 1 + (SIDE // 8) ** 2)
    with (
        torch.no_grad(),
        intervene(model, [Intervention(spec, Zero()) for spec in specs]),
        Capture(model, specs) as capture,
    ):
        found = capture(**given, shape=shape)
    for tensor in found.values():
        assert not tensor.any() and tuple(tensor.shape) == (*shape, WIDTH)


def test_capture_inside_reads_edited_and_outside_computed_activations() -> None:
    model, given = MODELS["llama"], inputs("llama")
    specs = resolve(model, ["resid_post.0", "resid_post.1"])
    steer = Intervention(specs[0], Add(numbers(WIDTH)))
    with torch.no_grad(), Capture(model, specs) as capture:
        plain = capture(**given)
        with intervene(model, [steer]):
            outer = capture(**given)
            with Capture(model, specs) as inner:
                edited = inner(**given)
    assert torch.equal(outer["resid_post.0"], plain["resid_post.0"])
    assert torch.equal(edited["resid_post.0"], plain["resid_post.0"] + numbers(WIDTH))
    assert torch.equal(edited["resid_post.1"], outer["resid_post.1"])
    assert not torch.equal(edited["resid_post.1"], plain["resid_post.1"])


def test_a_row_patched_into_its_own_run_changes_no_bit() -> None:
    model, given = MODELS["gpt2"], inputs("gpt2")
    specs = resolve(model, ["resid_post.*", "attn_z.*", "mlp_hidden.*"])
    with torch.no_grad(), Capture(model, specs, stop_early=False) as capture:
        rows = capture(**given)
    intact = output(model, given)
    with intervene(model, [Intervention(spec, Replace(rows[spec.name])) for spec in specs]):
        assert torch.equal(output(model, given), intact)


def test_several_apply_in_order_and_nested_ones_after_the_outer() -> None:
    model, given = MODELS["llama"], inputs("llama")
    [spec] = resolve(model, ["resid_post.1"])
    one, two = Intervention(spec, Add(1.0), [4]), Intervention(spec, Clamp(high=0.5), [4])

    def expected(*changes: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        def change(x: torch.Tensor) -> None:
            for each in changes:
                x[..., 4] = each(x[..., 4])

        with by_hand(model, "model.layers.1", "output", change):
            return output(model, given)

    def add(x: torch.Tensor) -> torch.Tensor:
        return x + 1.0

    def limit(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=0.5)

    for first, second, changes in ((one, two, (add, limit)), (two, one, (limit, add))):
        wanted = expected(*changes)
        with intervene(model, [first, second]):
            assert torch.equal(output(model, given), wanted)
        with intervene(model, [first]), intervene(model, [second]):
            assert torch.equal(output(model, given), wanted)


def test_hooks_come_off_after_an_exception() -> None:
    model, given = MODELS["llama"], inputs("llama")
    before = n_hooks(model)
    [good] = resolve(model, ["resid_post.0"])
    bad = HookpointSpec(name="x", module="model.layers.9", side="output", width=WIDTH)
    with pytest.raises(KeyError), intervene(model, [Intervention(good, Zero())]):
        raise KeyError(n_hooks(model))
    assert n_hooks(model) == before
    with (
        pytest.raises(InterventionError, match=r"x \(module model\.layers\.9, output\).*no such"),
        intervene(model, [Intervention(good, Zero()), Intervention(bad, Zero())]),
    ):
        pass
    assert n_hooks(model) == before
    wide = good.model_copy(update={"width": 33})
    with (
        pytest.raises(InterventionError, match="32 units wide, expected 33"),
        intervene(model, [Intervention(wide, Zero())]),
    ):
        output(model, given)
    assert n_hooks(model) == before


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("positions", [None, [0, 2, 8, 9, 13], slice(5, None), slice(2, 9)])
def test_generation_with_a_cache_is_a_loop_without_one(name: str, positions: Any) -> None:
    model = MODELS[name]
    prompt = inputs(name)["input_ids"][0, :7].tolist()
    [spec] = resolve(model, ["resid_post.1"])
    module, side = PLACES[name]["resid_post.1"]
    direction = 3 * numbers(WIDTH)
    chosen = set(range(100)[positions] if isinstance(positions, slice) else positions or range(100))

    def change(x: torch.Tensor) -> None:
        for position in range(x.shape[1]):
            if position in chosen:
                x[:, position] += direction

    expected = list(prompt)
    with by_hand(model, module, side, change), torch.no_grad():
        for _ in range(10):
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    with intervene(model, [Intervention(spec, Add(direction), positions=positions)]):
        found = generate(model, prompt, 10)
        own = model.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=-1
        )
    assert found == expected[7:]
    assert own[0].tolist() == expected, "transformers' own generation too"


def test_values_by_position_go_on_after_the_cache() -> None:
    model = MODELS["llama"]
    ids, values = inputs("llama")["input_ids"], numbers(N, WIDTH)
    specs = resolve(model, ["resid_post.0"])
    with torch.no_grad(), intervene(model, [Intervention(specs[0], Replace(values))]):
        whole = model(ids).logits
        first = model(ids[:, :4], use_cache=True)
        rest = model(ids[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole)
    with (
        pytest.raises(InterventionError, match="got values for 9 positions"),
        intervene(model, [Intervention(specs[0], Replace(values))]),
    ):
        model(torch.cat([ids, ids], 1))


def test_gradients_flow_through_edits_and_to_their_values() -> None:
    model, given = build("gpt2").double(), inputs("gpt2")
    first, spec = resolve(model, ["resid_post.0", "resid_post.1"])
    direction = numbers(3).double().requires_grad_()
    with intervene(model, [Intervention(spec, Add(direction), UNITS, [2])]):
        with Capture(model, [first], stop_early=False) as capture:
            row = capture(**given)["resid_post.0"]
            row.retain_grad()
            loss = capture.output.logits.square().sum()
        loss.backward()
    assert direction.grad is not None and row.grad is not None
    epsilon = 1e-5
    for i in range(3):
        losses = []
        for step in (epsilon, -epsilon):
            moved = direction.detach().clone()
            moved[i] += step

            def change(x: torch.Tensor, moved: torch.Tensor = moved) -> None:
                x[:, 2, UNITS] += moved

            with by_hand(model, "transformer.h.1", "output", change):
                losses.append(float(output(model, given).square().sum()))
        slope = (losses[0] - losses[1]) / (2 * epsilon)
        assert float(direction.grad[i]) == pytest.approx(slope, rel=1e-5)


def test_values_are_cast_and_the_models_own_tensors_stay() -> None:
    model = build("llama").to(torch.bfloat16)
    [spec] = resolve(model, ["embed"])
    weights = model.model.embed_tokens.weight.clone()
    values = numbers(N, WIDTH)
    kept = values.clone()
    with (
        torch.no_grad(),
        intervene(model, [Intervention(spec, Replace(values))]),
        Capture(model, [spec]) as capture,
    ):
        found = capture(**inputs("llama"))["embed"]
        found.mul_(2)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[0], 2 * values.to(torch.bfloat16))
    assert torch.equal(values, kept)
    assert torch.equal(model.model.embed_tokens.weight, weights)


def test_a_feature_map_has_its_pixels_as_positions() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 2, stride=2), torch.nn.Identity())
    spec = HookpointSpec(name="0", module="0", side="output", width=5, layout="feature_map")
    pixels = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = model(pixels).clone()
    expected[:, [1, 4], 1, 2] = 0  # position 1 * 4 + 2
    with intervene(model, [Intervention(spec, Zero(), [1, 4], [6])]):
        assert torch.equal(model(pixels), expected)


def test_positions_laid_out_flat_are_found() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
            flat: torch.Tensor = self.inner(inputs_embeds.flatten(0, 1))
            return flat.unflatten(0, inputs_embeds.shape[:2])  # type: ignore[no-untyped-call,no-any-return]

    model, x = Flat(), numbers(ROWS, N, 4)
    spec = HookpointSpec(name="inner", module="inner", side="output", width=4)
    expected = x.clone()
    expected[:, 3, 1] = 0
    with intervene(model, [Intervention(spec, Zero(), [1], [3])]):
        assert torch.equal(model(x), expected)
        with pytest.raises(InterventionError, match="run the model that intervene was given"):
            model.inner(x.flatten(0, 1))


@pytest.mark.parametrize(
    ("edit", "units", "positions", "message"),
    [
        (Zero(), [32], None, r"expected units in \[0, 32\), got \[32\]"),
        (Zero(), [3, 3], None, r"expected distinct units"),
        (Zero(), None, [-1], r"expected positions of 0 or more"),
        (Zero(), None, [2, 2], r"expected distinct positions"),
        (Zero(), None, slice(0, 9, 2), r"slice without step"),
        (Zero(), None, slice(-3, None), r"slice without step from 0 on"),
        (Add(numbers(31)), None, None, r"values for 32 units, got shape \[31\]"),
        (Replace(numbers(2, 3)), UNITS, POSITIONS, r"values for 3 positions, got shape \[2, 3\]"),
        (Replace(numbers(1, 1, 3, 3)), UNITS, POSITIONS, r"at most 3 axes"),
        (Clamp(low=numbers(2)), UNITS, None, r"limits for 3 units, got shape \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused(edit: Edit, units: Any, positions: Any, message: str) -> None:
    [spec] = resolve(MODELS["llama"], ["resid_post.0"])
    with pytest.raises(ConfigError, match=message):
        Intervention(spec, edit, units, positions)


def test_limits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="low or high"):
        Clamp()
    with pytest.raises(ValueError, match="low <= high"):
        Clamp(1.0, 0.0)


def test_a_batch_of_another_size_is_refused() -> None:
    model = MODELS["llama"]
    [spec] = resolve(model, ["resid_post.0"])
    values = numbers(3, N, WIDTH)
    with (
        pytest.raises(InterventionError, match="values for 2 sequences, got 3"),
        intervene(model, [Intervention(spec, Replace(values))]),
    ):
        output(model, inputs("llama"))
