"""Names of places: found by structure in many architectures, with their widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import CONFIGS, build, config_of

from actlas.pipeline.architecture import build_skeleton
from actlas.pipeline.hookpoints import available, find_blocks, resolve
from actlas.store.errors import HookpointError


def skeleton(name: str, **changes: Any) -> Any:
    kind = "XForCausalLM" if CONFIGS[name][1] == "AutoModelForCausalLM" else "XModel"
    return build_skeleton(config_of(name, **changes), kind)


@pytest.fixture(scope="module")
def llama() -> Any:
    return skeleton("llama")


def names(model: Any, *patterns: str) -> list[str]:
    return [hookpoint.name for hookpoint in resolve(model, patterns)]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_blocks_of_every_architecture_are_found_without_weights(name: str) -> None:
    model = skeleton(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    found = resolve(model, ["embed", "resid_*.*"])
    assert [h.name for h in found] == list(available(model))
    assert [h.name for h in found] == ["embed"] + [
        f"resid_{side}.{layer}" for layer in range(3) for side in ("pre", "post")
    ]
    assert {h.width for h in found[1:]} == {32}
    assert found[0].width == (16 if name == "opt" else 32)


def test_the_meta_device_gives_what_a_real_model_gives() -> None:
    patterns = ["embed", "resid_post.*", "model.layers.*.mlp.up_proj"]
    assert resolve(skeleton("llama"), patterns) == resolve(build("llama"), patterns)


def test_middle_last_and_globs(llama: Any) -> None:
    assert names(llama, "resid_post.middle", "resid_post.last") == ["resid_post.1", "resid_post.2"]
    assert names(llama, "resid_*.middle") == ["resid_pre.1", "resid_post.1"]
    assert names(llama, "resid_*.0") == ["resid_pre.0", "resid_post.0"]
    assert names(llama, "resid_pre.?") == ["resid_pre.0", "resid_pre.1", "resid_pre.2"]


def test_model_order_whatever_the_order_asked_for_and_each_once(llama: Any) -> None:
    asked = ["lm_head", "resid_post.0", "model.layers.0.mlp", "resid_*.0", "embed", "resid_post.0"]
    assert names(llama, *asked) == [
        "embed",
        "resid_pre.0",
        "model.layers.0.mlp",
        "resid_post.0",
        "lm_head",
    ]


def test_module_paths_have_their_own_widths(llama: Any) -> None:
    found = resolve(llama, ["model.layers.*.self_attn", "model.layers.1.mlp.up_proj", "lm_head"])
    assert [(h.name, h.width) for h in found] == [
        ("model.layers.0.self_attn", 32),
        ("model.layers.1.self_attn", 32),
        ("model.layers.1.mlp.up_proj", 48),
        ("model.layers.2.self_attn", 32),
        ("lm_head", 97),
    ]
    assert {h.side for h in found} == {"output"}


def test_a_star_stays_between_two_dots_and_two_stars_do_not(llama: Any) -> None:
    assert names(llama, "model.layers.*.input_layernorm") == [
        f"model.layers.{layer}.input_layernorm" for layer in range(3)
    ]
    with pytest.raises(HookpointError, match="No hookpoint"):
        names(llama, "model.*.input_layernorm")
    assert len(names(llama, "model.**.input_layernorm")) == 3


def test_a_name_wins_over_the_path_that_means_the_same(llama: Any) -> None:
    assert names(llama, "model.layers.1", "resid_post.1") == ["resid_post.1"]
    assert names(llama, "model.layers.1") == ["resid_post.1"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("resid_pots.1", r"Nearest: resid_post\.1"),
        ("resid_post.3", r"resid_post\.0 to resid_post\.2"),
        ("blocks.0.hook_resid_post", "There are embed, resid_pre"),
        ("model.layers.0.mlpp", r"Nearest: model\.layers\.0\.mlp\b"),
        ("attn_*", "No hookpoint 'attn_"),
        ("model.layers", "not reached"),
        ("model.rotary_emb", r"gives a tensor of shape \[1, 3, 8\]"),
        ("model", "gives BaseModelOutputWithPast"),
    ],
)
def test_what_does_not_exist_or_does_not_fit_is_refused(
    llama: Any, pattern: str, says: str
) -> None:
    with pytest.raises(HookpointError, match=says):
        resolve(llama, [pattern])


def test_nothing_asked_for_is_refused(llama: Any) -> None:
    with pytest.raises(HookpointError, match="No hookpoints were asked for"):
        resolve(llama, [])


def test_a_module_that_runs_several_times_is_refused() -> None:
    model = build("llama")
    model.model.layers[1].mlp.act_fn = model.model.layers[0].mlp.act_fn  # one module, two places
    with pytest.raises(HookpointError, match="runs 2 times"):
        resolve(model, ["model.layers.0.mlp.act_fn"])


def test_a_model_without_a_stack_says_which_lists_it_has() -> None:
    model = build("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(HookpointError, match=r"No stack of 7 blocks.*model\.layers \(3\)"):
        find_blocks(model)


def test_no_hook_is_left_behind(llama: Any) -> None:
    resolve(llama, ["resid_*.*", "model.layers.*.mlp"])
    with pytest.raises(HookpointError):
        resolve(llama, ["resid_post.0", "model.rotary_emb"])
    for module in llama.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_hidden_lists_of_other_lengths_do_not_mislead() -> None:
    model = build("llama")
    model.model.extra = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)])
    assert find_blocks(model) == "model.layers"
