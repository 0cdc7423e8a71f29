"""Models, corpora and configurations that a stranger made: nothing of theirs runs unasked."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.models import documents, plan_store, save

from actlas.jobs.cli.app import cli
from actlas.jobs.config import read_file
from actlas.pipeline.corpus import readers
from actlas.pipeline.corpus.formats import streams
from actlas.pipeline.corpus.formats.base import TOO_LONG
from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.model.describe import load_config, load_tokenizer
from actlas.pipeline.model.files import file_sha256, weight_files
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ConfigError, ModelError
from actlas.store.store import open_store

CODE = """
from pathlib import Path
Path({marker!r}).write_text("this ran")
from transformers import LlamaConfig, LlamaForCausalLM
class C(LlamaConfig):
    model_type = "stranger"
class M(LlamaForCausalLM):
    config_class = C
"""


def reseal(store: Path, **model: Any) -> None:
    """Change the plan's model, as somebody who can compute a sha256 does."""
    record = json.loads((store / "ledger/plan.json").read_bytes())["record"]
    record["plan"]["model"].update(model)
    body = json.dumps(record).encode()
    seal = hashlib.sha256(body).hexdigest().encode()
    for name in ("plan.json", "plan.copy.json"):
        (store / "ledger" / name).unlink(missing_ok=True)
        (store / "ledger" / name).write_bytes(b'{"record":%s,"sha256":"%s"}\n' % (body, seal))


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A store whose plan asks for remote code, the model with that code, what it would write."""
    marker, model = tmp_path / "ran", save("llama", tmp_path / "model")
    store = tmp_path / "run.zarr"
    plan_store(store, model, documents([5, 9, 3]), ["resid_post.0"])
    (model / "theirs.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((model / "config.json").read_bytes())
    config["model_type"] = "stranger"
    config["auto_map"] = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}
    (model / "config.json").write_text(json.dumps(config))
    changed = file_sha256(model / "config.json")
    reseal(store, trust_remote_code=True, config_sha256=changed)
    return store, model, marker


def test_a_plan_alone_runs_no_code(trap: tuple[Path, Path, Path]) -> None:
    store, model, marker = trap
    for more in ([], ["--model", str(model)], ["--no-allow-remote-code"], ["--workers", "1"]):
        done = CliRunner().invoke(cli, ["extract", str(store), "--device", "cpu", *more])
        assert done.exit_code == 2 and "--allow-remote-code" in done.output, done.output
        assert not marker.exists()
    with pytest.raises(ConfigError, match="with your rights"):
        Extractor(open_store(store), RunOptions(device="cpu"))
    for verb in (["info"], ["status"], ["verify"], ["show", "--doc", "0"]):
        CliRunner().invoke(cli, [verb[0], str(store), *verb[1:]])
    assert not marker.exists()


@pytest.mark.parametrize("word", ["--allow-remote-code", "--trust-remote-code"])
def test_the_control_asked_for_it_runs(trap: tuple[Path, Path, Path], word: str) -> None:
    store, _, marker = trap
    reseal(store, trust_remote_code=True)
    done = CliRunner().invoke(cli, ["extract", str(store), "--device", "cpu", word])
    assert marker.exists(), done.output


def test_a_plan_that_does_not_ask_runs_none(trap: tuple[Path, Path, Path]) -> None:
    store, _, marker = trap
    reseal(store, trust_remote_code=False)
    done = CliRunner().invoke(cli, ["extract", str(store), "--allow-remote-code"])
    assert done.exit_code == 2 and not marker.exists(), done.output


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_implementation", "stranger/kernel"),
        ("_attn_implementation", "stranger/kernel@main:forward"),
        ("attn_implementation", {"": "stranger/kernel"}),
        ("experts_implementation", "stranger/kernel"),
        ("text_config", {"attn_implementation": "stranger/kernel"}),
        ("vision_configs", [{"attn_implementation": "paged|stranger/kernel"}]),
    ],
)
def test_code_of_the_hub_that_a_configuration_names(
    tmp_path: Path, field: str, value: object
) -> None:
    """transformers would download and run it, where its package ``kernels`` is installed."""
    folder = save("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ModelError, match="code on the hub"):
        load_config(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_of_weights_names_no_file_elsewhere(tmp_path: Path, name: object) -> None:
    folder = save("llama", tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names of files next to it"):
        weight_files(folder)


def test_a_chat_template_stays_in_its_sandbox(tmp_path: Path) -> None:
    from actlas.pipeline.corpus.chat import Chat
    from actlas.pipeline.corpus.formats.base import Unreadable

    tokenizer = load_tokenizer("builtin:actlas-6m")
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% set _ = messages.append(1) %}",
    ):
        tokenizer.chat_template = template
        found = Chat(tokenizer, "x").format([{"role": "user", "content": "hi"}])
        assert isinstance(found, Unreadable), (template, found)


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz"])
def test_a_small_file_of_one_endless_line(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1 << 20)
    body = b'{"text": "' + bytes(192 << 20) + b'"}\n{"text": "next"}\n'
    packed = zstandard.compress(body) if suffix.endswith("zst") else gzip.compress(body, 1)
    assert len(packed) < 1 << 20
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(packed)
    del body
    tracemalloc.start()
    found = [record for _, record in readers.read_records(path)]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [TOO_LONG, {"text": "next"}]
    assert most < 100 << 20  # what 1 KiB of the packed file can stand for, twice


def test_a_configuration_of_few_lines_and_many_values(tmp_path: Path) -> None:
    lines = ["plan:", "  model:", "    - &a0 [x, x]"]
    lines += [f"    - &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path = tmp_path / "run.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases"):
        read_file(path)
    for body in ("plan: !!python/object/apply:os.system ['id']", "[" * 500):
        path.write_text(body)
        with pytest.raises(ConfigError):
            read_file(path)
