"""Every default configuration of transformers becomes a plausible plan, or one error of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.configurations import (
    check_plausible,
    default_configuration,
    kinds,
    outcome,
    place,
    plan_of,
)
from support.stores import plan_for, words_columns
from torch import nn

from actlas.pipeline.forward.cost.memory import batch_bytes
from actlas.pipeline.model.config import architecture_of, is_causal, modality_of, quiet, size_of
from actlas.pipeline.model.describe import describe_model, load_config
from actlas.pipeline.model.fields import size_field
from actlas.pipeline.model.windows import check_windows, context_length_of
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.dry_run import estimate
from actlas.store.errors import ActlasError, ConfigError, ModelError

PAGE = Path(__file__).parents[3] / "docs/configurations.md"
ODD = {
    "xlnet": "does not reach layer.0",  # max_position_embeddings is -1
    "longformer": "No module of this model gives one vector for each position",
    "t5": "is an encoder-decoder",
    "canine": "no residual stream",
    "bark": "expected a positive hidden_size",
    "rwkv": None,  # neither attention heads nor a context
    "ibert": None,  # an embedding of positions of its own class
    "gemma4_text": None,  # fields that differ from layer to layer
    "openai-gpt": None,
    "mamba": None,
}
"""Kinds whose configurations are unlike a Llama's, and what the refusal says."""


@pytest.mark.slow
def test_no_configuration_is_read_as_if_it_had_every_field(tmp_path: Path) -> None:
    columns = words_columns(0, 3, 5)
    plan = plan_for(columns, windows={"max_length": 300, "long": "window"})
    refused = planned = 0
    for kind in kinds():
        try:
            with quiet():
                default_configuration(kind, small=False).save_pretrained(tmp_path / kind)
        except Exception:  # noqa: BLE001 - transformers itself has no default
            continue
        try:
            config = load_config(tmp_path / kind)
            text, architecture = config.get_text_config(), architecture_of(config)
            width = size_of(text, "hidden_size", tmp_path)
            assert 0 < width < 1 << 20 and size_of(text, "num_hidden_layers", tmp_path) > 0
            length = context_length_of(text, nn.Module())
            assert length is None or length >= 1
            check_windows(config, length, min(length or 1024, 1024))
        except ActlasError:
            refused += 1
            continue
        planned += 1
        assert isinstance(is_causal(config, architecture), bool) and modality_of(config)
        for eager in (True, False):
            config._attn_implementation = "eager" if eager else "sdpa"
            for chunked in (True, False):
                assert 0 < batch_bytes(plan, config, 256, chunked_prefill=chunked) < 1 << 40
    assert planned > 300 and refused > 30


@pytest.mark.parametrize("kind", ODD)
def test_configurations_unlike_a_llama(kind: str) -> None:
    with place() as folder:
        found = outcome(kind, folder)
    assert (found.reason is None) == (ODD[kind] is None), found.reason
    assert ODD[kind] is None or str(ODD[kind]) in str(found.reason)


def test_the_page_lists_every_kind_once() -> None:
    page = PAGE.read_text()
    if f"transformers {transformers.__version__}," not in page:
        pytest.skip(f"the page is of another transformers than {transformers.__version__}")
    table = page[page.index("**Planned") :]
    assert sorted(re.findall(r"`([^`]+)`", table)) == kinds(), "run `make configurations`"
    planned = table[: table.index("| refused")]
    for kind, reason in ODD.items():
        assert (f"`{kind}`" in planned) == (reason is None), kind


@pytest.mark.parametrize("whole", [True, False])
def test_an_encoder_of_t5_is_planned_as_the_encoder_alone(whole: bool) -> None:
    config = transformers.T5Config(num_layers=2, d_model=64, is_encoder_decoder=whole)
    config.architectures = ["T5EncoderModel"]
    with quiet():
        oracle = transformers.T5EncoderModel(config)
    with place() as folder:
        found = plan_of(config, folder)
        check_plausible(found)
        assert found.settings.model.n_parameters == oracle.num_parameters()
        assert not found.plan.model.causal
        config.architectures = ["T5Model"]
        with pytest.raises(ModelError, match="reads two sequences"):
            plan_of(config, folder)


def test_windows_of_ibert_leave_out_its_padding(tmp_path: Path) -> None:
    config = transformers.IBertConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2)
    with place() as folder:
        found = plan_of(config, folder)
    n_positions, padding = config.max_position_embeddings, config.pad_token_id
    assert found.plan.windows.max_length == n_positions - padding - 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "attention heads"),
    ],
)
def test_strict_configurations_of_the_hub_are_errors_of_ours(
    tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    about = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **values}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="configuration of") as caught:
        load_config(tmp_path)
    assert says in str(caught.value)


def test_a_device_that_is_not_there_is_refused_before_planning(tmp_path: Path) -> None:
    asked = PlanOptions(model=str(tmp_path / "none"), corpus="none")
    with pytest.raises(ConfigError, match='device="cuda:77"'):
        estimate(asked, device="cuda:77")


FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "adapter": (
        {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "org/base"}},
        r"an adapter of peft \(LORA\) for org/base, without the model",
    ),
    "mistral": (
        {"params.json": {}, "tekken.json": {}, "consolidated.safetensors": {}},
        r"Mistral's own format \(consolidated.safetensors, params.json, tekken.json\)",
    ),
    "tekken": ({"tekken.json": {}}, r"Mistral's own format \(tekken.json\)"),
    "diffusers": ({"model_index.json": {}}, "a pipeline of diffusers"),
    "gguf": ({"model-Q4.gguf": {}}, r"only weights for GGUF \(llama.cpp\)"),
    "variant": (
        {"config.json": {"model_type": "llama"}, "model.fp16.safetensors": {}},
        r"only the weights of a variant, fp16 \(model.fp16.safetensors\)",
    ),
    "variants": (
        {"config.json": {"model_type": "llama"}, "model.fp16-00001-of-00002.safetensors": {}},
        "only the weights of a variant, fp16",
    ),
    "adapter-weights": (
        {"config.json": {"model_type": "llama"}, "adapter_model.safetensors": {}},
        "only the weights of an adapter",
    ),
    "consolidated": (
        {"config.json": {"model_type": "llama"}, "consolidated.safetensors": {}},
        r"only weights of other names \(consolidated.safetensors\)",
    ),
    "tensorflow": (
        {"config.json": {"model_type": "llama"}, "tf_model.h5": {}},
        r"only weights for TensorFlow \(tf_model.h5\)",
    ),
    "nothing": ({"config.json": {"model_type": "llama"}}, "holds no weights"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    files, says = FOLDERS[name]
    for file, value in files.items():
        (tmp_path / file).write_text(json.dumps(value))
    with pytest.raises(ModelError, match=says):
        describe_model(PlanOptions(model=str(tmp_path), corpus="none"), None, "cpu")


def test_a_size_is_read_as_what_it_is() -> None:
    class Config:
        absent, unlimited, of_layers, flag, words = None, -1, [3, 5], True, ["a"]

    fields = ("missing", "absent", "unlimited", "flag", "words")
    assert [size_field(Config, name) for name in fields] == [None] * 5
    assert size_field(Config, "unlimited", "of_layers") == 5
