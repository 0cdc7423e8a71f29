"""Real models through the real extractor: whatever runs it, the rows are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.jobs import options
from support.models import build, documents, expected, plan_store, save, worst

import actlas
from actlas.jobs.run import run_extraction
from actlas.jobs.worker import open_worker
from actlas.store.errors import EXIT_DONE, ActlasError, ConfigError, ModelError
from actlas.store.store import Store
from actlas.store.verify import verify

LENGTHS = [0, 1, 5, 200, 17, 33, 16, 15, 64, 2, 90, 31] * 3
HOOKPOINTS = ["resid_post.0", "resid_post.2"]


def planned(folder: Path, name: str = "run.zarr") -> Store:
    model = folder / "model"
    if not model.exists():
        save("llama", model)
    return plan_store(folder / name, model, documents(LENGTHS), HOOKPOINTS)


def by_token(store: Store, hookpoint: str) -> np.ndarray:
    rows = store.row_of(np.arange(store.plan.n_tokens, dtype=np.int64))
    return store.activations[hookpoint][:][rows]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray_gives_what_inline_gives(ray_started: None, tmp_path: Path, workers: int) -> None:
    inline, ray = planned(tmp_path), planned(tmp_path, "ray.zarr")
    assert run_extraction(inline, options(tokens_per_batch=999), open_worker).exit_code == EXIT_DONE
    outcome = run_extraction(ray, options("ray", workers=workers, tokens_per_batch=64), open_worker)
    assert outcome.exit_code == EXIT_DONE
    assert "of the bare forward pass" in outcome.line
    for name in ("token_id", "doc_idx", "pos_idx"):
        for shard in range(inline.plan.n_shards):
            key = f"rows/{name}/c/{shard}"
            assert inline.objects.read(key) == ray.objects.read(key)
    truth = expected(inline, build("llama"), HOOKPOINTS)
    for hookpoint in HOOKPOINTS:
        assert worst(by_token(ray, hookpoint), by_token(inline, hookpoint)) < 1e-4
        assert worst(by_token(ray, hookpoint), truth[hookpoint]) < 1e-4
    assert verify(ray, full=True).ok
    receipt = ray.receipt(0)
    assert (receipt.run["executor"], receipt.run["workers"]) == ("ray", workers)
    logs = Path(ray.path) / "ledger/logs"
    assert len(list(logs.glob("*-worker.jsonl"))) == workers


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


def test_from_python(tmp_path: Path) -> None:
    path = planned(tmp_path).path
    store = actlas.extract(path, seed=7, device="cpu", overrides=["run.tokens_per_batch=512"])
    assert store.missing() == []
    assert verify(store, full=True).ok
    with pytest.raises(ConfigError, match="unknown option 'sead'. Did you mean seed"):
        actlas.extract(path, sead=7)
    with pytest.raises(ActlasError, match="planned with seed = 7, now asked for 8"):
        actlas.extract(path, seed=8)
