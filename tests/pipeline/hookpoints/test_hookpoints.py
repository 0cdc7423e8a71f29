"""Names of places: found by structure in many architectures, with their widths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.models import CONFIGS, build, config_of

from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.names import available, resolve
from actlas.pipeline.model.config import build_skeleton
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
    found = resolve(model, ["embed", "resid_p*.*"])
    named = [name for name in available(model) if name.startswith(("embed", "resid_p"))]
    assert [h.name for h in found] == named
    assert named == ["embed"] + [
        f"resid_{side}.{layer}" for layer in range(3) for side in ("pre", "post")
    ]
    assert {h.width for h in found[1:]} == {32}
    assert found[0].width == (16 if name == "opt" else 32)


def test_the_meta_device_gives_what_a_real_model_gives() -> None:
    patterns = ["embed", "*.*", "model.layers.*.mlp.up_proj"]
    assert resolve(skeleton("llama"), patterns) == resolve(build("llama"), patterns)


def test_middle_last_and_globs(llama: Any) -> None:
    assert names(llama, "resid_post.middle", "resid_post.last") == ["resid_post.1", "resid_post.2"]
    assert names(llama, "resid_*.middle") == ["resid_pre.1", "resid_mid.1", "resid_post.1"]
    assert names(llama, "resid_*.0") == ["resid_pre.0", "resid_mid.0", "resid_post.0"]
    assert names(llama, "mlp_*.last") == ["mlp_hidden.2", "mlp_out.2"]
    assert names(llama, "attn_?.middle", "attn_out.last") == ["attn_z.1", "attn_out.2"]
    assert names(llama, "resid_pre.?") == ["resid_pre.0", "resid_pre.1", "resid_pre.2"]


def test_model_order_whatever_the_order_asked_for_and_each_once(llama: Any) -> None:
    gate = "model.layers.0.mlp.gate_proj"
    asked = ["lm_head", "resid_post.0", "attn_out.0", gate, "resid_*.0", "embed", "resid_post.0"]
    assert names(llama, *asked) == [
        "embed",
        "resid_pre.0",
        "attn_out.0",
        "resid_mid.0",
        gate,
        "resid_post.0",
        "lm_head",
    ]


def test_all_names_come_in_the_order_of_the_pass(llama: Any) -> None:
    kinds = ("resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post")
    expected = ["embed", *(f"{kind}.{layer}" for layer in range(3) for kind in kinds)]
    assert list(available(llama)) == expected
    widths = {h.name: h.width for h in resolve(llama, ["*.1"])}
    assert widths == {f"{kind}.1": 48 if kind == "mlp_hidden" else 32 for kind in kinds}


def test_module_paths_have_their_own_widths(llama: Any) -> None:
    found = resolve(llama, ["model.layers.*.*.k_proj", "model.layers.1.mlp.up_proj", "lm_head"])
    assert [(h.name, h.width) for h in found] == [
        ("model.layers.0.self_attn.k_proj", 16),
        ("model.layers.1.self_attn.k_proj", 16),
        ("model.layers.1.mlp.up_proj", 48),
        ("model.layers.2.self_attn.k_proj", 16),
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
    assert names(llama, "model.layers.0.self_attn", "model.layers.0.mlp") == [
        "attn_out.0",
        "mlp_out.0",
    ]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("resid_pots.1", r"Nearest: resid_post\.1"),
        ("resid_post.3", r"resid_post\.0 to resid_post\.2"),
        ("blocks.7.hook_resid_post", r"No hookpoint 'resid_post\.7'.*resid_post\.0 to resid_post"),
        ("blocks.0.attn.hook_q", "'blocks.0.attn.hook_q' is a name of TransformerLens"),
        ("model.layers[0].output[1]", "got part '1' of the module's output"),
        ("model.layers[9].output", r"No hookpoint 'model\.layers\[9\]"),
        ("model.layers.0.mlpp", r"Nearest: model\.layers\.0\.mlp\b"),
        ("attn_*", "No hookpoint 'attn_"),
        ("model.layers", "not reached"),
        (
            "model.rotary_emb",
            r"output of module model.rotary_emb is a tensor of shape \[1, \d+, 8\]",
        ),
        ("model", "the output of module model is BaseModelOutputWithPast"),
    ],
)
def test_what_does_not_exist_or_does_not_fit_is_refused(
    llama: Any, pattern: str, says: str
) -> None:
    with pytest.raises(HookpointError, match=says):
        resolve(llama, [pattern])


def test_names_of_transformer_lens_and_nnsight_are_answered_with_ours(llama: Any) -> None:
    assert names(llama, "blocks.*.hook_resid_post", "hook_embed", "blocks.1.attn.hook_z") == [
        "embed",
        "resid_post.0",
        "attn_z.1",
        "resid_post.1",
        "resid_post.2",
    ]
    for path in ("model.layers[1].output[0]", "model.model.layers[1]", "model.layers[-2].output"):
        assert names(llama, path) == ["resid_post.1"], path
    assert names(llama, "model.layers[1].input", "model.layers[1].mlp.down_proj.input") == [
        "resid_pre.1",
        "mlp_hidden.1",
    ]
    assert names(llama, "model.layers[0].self_attn.k_proj.output") == [
        "model.layers.0.self_attn.k_proj"
    ]
    with pytest.raises(
        HookpointError, match=r"No hookpoint 'model\.layers\[1\]\.mlp\.up_proj\.input'"
    ):
        names(llama, "model.layers[1].mlp.up_proj.input")


def test_nothing_asked_for_is_refused(llama: Any) -> None:
    with pytest.raises(HookpointError, match="No hookpoints were given"):
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


class Ones(torch.nn.Module):
    """Attention, in names that say something else."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(24, 72)
        self.router = torch.nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        query, key, value = self.up_proj(x).chunk(3, dim=-1)
        scores = (query @ key.transpose(1, 2)).softmax(-1)
        return (self.router(scores @ value),)


class Twos(torch.nn.Module):
    """An MLP, likewise, with a sum and a softmax of its own in it."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(24, 40)
        self.k_proj = torch.nn.Linear(24, 40)
        self.o_proj = torch.nn.Linear(40, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(self.q_proj(x).softmax(-1) + self.k_proj(x))


class Odd(torch.nn.Module):
    """A block whose modules' names mislead."""

    def __init__(self, attention_first: bool) -> None:
        super().__init__()
        self.attention_first = attention_first
        self.mlp, self.self_attn = Ones(), Twos()
        self.norm_out, self.norm_in = torch.nn.LayerNorm(24), torch.nn.LayerNorm(24)
        self.shared = torch.nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.attention_first:
            x = self.shared(self.mlp(self.norm_out(x))[0]) + x
            return x + self.shared(self.self_attn(self.norm_in(x)))
        x = x + self.shared(self.self_attn(self.norm_in(x)))
        return self.shared(self.mlp(self.norm_out(x))[0]) + x


class OddModel(torch.nn.Module):
    """Two such blocks behind an embedding."""

    def __init__(self, attention_first: bool) -> None:
        super().__init__()
        text = SimpleNamespace(num_hidden_layers=2, to_dict=dict)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.tokens = torch.nn.Embedding(50, 24)
        self.things = torch.nn.ModuleList([Odd(attention_first) for _ in range(2)])
        self.decoys = torch.nn.ModuleList([torch.nn.LayerNorm(24) for _ in range(2)])

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.tokens

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(input_ids)
        for thing in self.things:
            x = thing(x)
        return self.decoys[1](self.decoys[0](x))


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("attention_first", [True, False])
def test_parts_are_found_by_what_they_do(attention_first: bool, device: str) -> None:
    model = OddModel(attention_first).to(device).eval()
    found = {h.name: (h.module, h.side, h.width) for h in resolve(model, ["*.1"])}
    second = "norm_in" if attention_first else "norm_out"
    assert found == {
        "resid_pre.1": ("things.1", "input", 24),
        "attn_z.1": ("things.1.mlp.router", "input", 24),
        "attn_out.1": ("things.1.mlp", "output", 24),
        "resid_mid.1": (f"things.1.{second}", "input", 24),
        "mlp_hidden.1": ("things.1.self_attn.o_proj", "input", 40),
        "mlp_out.1": ("things.1.self_attn", "output", 24),
        "resid_post.1": ("things.1", "output", 24),
    }
