"""Real models through the real extractor: whatever runs it, the rows are the same."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.jobs import options
from support.models import build, documents, expected, plan_store, save, worst
from support.workers import open_together

import actlas
from actlas.jobs.cli.app import cli
from actlas.jobs.run.run import run_extraction
from actlas.jobs.run.worker import open_worker
from actlas.store.errors import EXIT_DONE, ActlasError, ConfigError, ModelError, PlanMismatchError
from actlas.store.store import Store
from actlas.store.verify.verify import verify

pytestmark = pytest.mark.slow

LENGTHS = [0, 1, 5, 200, 17, 33, 16, 15, 64, 2, 90, 31] * 3
HOOKPOINTS = ["resid_post.0", "resid_post.2"]


def planned(folder: Path) -> Store:
    model = folder / "model"
    if not model.exists():
        save("llama", model)
    return plan_store(folder / "run.zarr", model, documents(LENGTHS), HOOKPOINTS)


def by_token(store: Store, hookpoint: str) -> np.ndarray:
    rows = store.row_of(np.arange(store.plan.n_tokens, dtype=np.int64))
    return store.activations[hookpoint][:][rows]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = planned(tmp_path_factory.mktemp("inline"))
    outcome = run_extraction(store, options(tokens_per_batch=999, threads=1), open_worker)
    assert outcome.exit_code == EXIT_DONE
    return store


def test_ray_gives_what_inline_gives(ray_started: None, inline: Store, tmp_path: Path) -> None:
    ray = planned(tmp_path)
    outcome = run_extraction(ray, options("ray", workers=2, tokens_per_batch=64), open_together)
    assert outcome.exit_code == EXIT_DONE
    assert "of the bare forward pass" not in outcome.line, "too little was measured"
    for name in ("token_id", "doc_idx", "pos_idx"):
        for shard in range(inline.plan.n_shards):
            key = f"rows/{name}/c/{shard}"
            assert inline.objects.read(key) == ray.objects.read(key)
    truth = expected(inline, build("llama"), HOOKPOINTS)
    for hookpoint in HOOKPOINTS:
        assert worst(by_token(inline, hookpoint), truth[hookpoint]) < 1e-4
        assert worst(by_token(ray, hookpoint), truth[hookpoint]) < 1e-4
    assert verify(ray, full=True).ok
    receipt = ray.receipt(0)
    assert (receipt.run["executor"], receipt.run["workers"]) == ("ray", 2)
    at_work = {ray.receipt(shard).attempt.split(":")[1] for shard in range(ray.plan.n_shards)}
    logs = [path.name for path in (Path(ray.path) / "ledger/logs").glob("*-worker.jsonl")]
    assert len(logs) == 2
    assert all(any(f"-{pid}-" in name for name in logs) for pid in at_work), logs


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_another_model_is_refused(
    executor: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_started")
    store = planned(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"sha256|weights"):
        run_extraction(store, options(executor), open_worker)
    assert store.done() == frozenset()


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_model_that_moved(executor: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_started")
    path = planned(tmp_path).path
    model, moved = tmp_path / "model", tmp_path / "elsewhere"
    save("gpt2", tmp_path / "other")
    model.rename(moved)
    asked = {"executor": executor, "device": "cpu"}
    with pytest.raises(ModelError, match="does not exist"):
        actlas.extract(path, **asked)
    with pytest.raises(PlanMismatchError, match="planned with model"):
        actlas.extract(path, model=str(tmp_path / "other"), **asked)
    with pytest.raises(ModelError, match="is not the model that the plan names"):
        actlas.extract(path, model_path=str(tmp_path / "other"), **asked)
    store = actlas.extract(path, model=str(moved), **asked)
    assert store.missing() == []


def test_a_model_that_moved_by_its_path_alone(tmp_path: Path) -> None:
    path = planned(tmp_path).path
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    moved = str(tmp_path / "elsewhere")
    store = actlas.extract(path, model_path=moved, executor="inline", device="cpu")
    assert store.missing() == []


def test_from_python(tmp_path: Path) -> None:
    path = planned(tmp_path).path
    store = actlas.extract(path, seed=7, device="cpu", overrides=["run.tokens_per_batch=512"])
    assert store.missing() == []
    assert verify(store, full=True).ok
    with pytest.raises(ConfigError, match=r"unknown option 'sead'\. Did you mean seed"):
        actlas.extract(path, sead=7)
    with pytest.raises(ActlasError, match="planned with seed = 7, now asked for 8"):
        actlas.extract(path, seed=8)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents with and without text, short and long."""
    texts = ["Once upon a time, there was a cat. " * n for n in (1, 3, 0, 200, 7, 40)] * 4
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def request_of(shared: Path, corpus: Path) -> list[str]:
    return ["--model", str(shared / "models/stories260K"), "--corpus", str(corpus)]


def test_the_whole_life_of_a_store(
    ray_started: None, shared: Path, corpus: Path, tmp_path: Path
) -> None:
    path, request = tmp_path / "run.zarr", request_of(shared, corpus)
    dry = call("plan", path, *request, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "nothing was written" in dry.stdout
    assert not path.exists()
    made = call("plan", path, *request, "--hookpoints", "resid_post.middle,resid_post.last")
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("planned: 24 documents, ")
    assert call("plan", path, *request).stdout.startswith("planned already: 24 documents, ")
    done = call("extract", path, *request, "--executor", "ray", "--workers", "2")
    assert done.exit_code == 0, done.output
    assert " rows x 2 hookpoints, " in done.stdout
    assert done.stdout.endswith(f"-> next: actlas verify {path}\n")
    assert call("verify", path, "--full").exit_code == 0
    assert "resid_post.4" in call("info", path).stdout
    shown = call("show", path, "--doc", "0", "--pos", "1")
    assert shown.exit_code == 0, shown.output
    again = call("extract", path, "--long", "window", "--max-length", "512")
    assert "were stored already" in again.stdout
    refused = call("extract", path, "--hookpoints", "resid_post.*")
    assert refused.exit_code == 2
    assert "planned with hookpoints = ['resid_post.middle', 'resid_post.last']" in refused.stderr


@pytest.mark.chaos
def test_a_killed_run_is_resumed(
    shared: Path, corpus: Path, tmp_path: Path, drive: Callable[..., Popen[str]]
) -> None:
    path, request = tmp_path / "run.zarr", request_of(shared, corpus)
    more = ["--shard-rows", "1024", "--threads", "1"]
    after = ["SIGKILL", "2", "/receipts/extract/"]
    process = drive(*after, "extract", path, *request, *more, module="support.signalled")
    assert process.wait() == -signal.SIGKILL
    store = actlas.open(path)
    before = {shard: store.receipt(shard).attempt for shard in store.done()}
    assert len(before) == 2 < store.plan.n_shards
    again = call("extract", path, *request, "--threads", "1")
    assert again.exit_code == 0, again.output
    assert store.missing() == []
    assert before.items() <= {s: store.receipt(s).attempt for s in store.done()}.items()
    assert verify(store, full=True).ok
