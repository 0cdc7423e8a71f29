"""Training: it learns, its metrics are numpy's, it stops and goes on exactly, SAELens agrees."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.features import made_store

import actlas
from actlas.analysis.sae.autoencoder import SparseAutoencoder
from actlas.analysis.sae.checkpoint import load_sae
from actlas.analysis.sae.metrics import evaluate
from actlas.analysis.sae.run_state import STATE_FILE
from actlas.analysis.sae.steps import Recipe, Trainer, fold, initialize
from actlas.analysis.sae.training import train_sae
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

HOOK = "resid_post.0"
SMALL: dict[str, Any] = {"width": 48, "k": 4, "batch_size": 128, "steps": 40, "lr": 3e-3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_store(tmp_path_factory.mktemp("sae") / "s.zarr", n_documents=80)


def dictionary(n: int, d_in: int = 16, n_true: int = 40, seed: int = 0) -> torch.Tensor:
    """Rows that are sparse sums of known directions, about a mean far from zero."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((n_true, d_in))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = (rng.random((n, n_true)) < 0.08) * rng.uniform(1, 3, (n, n_true))
    return torch.from_numpy(codes @ atoms + 2).float()


def trained(
    kind: Any, l1: float = 0.3, steps: int = 300
) -> tuple[SparseAutoencoder, torch.Tensor, list[float]]:
    rows = dictionary(4096)
    scale = float((rows.shape[1] / rows.square().sum(dim=1).mean()) ** 0.5)
    sae = SparseAutoencoder(16, 80, kind=kind, k=4 if kind == "topk" else None)
    initialize(sae, rows.mean(dim=0) * scale, 0)
    variance = float(rows.var(dim=0, correction=0).sum()) * scale**2
    trainer = Trainer(sae, Recipe(kind, 4, l1, 5e-3, steps, steps * 512), variance)
    losses = []
    for i in range(steps):
        seen = trainer.step(rows[512 * (i % 8) : 512 * (i % 8 + 1)] * scale)
        assert seen is not None
        losses.append(seen.loss)
    if kind == "topk":
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(80))
    with torch.inference_mode():
        before = sae(rows * scale) / scale
        fold(sae, scale)
        torch.testing.assert_close(sae(rows), before, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(80))
    return sae, rows, losses


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_it_learns_a_dictionary(kind: Any) -> None:
    sae, _, losses = trained(kind)
    metrics = evaluate(sae, dictionary(4096).split(1000))
    falls = 0.5 if kind == "topk" else 0.85  # the sparsity loss of relu has a floor above zero
    assert np.mean(losses[-20:]) < falls * np.mean(losses[5:25])
    assert metrics.explained_variance > 0.8 and metrics.dead_share < 0.3


def test_a_larger_l1_is_sparser_and_rebuilds_less() -> None:
    found = [evaluate(trained("relu", l1)[0], [dictionary(4096)]) for l1 in (0.1, 0.3, 1.0)]
    assert found[0].l0 > found[1].l0 > found[2].l0
    variances = [metrics.explained_variance for metrics in found]
    assert variances[0] > variances[1] > variances[2] > 0.5


def oracle(sae: SparseAutoencoder, x: np.ndarray) -> dict[str, float]:
    w = {name: p.detach().numpy().astype(np.float64) for name, p in sae.named_parameters()}
    codes = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    if sae.kind == "topk":
        codes *= codes >= np.sort(codes, axis=1)[:, [-int(sae.k or 0)]]
    rebuilt = codes @ w["W_dec"] + w["b_dec"]
    squared = ((x - rebuilt) ** 2).sum()
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(rebuilt, axis=1)
    return {
        "explained_variance": 1 - squared / ((x - x.mean(axis=0)) ** 2).sum(),
        "mse_per_token": squared / len(x),
        "mse_per_value": squared / x.size,
        "l0": (codes > 0).sum() / len(x),
        "l1": codes.sum() / len(x),
        "cosine_similarity": ((x * rebuilt).sum(axis=1) / norms).mean(),
        "dead_share": ((codes > 0).sum(axis=0) == 0).mean(),
    }


@pytest.mark.parametrize("kind", ["topk", "relu"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_metrics_are_those_of_numpy_in_float64(kind: Any, offset: float) -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((3000, 12)) * rng.uniform(0.1, 4, 12) + offset).astype(np.float32)
    sae = SparseAutoencoder(12, 30, kind=kind, k=5 if kind == "topk" else None)
    initialize(sae, torch.from_numpy(x).mean(dim=0), 1)
    with torch.no_grad():
        sae.b_enc[:3] = -1e6  # three that never fire
    expected = oracle(sae, x.astype(np.float64))
    found = evaluate(sae, torch.from_numpy(x).split(701))
    assert found.n_tokens == 3000
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=2e-4, abs=1e-6), name
    # What is wrong elsewhere: sum x^2 in place of the variance, or a mean of batches' ratios.
    if offset:
        rebuilt_error = expected["mse_per_token"] * 3000
        assert (
            abs((1 - rebuilt_error / (x.astype(float) ** 2).sum()) - found.explained_variance)
            > 0.01
        )
    plain = found.as_dict()
    histogram = plain["log10_density"]["counts"]
    assert plain["n_dead"] >= 3 and sum(histogram) == 30 - plain["n_dead"]
    json.dumps(plain, allow_nan=False)


def test_rows_that_are_all_the_same_and_rows_that_are_not_finite() -> None:
    sae = SparseAutoencoder(3, 4, kind="relu")
    assert evaluate(sae, [torch.ones(5, 3)]).as_dict()["explained_variance"] is None
    with pytest.raises(NonFiniteError):
        evaluate(sae, [torch.tensor([[1.0, float("nan"), 0]])])
    with pytest.raises(ValueError, match="at least one row"):
        evaluate(sae, [])


def dead_at_the_end() -> float:
    rows = dictionary(512) - 2
    sae = SparseAutoencoder(16, 64, kind="topk", k=2)
    initialize(sae, torch.zeros(16), 0)
    with torch.no_grad():
        sae.b_enc[32:] = -5  # below zero on every row
    trainer = Trainer(sae, Recipe("topk", 2, 0, 1e-2, 400, 20 * 512), float(rows.var(dim=0).sum()))
    for _ in range(400):
        trainer.step(rows, measure=False)
    return float(trainer.dead.float().mean())


def test_the_loss_of_the_dead_brings_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = dead_at_the_end()
    monkeypatch.setattr("actlas.analysis.sae.steps.AUX_COEFFICIENT", 0.0)
    without = dead_at_the_end()
    assert without >= 0.45 and with_it < without - 0.1


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
        with pytest.raises(InterruptedRunError, match="Run the same command again"):
            train_sae(store, HOOK, tmp_path / "cut", stop=stop_after(n), **options)
    cut = train_sae(store, HOOK, tmp_path / "cut", **options)
    assert cut.sae.sha256 == whole.sae.sha256
    for name in ("curve.csv", "sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert cut.n_tokens == whole.n_tokens
    names = {"actlas.json", "cfg.json", "sae_weights.safetensors", "metrics.json"}
    assert {p.name for p in cut.folder.iterdir()} == names | {"curve.csv", "curves.png"}


def test_the_metrics_are_of_rows_that_were_never_seen(store: Store, tmp_path: Path) -> None:
    made = train_sae(store, HOOK, tmp_path / "a", **SMALL, fraction=0.6)
    metrics = json.loads((tmp_path / "a/metrics.json").read_text())
    assert made.held_out and metrics["evaluated_on"] == "held-out rows"
    seen = actlas.batches(store, HOOK, batch_size=64, fraction=0.6)
    kept = actlas.batches(store, HOOK, batch_size=64, fraction=0.4, skip=0.6)
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


def test_bad_input(store: Store, tmp_path: Path) -> None:
    for changes, field in (
        ({"k": 49}, "k"),
        ({"width": 0}, "width"),
        ({"lr": float("nan")}, "lr"),
        ({"kind": "gated"}, "kind"),
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
    with pytest.raises(SaeError, match="no folder"):
        load_sae(tmp_path / "none")


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    pytest.importorskip("sae_lens", reason="sae-lens is an optional extra: pip install .[saelens]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens

    return sae_lens


@pytest.mark.filterwarnings("ignore")
def test_what_is_trained_loads_in_saelens(sae_lens: Any, store: Store, tmp_path: Path) -> None:
    made = train_sae(store, HOOK, tmp_path / "a", **SMALL)
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "a")
    x = torch.from_numpy(store.activations[HOOK].read(0, 200).astype(np.float32))
    with torch.inference_mode():
        torch.testing.assert_close(theirs.encode(x), made.sae.encode(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(theirs(x), made.sae(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_saelens_trains_on_our_batches(
    sae_lens: Any, store: Store, tmp_path: Path
) -> None:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = sae_lens.TopKTrainingSAEConfig(d_in=24, d_sae=48, k=4)
    torch.manual_seed(0)
    sae = sae_lens.TopKTrainingSAE(config)
    stream = actlas.batches(store, HOOK, batch_size=64, epochs=None)
    x = torch.from_numpy(store.activations[HOOK][:].astype(np.float32))
    with torch.inference_mode():
        before = float((x - sae(x)).square().mean())
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=64 * 150,
            train_batch_size_samples=64,
            lr=3e-3,
            lr_end=3e-4,  # its config leaves None, which its trainer refuses
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        data_provider=stream.tensors(),
    )
    trainer.fit()
    with torch.inference_mode():
        assert float((x - sae(x)).square().mean()) < 0.9 * before
    sae.save_inference_model(tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    with torch.inference_mode():
        expected = sae_lens.SAE.load_from_disk(tmp_path / "theirs").encode(x)
        torch.testing.assert_close(ours.encode(x), expected, rtol=1e-6, atol=1e-6)
