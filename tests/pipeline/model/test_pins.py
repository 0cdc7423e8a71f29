"""Every file that loading opens is pinned or refused; the oracle is the kernel's list of opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.models import build
from support.opened_files import opened_files
from support.vision import save_llava, save_vision
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from actlas.pipeline.model import pins
from actlas.pipeline.model.config import quiet
from actlas.pipeline.model.describe import describe_model, find_model
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ModelError
from actlas.store.format.schema import FolderFiles

FIXTURE = Path(__file__).parents[2] / "compatibility/fixture/model"
IGNORED = ("README.md", "model.fp16.safetensors", "optimizer.pt", "pytorch_model.bin", "runs/")
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
from .part import SCALE
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def rewrite(path: Path, **changes: Any) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **changes}))


def plain(folder: Path) -> None:
    """A Llama with a tokenizer.json, a chat template and a generation configuration."""
    shutil.copytree(FIXTURE, folder, copy_function=shutil.copyfile)


def sharded(folder: Path) -> None:
    """Weights in shards with an index, more chat templates, and the older files of tokens."""
    plain(folder)
    (folder / "model.safetensors").unlink()
    build("llama", vocab_size=384).save_pretrained(folder, max_shard_size="20KB")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tools.jinja").write_text("tools")
    rewrite(folder / "special_tokens_map.json", bos_token="<s>")
    rewrite(folder / "added_tokens.json", **{"<more>": 383})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def versioned(folder: Path) -> None:
    """A configuration and a tokenizer of which there are files for several versions."""
    plain(folder)
    shutil.copyfile(folder / "config.json", folder / "config.4.0.0.json")
    shutil.copyfile(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    rewrite(folder / "config.json", configuration_files=["config.4.0.0.json"])
    rewrite(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])


def merges(folder: Path) -> None:
    """A GPT-2 with vocab.json and merges.txt, without a tokenizer.json."""
    build("gpt2").save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")


def words(folder: Path) -> None:
    """A BERT with vocab.txt, without a tokenizer.json."""
    build("bert").save_pretrained(folder)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    )


def pieces(folder: Path) -> None:
    """An ALBERT with a model of SentencePiece, without a tokenizer.json."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    folder.mkdir()
    config = transformers.AlbertConfig(
        vocab_size=40, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=8
    )
    transformers.AlbertModel(config).save_pretrained(folder)
    (folder.parent / "text").write_text("the hare leaves the mill before noon\n" * 9)
    trainer.train(
        input=str(folder.parent / "text"),
        model_prefix=str(folder / "spiece"),
        vocab_size=22,
        user_defined_symbols=["<pad>", "[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
        num_threads=1,
    )


def code(folder: Path) -> None:
    """A model whose classes come with it, from two files, and its own way to generate."""
    plain(folder)
    (folder / "part.py").write_text("SCALE = 1\n")
    (folder / "own.py").write_text(CODE)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text("def generate(model, **more): ...\n")
    rewrite(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )


def images(folder: Path) -> None:
    """A model of images, with its processor."""
    save_vision("vit", folder)


def mixed(folder: Path) -> None:
    """A model of texts with images, with its processor."""
    save_llava(folder)


KINDS: tuple[Callable[[Path], None], ...] = (
    *(plain, sharded, versioned, merges, words, pieces, code, images, mixed),
)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model's folder of each kind, with files that no loading reads."""
    place: Path = tmp_path / request.param.__name__
    request.param(place)
    for name in IGNORED:
        if name.endswith("/"):
            (place / name).mkdir()
        else:
            (place / name).write_bytes(b"not read")
    (place / "runs/events.json").write_text("{}")
    return place


def pinned(folder: Path) -> FolderFiles:
    options = PlanOptions(model=str(folder), corpus="x", trust_remote_code=folder.name == "code")
    return describe_model(options, lambda: True, "cpu").files.model


def load_all(folder: Path) -> None:
    """Load configuration, tokenizer, processor and weights with transformers alone."""
    more: dict[str, Any] = {"trust_remote_code": folder.name == "code"}
    with quiet(), torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.from_pretrained(folder, **more)
        if folder.name == "mixed":
            transformers.AutoModelForImageTextToText.from_pretrained(folder, **more)
            transformers.AutoProcessor.from_pretrained(folder, **more)
            return
        if folder.name == "images":
            transformers.AutoModel.from_pretrained(folder, **more)
            transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **more)
            return
        head = str((config.architectures or [""])[0]).endswith(("ForCausalLM", "LMHeadModel"))
        loader = transformers.AutoModelForCausalLM if head else transformers.AutoModel
        loader.from_pretrained(folder, **more)
        transformers.AutoTokenizer.from_pretrained(folder, **more)


def test_every_file_that_loading_opens_is_pinned(folder: Path) -> None:
    files = pinned(folder)
    with opened_files(folder) as opened:
        load_all(folder)
    assert len(opened) > 2
    assert opened <= files.read.keys(), opened - files.read.keys()
    left = {*IGNORED} - ({"runs/"} if folder.name == "code" else set())  # code may read it
    assert left == {*files.ignored}


def test_a_change_of_any_pinned_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    sharded(folder)
    described = describe_model(PlanOptions(model=str(folder), corpus="x"), None, "cpu")
    spec, files = described.spec, described.files.model
    assert find_model(spec, None, files) == folder
    for name in files.read:
        data = (folder / name).read_bytes()
        for other in (None, data + b" "):
            (folder / name).unlink()
            if other is not None and not name.endswith(".safetensors"):
                (folder / name).write_bytes(other)
            with pytest.raises(ModelError, match=Path(name).name):
                find_model(spec, None, files)
            (folder / name).write_bytes(data)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json was not there") as caught:
        find_model(spec, None, files)
    assert caught.value.details["files"] == ["adapter_config.json"]


def test_weights_alone_are_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    plain(folder)
    described = describe_model(PlanOptions(model=str(folder), corpus="x"), None, "cpu")
    for path in folder.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            path.unlink()
    assert find_model(described.spec, None, described.files.model) == folder


def test_a_file_that_was_ignored_when_planned_is_no_new_one() -> None:
    """A later version may read more names."""
    before = FolderFiles(id="x", read={"config.json": "0" * 64}, ignored=("more.json",))
    now = FolderFiles(id="x", read={"config.json": "0" * 64, "more.json": "1" * 64})
    assert pins.differences(before, now) == []


@pytest.mark.slow
def test_every_name_of_transformers_counts_as_read() -> None:
    """The names of its tokenizers' files, and of further weights of its configurations."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    classes = [c for c in TOKENIZER_MAPPING.values() if c is not None]
    names = {str(n) for c in classes for n in getattr(c, "vocab_files_names", {}).values() if n}
    assert len(names) > 10
    unread = {name for name in names if not pins._is_read(name, (), False)}
    assert not unread
    extra = {name for c in CONFIG_MAPPING.values() for name in c.extra_files}
    assert extra <= {*pins.EXTRA_WEIGHTS}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "adapter_config.json",
            {"peft_type": "LORA", "base_model_name_or_path": "meta/base"},
            r"an adapter of peft \(LORA\) for meta/base.*merge_and_unload",
        ),
        ("shard-00000-model-00001-of-00002.safetensors", {}, "distributed checkpoint"),
        ("config.json", {"transformers_weights": "other.safetensors"}, r"other\.safetensors"),
        ("config.json", {"auto_map": {"AutoModel": "a/b--own.Own"}}, "code of another repository"),
    ],
)
def test_what_would_be_loaded_beside_or_instead_is_refused(
    tmp_path: Path, name: str, content: dict[str, Any], says: str
) -> None:
    folder = tmp_path / "plain"
    plain(folder)
    rewrite(folder / name, **content)
    code = "auto_map" in content
    with pytest.raises(ModelError, match=says):
        describe_model(PlanOptions(model=str(folder), corpus="x", trust_remote_code=code))


def test_a_kernel_in_a_versioned_configuration_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "versioned"
    versioned(folder)
    rewrite(folder / "config.4.0.0.json", attn_implementation="owner/kernel")
    with pytest.raises(ModelError, match=r"config\.4\.0\.0\.json: attn_implementation"):
        describe_model(PlanOptions(model=str(folder), corpus="x"))
