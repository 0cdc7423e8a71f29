"""The stack of blocks chains in the traced graph; parallel lists of parts are not taken for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn

from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.names import available, resolve
from actlas.pipeline.model.config import build_skeleton, quiet, tower_of
from actlas.store.errors import HookpointError

WIDTH = 16


class Config:
    def __init__(self, n: int) -> None:
        self.num_hidden_layers = n

    def get_text_config(self) -> Config:
        return self

    def to_dict(self) -> dict[str, Any]:
        return {}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.linear(hidden_states)


class Model(nn.Module):
    """Lists of parts: ``mixers`` and ``mlps`` of each layer, and ``blocks`` if asked for."""

    def __init__(self, n: int, kind: str) -> None:
        super().__init__()
        self.config, self.kind = Config(n), kind
        self.embed = nn.Embedding(50, WIDTH)
        self.mixers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(n))
        self.mlps = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH * 8) for _ in range(n))
        self.blocks = nn.ModuleList(Block() for _ in range(n if kind != "parts" else 0))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.embed(input_ids)
        for layer in range(self.config.num_hidden_layers):
            hidden = hidden + self.mixers[layer](hidden)
            hidden = hidden + self.mlps[layer](hidden)[..., :WIDTH]
        for block in self.blocks:
            out = block(hidden_states=hidden) if self.kind == "named" else block(hidden)
            hidden = out * 0.5 if self.kind == "scaled" else out
        return hidden


@pytest.mark.parametrize("n", [1, 3])
def test_parallel_lists_of_parts_are_no_stack(n: int) -> None:
    with pytest.raises(HookpointError, match=f"No stack of {n} blocks .* the output of"):
        find_blocks(Model(n, "parts"))
    assert available(Model(n, "parts")) == ("embed",)


@pytest.mark.parametrize("kind", ["plain", "named"])
def test_a_list_that_chains_is_preferred_to_larger_ones(kind: str) -> None:
    for n in (1, 3):
        assert find_blocks(Model(n, kind)) == "blocks"


def test_what_changes_the_stream_between_blocks_breaks_the_chain() -> None:
    with pytest.raises(HookpointError, match=r"output of blocks\.0 is not the input of blocks\.1"):
        find_blocks(Model(3, "scaled"))


@pytest.mark.parametrize("model_type", ["xlm", "flaubert"])
def test_a_model_without_a_list_of_blocks_has_module_paths_alone(model_type: str) -> None:
    model = tiny_model(model_type)
    for each in (model, build_skeleton(model.config, type(model).__name__)):
        with pytest.raises(HookpointError, match="is not the input of"):
            resolve(each, ["resid_post.0"])
    [hookpoint] = resolve(model, ["layer_norm2.0"])
    ids = torch.tensor([[5, 9, 30, 44]])
    with torch.no_grad(), quiet(), Capture(model, [hookpoint]) as capture:
        hidden = model(ids, output_hidden_states=True).hidden_states
        assert torch.allclose(capture(ids)["layer_norm2.0"], hidden[1], atol=1e-5)


def test_a_layer_between_two_blocks_is_no_part_of_either() -> None:
    """DeBERTa's convolution lies behind its first block: transformers' hidden state is after it."""
    from support.architectures import TEXT, with_random_weights
    from transformers import AutoModel, DebertaV2Config

    sizes = {**TEXT, "num_key_value_heads": None}
    with quiet():
        config = DebertaV2Config(**sizes, conv_kernel_size=3, conv_act="gelu")
        model = with_random_weights(AutoModel, config)
    with pytest.raises(HookpointError, match=r"layer\.0 is not the input of encoder\.layer\.1"):
        resolve(model, ["resid_post.0"])


def test_maps_with_the_units_last_are_read_as_rows_of_units() -> None:
    """SAM's blocks give [image, row, column, unit], and no [image, unit, row, column]."""
    model = tiny_model("sam_vision_model")
    skeleton = build_skeleton(model.config, type(model).__name__)
    hookpoints = resolve(skeleton, ["resid_post.*"])
    assert {(h.width, h.layout) for h in hookpoints} == {(32, "positions")}
    pixels = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), quiet(), Capture(model, hookpoints) as capture:
        hidden = model(pixels, output_hidden_states=True).hidden_states
        found = capture(pixel_values=pixels, shape=(2, 4))
    for layer in range(len(hookpoints) - 1):
        truth = hidden[layer + 1]
        assert truth.shape == (2, 2, 2, 32)
        for row in range(2):
            for column in range(2):
                got = found[f"resid_post.{layer}"][:, 2 * row + column]
                assert torch.allclose(got, truth[:, row, column], atol=1e-5)


def test_a_configuration_may_have_a_field_for_a_tower_and_no_tower() -> None:
    from transformers import CLIPConfig, EmbeddingGemma2Config

    config = EmbeddingGemma2Config()
    assert config.vision_config is None and tower_of(config) is config
    assert type(tower_of(CLIPConfig())).__name__ == "CLIPVisionConfig"
