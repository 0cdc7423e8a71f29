"""Training: it learns, its metrics are numpy's, it stops and goes on exactly, SAELens agrees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.features import made_store
from support.sae import oracle

import actlas
from actlas.analysis.sae.saelens_format import load_sae
from actlas.analysis.sae.train import data as train_data
from actlas.analysis.sae.train.api import train_sae
from actlas.analysis.sae.train.checkpoint import STATE_FILE
from actlas.analysis.sae.train.options import TrainOptions
from actlas.store.errors import (
    ConfigError,
    CorruptDataError,
    HookpointError,
    InterruptedRunError,
    NonFiniteError,
    SaeError,
    StoreExistsError,
)
from actlas.store.store import Store

pytestmark = pytest.mark.slow

HOOK = "resid_post.0"
SMALL: dict[str, Any] = {"d_sae": 48, "k": 4, "batch_size": 128, "steps": 40, "lr": 3e-3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_store(tmp_path_factory.mktemp("sae") / "s.zarr", n_documents=80)


def stop_after(n: int) -> Any:
    calls = iter(range(10**9))
    return lambda: next(calls) >= n - 1


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_a_training_that_was_stopped_ends_the_same(store: Store, tmp_path: Path, kind: str) -> None:
    torch.set_num_threads(1)
    options = {**SMALL, "kind": kind}
    state = torch.get_rng_state()
    whole = train_sae(store, HOOK, tmp_path / "whole", **options)
    assert torch.equal(state, torch.get_rng_state())
    for n in (1, 13, 20):
        with pytest.raises(InterruptedRunError, match="Repeat the same call"):
            train_sae(store, HOOK, tmp_path / "cut", stop=stop_after(n), **options)
    cut = train_sae(store, HOOK, tmp_path / "cut", **options)
    assert cut.sae.sha256 == whole.sae.sha256
    for name in ("curve.csv", "sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert cut.n_tokens == whole.n_tokens
    followed = [
        json.loads((folder / "metrics.json").read_text())["held_out_curve"]
        for folder in (cut.folder, whole.folder)
    ]
    assert followed[0] == followed[1] and len(followed[0]) == 5
    names = {"actlas.json", "cfg.json", "sae_weights.safetensors", "metrics.json", "density.npy"}
    assert {p.name for p in cut.folder.iterdir()} == names | {"curve.csv", "curves.png"}


def test_the_metrics_are_of_rows_that_were_never_seen(store: Store, tmp_path: Path) -> None:
    made = train_sae(store, HOOK, tmp_path / "a", **SMALL, fraction=0.6)
    metrics = json.loads((tmp_path / "a/metrics.json").read_text())
    assert made.held_out and metrics["evaluated_on"] == "held-out rows"
    seen = actlas.batches(store, HOOK, batch_size=64, fraction=0.6)
    kept = actlas.batches(store, HOOK, batch_size=64, fraction=0.1, skip=0.6)
    train_rows = np.concatenate([batch.rows for batch in seen])
    rows = np.concatenate([batch.rows for batch in kept])
    assert not set(train_rows) & set(rows)
    assert metrics["n_tokens"] == len(rows)
    x = store.activations[HOOK][:][np.sort(rows)].astype(np.float32).astype(np.float64)
    assert made.metrics.explained_variance == pytest.approx(
        oracle(load_sae(tmp_path / "a"), x)["explained_variance"], rel=1e-3, abs=1e-4
    )
    all_of_it = train_sae(store, HOOK, tmp_path / "b", **SMALL, fraction=1.0)
    assert not all_of_it.held_out and all_of_it.metrics.n_tokens == store.plan.n_tokens


def test_the_scale_is_exact_and_folded(store: Store, tmp_path: Path) -> None:
    x = store.activations[HOOK][:].astype(np.float32).astype(np.float64)
    asked = TrainOptions.parse(hookpoint=HOOK, **SMALL)
    data = train_data.training_rows(store, asked, train_data.train_stream(store, asked))
    scaled = x * data.scale
    assert (scaled**2).sum(axis=1).mean() == pytest.approx(x.shape[1], rel=1e-9)
    assert data.variance == pytest.approx(scaled.var(axis=0).sum(), rel=1e-9)
    np.testing.assert_allclose(data.mean.numpy(), scaled.mean(axis=0), rtol=1e-6, atol=1e-9)
    made = train_sae(store, HOOK, tmp_path / "a", **{**SMALL, "steps": 1, "lr": 1e-30})
    weights = dict(made.sae.named_parameters())
    np.testing.assert_allclose(weights["b_dec"].detach(), x.mean(axis=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights["W_enc"], weights["W_dec"].T)


def test_a_finished_training_is_left_as_it_is(store: Store, tmp_path: Path) -> None:
    first = train_sae(store, HOOK, tmp_path / "a", **SMALL)
    before = {p.name: p.read_bytes() for p in first.folder.iterdir()}
    again = train_sae(store, HOOK, tmp_path / "a", **SMALL, threads=1, checkpoint_every=7)
    assert again.was_done and not first.was_done
    assert again.sae.sha256 == first.sae.sha256 and again.n_tokens == first.n_tokens
    plain, expected = again.metrics.as_dict(), first.metrics.as_dict()
    assert plain == expected
    for changes in ({"k": 5}, {"seed": 1}, {"steps": None}):
        with pytest.raises(ConfigError, match="finished training") as caught:
            train_sae(store, HOOK, tmp_path / "a", **{**SMALL, **changes})
        assert caught.value.details["field"] in changes
    assert before == {p.name: p.read_bytes() for p in first.folder.iterdir()}
    for name in before.keys() - {"actlas.json"}:
        (tmp_path / "a" / name).write_bytes(before[name][:-1])
        with pytest.raises(CorruptDataError, match=rf"{name}: damaged"):
            train_sae(store, HOOK, tmp_path / "a", **SMALL)
        (tmp_path / "a" / name).write_bytes(before[name])
    (tmp_path / "a/actlas.json").unlink()
    with pytest.raises(CorruptDataError, match="without their record"):
        train_sae(store, HOOK, tmp_path / "a", **SMALL)


def test_killed_while_it_wrote_its_results(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_sae(store, HOOK, tmp_path / "whole", **SMALL)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("actlas.analysis.sae.saelens_format.write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            train_sae(store, HOOK, tmp_path / "cut", **SMALL)
    assert (tmp_path / "cut" / STATE_FILE).exists()
    with pytest.raises(SaeError, match="a training that is not finished"):
        load_sae(tmp_path / "cut")
    again = train_sae(store, HOOK, tmp_path / "cut", **SMALL)
    assert again.sae.sha256 == whole.sae.sha256 and not again.was_done
    assert not (tmp_path / "cut" / STATE_FILE).exists()


def test_rows_that_are_not_finite(tmp_path: Path) -> None:
    store = made_store(tmp_path / "s.zarr", n_documents=20)
    moments = store.statistics(HOOK)
    store.statistics = lambda _: replace(moments, n=moments.n - 1)  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
        train_sae(store, HOOK, tmp_path / "x", **SMALL)
    with pytest.raises(NonFiniteError, match="give an lr= smaller than"):
        train_sae(made_store(tmp_path / "t.zarr"), HOOK, tmp_path / "y", **{**SMALL, "lr": 1e38})


def test_bad_input(store: Store, tmp_path: Path) -> None:
    for changes, field in (
        ({"k": 49}, "k"),
        ({"d_sae": 0}, "d_sae"),
        ({"lr": float("nan")}, "lr"),
        ({"kind": "gated"}, "architecture"),
        ({"fraction": 0.0}, "fraction"),
        ({"steps": 0}, "steps"),
        ({"device": "toaster"}, "device"),
        ({"batch_size": 10**7}, "batch_size"),
    ):
        with pytest.raises(ConfigError) as caught:
            train_sae(store, HOOK, tmp_path / "x", **{**SMALL, **changes})
        assert caught.value.details["field"] == field
    with pytest.raises(HookpointError, match=HOOK):
        train_sae(store, "resid_post.9", tmp_path / "x", **SMALL)
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "x/notes.txt").write_text("mine")
    with pytest.raises(StoreExistsError):
        train_sae(store, HOOK, tmp_path / "x", **SMALL)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["notes.txt"]


def test_going_on_with_other_options_or_a_damaged_checkpoint(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        train_sae(store, HOOK, tmp_path / "a", stop=stop_after(3), **SMALL)
    for changes in ({"k": 5}, {"lr": 1e-3}, {"seed": 1}, {"steps": 41}, {"fraction": 0.8}):
        with pytest.raises(ConfigError) as caught:
            train_sae(store, HOOK, tmp_path / "a", **{**SMALL, **changes})
        assert caught.value.details["field"] in changes
    path = tmp_path / "a" / STATE_FILE
    whole = path.read_bytes()
    for data in (whole[:-10], b"", whole[:20]):
        path.write_bytes(data)
        with pytest.raises(CorruptDataError, match="damaged"):
            train_sae(store, HOOK, tmp_path / "a", **SMALL)
    path.write_bytes(whole)
    train_sae(store, HOOK, tmp_path / "a", **SMALL)
    with pytest.raises(SaeError, match="no such folder"):
        load_sae(tmp_path / "none")


def test_old_names_are_aliases_and_stay_on_disk(store: Store, tmp_path: Path) -> None:
    options = {name: value for name, value in SMALL.items() if name != "d_sae"}
    new = train_sae(store, HOOK, tmp_path / "a", **options, d_sae=48, architecture="relu")
    old = train_sae(store, HOOK, tmp_path / "a", **options, width=48, kind="relu")
    assert old.was_done and old.sae.sha256 == new.sae.sha256
    assert new.sae.kind == new.sae.architecture == "relu"
    saved = json.loads((tmp_path / "a/metrics.json").read_text())["options"]
    assert saved["width"] == 48 and saved["kind"] == "relu"
    assert not {"d_sae", "architecture"} & saved.keys()
    with pytest.raises(ConfigError, match="finished training with d_sae 48, got 47") as caught:
        train_sae(store, HOOK, tmp_path / "a", **options, d_sae=47, architecture="relu")
    assert caught.value.details["field"] == "d_sae"
