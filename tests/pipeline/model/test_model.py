"""A model is described without its weights, and loaded only when it is the one that was planned."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import build, config_of, save

from actlas.pipeline.forward.invariants import check_causal
from actlas.pipeline.forward.load import load_model
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model import compute_dtype
from actlas.pipeline.model.config import is_causal
from actlas.pipeline.model.describe import ModelDescription, describe_model, find_model
from actlas.pipeline.model.files import file_sha256, weight_files, weights_sha256
from actlas.pipeline.model.windows import check_windows
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ModelError


def describe(folder: Path | str, **options: Any) -> ModelDescription:
    return describe_model(PlanOptions(model=str(folder), corpus="none", **options))


@pytest.fixture
def copy(shared: Path, tmp_path: Path) -> Path:
    """A copy of the real small model that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (shared / "models" / "stories260K").iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_real_model_is_described_without_its_weights(
    shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shared / "models" / "stories260K"
    described = describe(folder)
    spec = described.spec
    assert (spec.architecture, spec.d_model, spec.n_layers) == ("LlamaForCausalLM", 64, 5)
    assert (spec.context_length, spec.causal, spec.compute_dtype) == (512, True, "float32")
    assert spec.config_sha256 == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    bytes_sha = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    line = f"{bytes_sha} model.safetensors\n".encode()
    assert spec.weights_sha256 == hashlib.sha256(line).hexdigest()
    assert described.n_parameters == 260_032
    assert all(parameter.is_meta for parameter in described.skeleton.parameters())
    assert described.tokenizer("Once")["input_ids"][0] == 1
    assert capfd.readouterr() == ("", "")


def test_it_loads_silently_ready_for_inference(
    shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = describe(shared / "models" / "stories260K").spec
    model = load_model(spec)
    assert not model.training
    assert model.dtype == torch.float32
    assert not model.config.use_cache
    assert load_model(spec, dtype="bfloat16").dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_the_weights_is_another_model(copy: Path) -> None:
    spec = describe(copy).spec
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="weights_sha256") as caught:
        load_model(spec)
    assert caught.value.details["field"] == "model.weights_sha256"


def test_another_configuration_is_another_model(copy: Path) -> None:
    spec = describe(copy).spec
    rewrite(copy / "config.json", rms_norm_eps=1e-6)
    with pytest.raises(ModelError, match="config_sha256"):
        find_model(spec)


def test_the_same_files_elsewhere_are_the_same_model(copy: Path, tmp_path: Path) -> None:
    spec = describe(copy).spec
    moved = copy.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="does not exist"):
        find_model(spec)
    assert find_model(spec, str(moved)) == moved


def test_sharded_weights_are_all_hashed(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "m", max_shard_size="20KB")
    files = weight_files(tmp_path / "m")
    assert len(files) > 1
    before = weights_sha256(files)
    assert weights_sha256(files[::-1]) == before
    spec = describe_without_tokenizer(tmp_path / "m")
    assert spec.weights_sha256 == before
    load_model(spec)
    files[-1].unlink()
    with pytest.raises(ModelError, match="1 are missing"):
        weight_files(tmp_path / "m")


def describe_without_tokenizer(folder: Path) -> Any:
    """The spec of a model that was saved without a tokenizer, which gets another's."""
    shared_tokenizer = Path(folder).parent / "tokenizer"
    if not shared_tokenizer.exists():
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(shared_tokenizer)
    return describe(folder, tokenizer=str(shared_tokenizer)).spec


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model.bin\)"):
        describe(copy)


def test_weights_that_lack_a_parameter_are_refused(copy: Path) -> None:
    """Transformers would fill the gap with random numbers."""
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    spec = describe(copy).spec
    with pytest.raises(ModelError, match=r"lack 1 parameters \(model.layers.3.mlp.up_proj"):
        load_model(spec)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    rewrite(copy / "config.json", intermediate_size=100)
    with pytest.raises(ModelError):
        load_model(describe(copy).spec)


def test_cut_weights_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="promises 1044992 bytes, the file has 1044892"):
        describe(copy)
    weights.write_bytes(b"{}")
    with pytest.raises(ModelError, match="expected a complete safetensors file"):
        describe(copy)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/no/such/folder", "does not exist"),
        ("./nothing", "does not exist"),
        ("nobody/no-such-model", "the hub provides none"),
        ("a b", "the hub provides none"),
    ],
)
def test_a_missing_model_says_what_was_tried(model: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        describe(model)
    assert "builtin:NAME" in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        describe(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        describe(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        describe(tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        describe(tmp_path / "config.json")


def test_a_revision_of_a_local_folder_is_refused(copy: Path) -> None:
    with pytest.raises(ModelError, match="only a hub model has revisions"):
        describe(copy, revision="main")


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        describe(tmp_path)


def test_code_from_a_repository_needs_a_word(copy: Path) -> None:
    rewrite(copy / "config.json", model_type="own", auto_map={"AutoConfig": "code.OwnConfig"})
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        describe(copy)


@pytest.mark.parametrize(
    ("stated", "asked", "computes"),
    [
        ("bfloat16", "auto", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
        (None, "auto", "float32"),
    ],
)
def test_what_computes(
    monkeypatch: pytest.MonkeyPatch, copy: Path, stated: str | None, asked: str, computes: str
) -> None:
    monkeypatch.setattr(compute_dtype, "product_slowdown", lambda _dtype: 0.5)
    rewrite(copy / "config.json", dtype=stated)
    assert describe(copy, model_dtype=asked).spec.compute_dtype == computes


def test_a_dtype_that_cannot_be_stored_needs_a_word(copy: Path) -> None:
    rewrite(copy / "config.json", dtype="float64")
    with pytest.raises(ModelError, match="model_dtype="):
        describe(copy)


@pytest.mark.parametrize(
    ("name", "architecture", "changes", "causal"),
    [
        ("llama", "LlamaForCausalLM", {}, True),
        ("llama", "LlamaModel", {}, True),
        ("gpt2", "GPT2LMHeadModel", {}, True),
        ("gpt2", "GPT2Model", {}, True),
        ("neox", "GPTNeoXForCausalLM", {}, True),
        ("bert", "BertModel", {}, False),
        ("bert", "BertForMaskedLM", {}, False),
        ("bert", "BertLMHeadModel", {"is_decoder": True}, True),
        ("roberta", "RobertaForMaskedLM", {}, False),
        ("modernbert", "ModernBertModel", {}, False),
        ("llama", "LlamaModel", {"is_causal": False}, False),
        ("gemma3", "Gemma3TextModel", {"use_bidirectional_attention": True}, False),
    ],
)
def test_which_models_look_back_only(
    name: str, architecture: str, changes: dict[str, Any], causal: bool
) -> None:
    assert is_causal(config_of(name, **changes), architecture) is causal


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_looking_back_only_is_seen_in_the_model_itself(name: str) -> None:
    model = build(name)
    hookpoints = resolve(model, ["resid_post.*"])
    if name == "bert":
        with pytest.raises(ModelError, match="earlier rows change"):
            check_causal(model, hookpoints)
    else:
        check_causal(model, hookpoints)


def test_windows_longer_than_positions_are_steady_are_refused() -> None:
    stretched = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    dynamic = config_of("llama", max_position_embeddings=40, rope_parameters=stretched)
    check_windows(dynamic, None, 40)
    with pytest.raises(ModelError, match="max_length=40"):
        check_windows(dynamic, None, 41)
    plain = config_of("llama")
    check_windows(plain, None, 10**6)
    with pytest.raises(ModelError, match="max_length=64"):
        check_windows(plain, 64, 65)


def test_bert_loads_without_its_pooler(tmp_path: Path) -> None:
    folder = save("bert", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    load_model(describe_without_tokenizer(folder))


def test_a_file_is_hashed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = file_sha256(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: (opened.append(self), real(self, *a, **k))[1]
    )
    assert file_sha256(file) == first
    assert opened == []
    state = file.stat()
    time.sleep(0.02)  # the file system's clock is that coarse
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_sha256(file) == hashlib.sha256(b"two").hexdigest()
