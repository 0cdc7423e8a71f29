"""A resumed run takes only the folder that was planned with; older stores still resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from actlas.jobs.cli.app import cli
from actlas.pipeline.plan import make
from actlas.store.ledger.model_files import MODEL_FILES_COPY_KEY, MODEL_FILES_KEY
from actlas.store.store import open_store
from actlas.store.verify.verify import verify

FIXTURE = Path(__file__).parents[2] / "compatibility/fixture"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with files that are not read, and a corpus beside it."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURE / "model", folder, copy_function=shutil.copyfile)
    (folder / "README.md").write_text("read by people")
    (folder / "tekken.json").write_text("{}")
    shutil.copyfile(FIXTURE / "corpus.jsonl", tmp_path / "corpus.jsonl")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def planned(folder: Path, *more: object) -> Path:
    store = folder.parent / "run.zarr"
    corpus = folder.parent / "corpus.jsonl"
    found = run("plan", store, "--model", folder, "--corpus", corpus, "--max-length", 16, *more)
    assert found.exit_code == 0, found.output
    return store


def files(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "generation_config.json": append,
    "tokenizer.json": append,
    "tokenizer_config.json": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "padding_side": "left"})
    ),
    "chat_template.jinja": Path.unlink,
    "adapter_config.json": lambda path: path.write_text('{"peft_type": "LORA"}'),
    "special_tokens_map.json": lambda path: path.write_text("{}"),
    "tekken.json": append,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_refused_by_name_before_anything_is_written(
    folder: Path, name: str
) -> None:
    store = planned(folder)
    before = files(store)
    CHANGES[name](folder / name)
    found = run("extract", store, "--device", "cpu")
    assert found.exit_code == 2 and name in found.output
    assert files(store) == before


@pytest.mark.slow
def test_a_file_that_is_not_read_may_change(folder: Path) -> None:
    store = planned(folder)
    append(folder / "README.md")
    assert run("extract", store, "--device", "cpu").exit_code == 0
    assert verify(open_store(store), full=True).ok


def test_the_plan_names_what_is_pinned_and_what_is_ignored(folder: Path) -> None:
    corpus = folder.parent / "corpus.jsonl"
    found = run("plan", folder.parent / "x", "--model", folder, "--corpus", corpus, "--verbose")
    lines = {line.split()[0]: line for line in found.output.splitlines() if line.strip()}
    assert "generation_config.json" in lines["pinned"] and "tekken.json" in lines["pinned"]
    assert lines["ignored"].endswith("not read: README.md")


def test_a_tokenizer_of_another_folder_is_pinned_too(folder: Path) -> None:
    other = folder.parent / "tokenizer"
    shutil.copytree(folder, other)
    store = planned(folder, "--tokenizer", other)
    append(other / "tokenizer.json")
    found = run("extract", store, "--device", "cpu")
    assert found.exit_code == 2 and "tokenizer.json was changed" in found.output
    shutil.rmtree(other)  # its tokens are in the store: a run does not need it
    assert run("extract", store, "--device", "cpu").exit_code == 0


def test_a_store_that_was_planned_without_the_record_resumes_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = make.create
    with monkeypatch.context() as patched:
        patched.setattr(make, "create", lambda *given: create(*given[:4]))
        store = planned(folder)
    assert not (store / MODEL_FILES_KEY).exists()
    append(folder / "generation_config.json")
    found = run("extract", store, "--device", "cpu")
    assert found.exit_code == 0 and "generation_config.json" in found.output
    assert verify(open_store(store), full=True).ok


@pytest.mark.parametrize("key", [MODEL_FILES_KEY, MODEL_FILES_COPY_KEY])
def test_a_damaged_record_is_restored(folder: Path, key: str) -> None:
    store = planned(folder)
    whole = (store / key).read_bytes()
    (store / key).write_bytes(whole[:-9])
    assert [d.key for d in verify(open_store(store), full=True).damages] == [key]
    append(folder / "tekken.json")
    assert "tekken.json" in run("extract", store, "--device", "cpu").output
    assert run("repair", store).exit_code == 0
    assert (store / key).read_bytes() == whole
