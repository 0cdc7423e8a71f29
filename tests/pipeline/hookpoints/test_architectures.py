"""Every name in every architecture, against transformers' own hidden states and arithmetic.

The hookpoints are found on the meta device, as a plan finds them, and read in a model with numbers.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import models
from support.architectures import (
    KINDS,
    N_LAYERS,
    TEXT,
    WIDTH,
    ZOO,
    build,
    inputs_of,
    skeleton,
    with_random_weights,
)
from torch.testing import assert_close

from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.graph import trace
from actlas.pipeline.hookpoints.names import available, resolve, survey
from actlas.pipeline.hookpoints.shapes import observe
from actlas.pipeline.model.config import build_skeleton, quiet
from actlas.pipeline.options import RunOptions
from actlas.store.errors import HookpointError
from actlas.store.format import layout
from actlas.store.format.schema import HookpointSpec

pytestmark = pytest.mark.slow

LAYERS = range(N_LAYERS)
SEQUENTIAL = [name for name, animal in ZOO.items() if animal.form == "sequential"]
PARALLEL = [name for name, animal in ZOO.items() if animal.form == "parallel"]
POST_NORM = [name for name, animal in ZOO.items() if animal.form == "post-norm"]
WITH_OUTS = [name for name, animal in ZOO.items() if "attn_out" not in animal.absent]


def having(*kinds: str) -> list[tuple[str, str]]:
    """Every model with every one of these kinds that it has."""
    return [(name, kind) for name in ZOO for kind in kinds if kind not in ZOO[name].absent]


def positions_of(model: Any, hookpoints: tuple[HookpointSpec, ...]) -> int:
    places = [(h.name, h.module, h.side) for h in hookpoints]
    (n_positions,) = {seen.n_positions for seen in observe(trace(model), places).values()}
    return n_positions


class Seen(NamedTuple):
    """What one pass gave: at the hookpoints, of transformers, and of modules hooked here."""

    model: Any
    at: dict[str, torch.Tensor]
    hidden: tuple[torch.Tensor, ...]
    outputs: dict[str, torch.Tensor]
    modules: dict[str, str]


@cache
def seen(name: str) -> Seen:
    animal, model, inputs = ZOO[name], build(name), inputs_of(name)
    outputs: dict[str, torch.Tensor] = {}
    handles = []
    for layer in LAYERS:
        for part in (animal.attention, animal.mlp):
            path = f"{animal.blocks}.{layer}.{part}"

            def keep(_module: Any, _args: Any, output: Any, path: str = path) -> None:
                tensor = output[0] if isinstance(output, tuple) else output
                outputs[path] = tensor.reshape(2, -1, tensor.shape[-1]).clone()

            handles.append(model.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad(), quiet():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    hookpoints = resolve(skeleton(name), ["*.*"])
    shape = (2, hidden[0].shape[1])
    with torch.no_grad(), Capture(model, hookpoints) as capture:
        # Some models write into their own tensors later on.
        found = capture(**inputs, shape=shape, read=lambda _name, tensor: tensor.clone())
    return Seen(model, found, hidden, outputs, {h.name: h.module for h in hookpoints})


@pytest.mark.parametrize("name", ZOO)
def test_a_model_has_the_names_that_its_source_says(name: str) -> None:
    model = skeleton(name)
    expected = {f"{kind}.{layer}" for kind in KINDS - ZOO[name].absent for layer in LAYERS}
    assert set(available(model)) - {"embed"} == expected
    assert find_blocks(model) == ZOO[name].blocks
    absent = {f"{kind}.{layer}" for kind in ZOO[name].absent for layer in LAYERS}
    assert set(survey(model).absent) == absent


@pytest.mark.parametrize("name", ZOO)
def test_the_meta_device_finds_what_a_real_model_shows(name: str) -> None:
    assert resolve(skeleton(name), ["*.*"]) == resolve(build(name), ["*.*"])


@pytest.mark.parametrize("name", ZOO)
def test_blocks_are_transformers_own_hidden_states(name: str) -> None:
    got = seen(name)
    for layer in LAYERS:
        assert_close(got.at[f"resid_pre.{layer}"], got.hidden[layer])
    for layer in LAYERS[:-1]:
        assert_close(got.at[f"resid_post.{layer}"], got.hidden[layer + 1])
        assert torch.equal(got.at[f"resid_post.{layer}"], got.at[f"resid_pre.{layer + 1}"])
    last, norm = got.at[f"resid_post.{N_LAYERS - 1}"], ZOO[name].norm
    if norm is not None:
        assert not torch.allclose(last, got.hidden[-1], atol=1e-2)
        with torch.no_grad():
            last = got.model.get_submodule(norm)(last)
    assert_close(last, got.hidden[-1])


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_what_is_added_adds_up_where_blocks_are_sequential(name: str) -> None:
    at = seen(name).at
    for layer in LAYERS:
        assert not torch.equal(at[f"resid_mid.{layer}"], at[f"resid_pre.{layer}"])
        assert not torch.equal(at[f"resid_mid.{layer}"], at[f"resid_post.{layer}"])
        if name not in WITH_OUTS:
            continue
        assert_close(at[f"resid_pre.{layer}"] + at[f"attn_out.{layer}"], at[f"resid_mid.{layer}"])
        assert_close(at[f"resid_mid.{layer}"] + at[f"mlp_out.{layer}"], at[f"resid_post.{layer}"])


@pytest.mark.parametrize("name", PARALLEL)
def test_what_is_added_adds_up_where_blocks_are_parallel(name: str) -> None:
    at = seen(name).at
    for layer in LAYERS:
        total = at[f"resid_pre.{layer}"] + at[f"attn_out.{layer}"] + at[f"mlp_out.{layer}"]
        assert_close(total, at[f"resid_post.{layer}"])
    with pytest.raises(HookpointError, match=r"is parallel: .* it has attn_out and mlp_out"):
        resolve(skeleton(name), ["resid_mid.1"])


@pytest.mark.parametrize("name", POST_NORM)
def test_what_is_added_is_normed_where_the_norm_comes_last(name: str) -> None:
    at = seen(name).at
    for layer in LAYERS:
        for start, added, end in (
            ("resid_pre", "attn_out", "resid_mid"),
            ("resid_mid", "mlp_out", "resid_post"),
        ):
            total = at[f"{start}.{layer}"] + at[f"{added}.{layer}"]
            normed = torch.nn.functional.layer_norm(total, (WIDTH,))
            scale, shift = line(normed, at[f"{end}.{layer}"])
            assert_close(normed * scale + shift, at[f"{end}.{layer}"], atol=1e-4, rtol=1e-4)


def line(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and shift of each unit that a norm's weights must be, by least squares."""
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    scale = ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / (x - x.mean(0)).square().sum(0)
    return scale, y.mean(0) - scale * x.mean(0)


@pytest.mark.parametrize(("name", "kind"), having("attn_z", "mlp_hidden"))
def test_the_last_matrix_takes_the_inner_name_to_the_parts_output(name: str, kind: str) -> None:
    got, animal = seen(name), ZOO[name]
    part = animal.attention if kind == "attn_z" else animal.mlp
    for layer in LAYERS:
        matrix = got.model.get_submodule(got.modules[f"{kind}.{layer}"])
        weight = matrix.weight if isinstance(matrix, torch.nn.Linear) else matrix.weight.T
        expected = got.outputs[f"{animal.blocks}.{layer}.{part}"]
        assert matrix.weight.numel() == weight.shape[0] * got.at[f"{kind}.{layer}"].shape[-1]
        with torch.no_grad():
            found = torch.nn.functional.linear(got.at[f"{kind}.{layer}"], weight, matrix.bias)
        assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in ZOO if "mlp_hidden" in ZOO[name].absent])
def test_a_mixture_of_experts_has_no_single_hidden_layer(name: str) -> None:
    with pytest.raises(HookpointError, match="mixture of experts, and no single hidden layer"):
        resolve(skeleton(name), ["mlp_hidden.0"])


def test_a_routers_scores_are_read_by_position() -> None:
    model, inputs = build("mixtral"), inputs_of("mixtral")
    hookpoints = resolve(skeleton("mixtral"), ["model.layers.1.mlp.gate"])
    with torch.no_grad(), Capture(model, hookpoints) as capture:
        [found] = capture(**inputs).values()
        truth = model(**inputs, output_router_logits=True).router_logits[1]
    assert found.shape == (2, 9, 4)
    for position in range(9):
        assert torch.equal(found[1, position], truth.view(18, 4)[9 + position])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_attn_z_is_the_attention_weighted_values_of_each_head(name: str) -> None:
    model, animal, inputs = build(name), ZOO[name], inputs_of(name)
    model.set_attn_implementation("eager")
    values: list[torch.Tensor] = []
    value = {
        "llama": "self_attn.v_proj",
        "gpt2": "attn.c_attn",
        "bert": "attention.self.value",
        "vit": "attention.v_proj",
    }[name]
    module = model.get_submodule(f"{animal.blocks}.1.{value}")
    handle = module.register_forward_hook(lambda _m, _a, output: values.append(output))
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[1]
    handle.remove()
    n_batch, n_heads, n_positions, _ = weights.shape
    heads = values[0][..., -WIDTH:].unflatten(-1, (-1, WIDTH // n_heads)).transpose(1, 2)
    if name == "llama":
        heads = values[0].unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, dim=1)
    expected = (weights @ heads).transpose(1, 2).reshape(n_batch, n_positions, WIDTH)
    assert_close(seen(name).at["attn_z.1"], expected)


@pytest.mark.parametrize("name", ZOO)
def test_nothing_runs_after_the_deepest_hookpoint(name: str) -> None:
    model, inputs = build(name), inputs_of(name)
    shape = (2, seen(name).hidden[0].shape[1])
    ran: list[str] = []
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda _m, _a, path=path: ran.append(path))
    with torch.no_grad(), quiet():
        model(**inputs)
    everything = ran.copy()
    for hookpoint in resolve(skeleton(name), ["*.1"]):
        ran.clear()
        with torch.no_grad(), Capture(model, [hookpoint]) as capture:
            capture(**inputs, shape=shape)
        until = everything.index(hookpoint.module) + 1
        if hookpoint.side == "output":
            until += sum(path.startswith(f"{hookpoint.module}.") for path in everything)
        assert ran == everything[:until], hookpoint
        assert until < len(everything)


def skeleton_of(config: str, architecture: str, **sizes: Any) -> Any:
    import transformers

    with quiet():
        return build_skeleton(getattr(transformers, config)(**sizes), architecture)


def test_layers_of_one_model_may_have_different_names() -> None:
    model = skeleton_of(
        "JambaConfig",
        "JambaForCausalLM",
        **TEXT,
        num_experts=4,
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        use_mamba_kernels=False,
    )
    names = set(available(model))
    assert {name for name in names if name.startswith("attn")} == {"attn_z.1", "attn_out.1"}
    assert {name for name in names if name.startswith("mlp_h")} == {"mlp_hidden.0", "mlp_hidden.2"}
    for kind in ("resid_pre", "resid_mid", "mlp_out", "resid_post"):
        assert {f"{kind}.{layer}" for layer in LAYERS} <= names
    assert [h.name for h in resolve(model, ["attn_out.*"])] == ["attn_out.1"]
    with pytest.raises(HookpointError, match=r"positions are mixed in model\.layers\.0\.mamba"):
        resolve(model, ["attn_out.0"])


def test_a_model_without_attention_or_mlp_keeps_its_residual_stream() -> None:
    model = skeleton_of(
        "MambaConfig", "MambaForCausalLM", hidden_size=32, num_hidden_layers=2, vocab_size=97
    )
    kinds = {name.partition(".")[0] for name in available(model)}
    assert kinds == {"embed", "resid_pre", "resid_post"}
    with pytest.raises(HookpointError, match="adds one part to the stream, not two"):
        resolve(model, ["resid_mid.0"])


def test_a_stream_of_another_shape_is_not_named() -> None:
    model = skeleton_of(
        "Gemma3nTextConfig",
        "Gemma3nForCausalLM",
        **TEXT,
        head_dim=8,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=97,
        hidden_size_per_layer_input=8,
        layer_types=["full_attention"] * 3,
        laurel_rank=4,
    )
    assert available(model) == ("embed",)
    with pytest.raises(HookpointError, match=r"its input is \(4, 2, \d+, 32\)"):
        resolve(model, ["resid_post.1"])


@pytest.mark.parametrize("name", ["granite", "beit"])
def test_what_is_scaled_before_it_is_added_is_named_by_its_module(name: str) -> None:
    got, animal = seen(name), ZOO[name]
    for kind, start, end, part in (
        ("attn_out", "resid_pre", "resid_mid", animal.attention),
        ("mlp_out", "resid_mid", "resid_post", animal.mlp),
    ):
        path = f"{animal.blocks}.1.{part}"
        with pytest.raises(HookpointError, match=f"but scaled; .* output of {re.escape(path)}"):
            resolve(skeleton(name), [f"{kind}.1"])
        assert [h.name for h in resolve(skeleton(name), [path])] == [path]
        block = got.model.get_submodule(f"{animal.blocks}.1")
        scale = getattr(block, "residual_multiplier", None)
        if scale is None:
            scale = block.lambda_1 if kind == "attn_out" else block.lambda_2
        with torch.no_grad():
            assert_close(got.at[f"{start}.1"] + scale * got.outputs[path], got.at[f"{end}.1"])


def resnet() -> Any:
    from transformers import AutoModel, ResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
    return with_random_weights(AutoModel, ResNetConfig(layer_type="basic", **sizes))


def test_a_resnets_places_are_positions_and_its_channels_units() -> None:
    model = resnet()
    hookpoints = resolve(build_skeleton(model.config, "ResNetModel"), ["encoder.stages.1"])
    assert [(h.name, h.width, h.layout) for h in hookpoints] == [
        ("encoder.stages.1", 16, "feature_map")
    ]
    images = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Capture(model, hookpoints) as capture:
        found = capture(pixel_values=images, shape=(2, 64))["encoder.stages.1"]
        truth = model(images, output_hidden_states=True).hidden_states[2]
    assert truth.shape == (2, 16, 8, 8)
    for row in range(8):
        for column in range(8):
            assert torch.equal(found[:, row * 8 + column], truth[:, :, row, column])


def test_a_model_of_stages_has_module_paths_alone() -> None:
    model = build_skeleton(resnet().config, "ResNetModel")
    assert available(model) == ()
    with pytest.raises(HookpointError, match=r"No single stack of blocks.*encoder\.stages \(4\)"):
        resolve(model, ["resid_post.0"])
    with pytest.raises(HookpointError, match="has no embedding"):
        resolve(model, ["embed"])
    assert positions_of(model, resolve(model, ["encoder.stages.2"])) == 14 * 14
    with pytest.raises(HookpointError, match=r"stages\.1 784, encoder\.stages\.2 196"):
        resolve(model, ["encoder.stages.1", "encoder.stages.2"])


def test_hookpoints_of_images_must_agree_in_their_positions() -> None:
    model = skeleton("clip")
    assert positions_of(model, resolve(model, ["*.*"])) == 5  # four patches and the class
    assert positions_of(model, resolve(model, ["embed"])) == 4
    with pytest.raises(HookpointError, match=r"embed 4, resid_post\.0 5"):
        resolve(model, ["embed", "resid_post.0"])


def test_a_vision_language_models_names_are_its_language_models_with_images_too() -> None:
    model = build("llava")
    hookpoints = resolve(skeleton("llava"), ["*.*"])
    assert {h.module.partition(".layers.")[0] for h in hookpoints} == {"model.language_model"}
    tokens = inputs_of("llava", 12)["input_ids"]
    tokens[:, 2:6] = model.config.image_token_index
    inputs = {"input_ids": tokens, **inputs_of("vit")}
    with torch.no_grad(), Capture(model, hookpoints) as capture:
        found = capture(**inputs, shape=(2, 12))
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    for layer in LAYERS[:-1]:
        assert_close(found[f"resid_post.{layer}"], hidden[layer + 1])
    with pytest.raises(HookpointError, match="not reached in a forward pass over sequences"):
        resolve(skeleton("llava"), ["model.vision_tower.encoder.layers.0"])


@pytest.mark.parametrize("name", ["opt", "gemma2"])
def test_every_name_is_stored_as_a_hook_of_ones_own_reads_it(name: str, tmp_path: Path) -> None:
    folder, model = models.save(name, tmp_path / "model"), models.build(name)
    columns = models.documents([1, 0, 23, 16, 40, 2], seed=3)
    store = models.plan_store(tmp_path / "run.zarr", folder, columns, ["*.middle", "*.0"])
    extractor = Extractor(store, RunOptions(device="cpu", threads=1, tokens_per_batch=64))
    for shard in range(store.plan.n_shards):
        extractor.extract(shard, attempt="test")
    assert len(store.plan.hookpoints) == 2 * len(KINDS)
    rows = {
        h.name: np.empty((store.plan.n_tokens, h.width), np.float32) for h in store.plan.hookpoints
    }
    for at, n_prefix, ids in models.windows_of(store):
        for hookpoint in store.plan.hookpoints:
            read = by_hand(model, hookpoint, ids)[n_prefix:]
            rows[hookpoint.name][at : at + len(read)] = read
    for hookpoint in store.plan.hookpoints:
        found = np.empty_like(rows[hookpoint.name])
        for shard in range(store.plan.n_shards):
            start, stop = store.shard_range(shard)
            tokens = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
            found[tokens] = store.activations[hookpoint.name][start:stop]
        assert models.worst(found, rows[hookpoint.name]) < 1e-4, hookpoint


def by_hand(model: Any, hookpoint: HookpointSpec, ids: list[int]) -> NDArray[Any]:
    """What goes into a module or comes out of it, for one window alone."""
    read: list[Any] = []
    module = model.get_submodule(hookpoint.module)
    if hookpoint.side == "input":
        handle = module.register_forward_pre_hook(lambda _m, args: read.append(args[0].clone()))
    else:
        handle = module.register_forward_hook(lambda _m, _args, output: read.append(output))
    with torch.no_grad(), quiet():
        model(torch.tensor([ids]))
    handle.remove()
    tensor = read[0][0] if isinstance(read[0], tuple) else read[0]
    return np.asarray(tensor.reshape(len(ids), hookpoint.width))
