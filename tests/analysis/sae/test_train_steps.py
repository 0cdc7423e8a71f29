"""Training steps: they learn, sparse gradients are the dense ones, dead features come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actlas.analysis.sae.metrics import evaluate
from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.train.trainer import Recipe, Trainer, fold, initialize


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_it_learns_a_dictionary(kind: Any) -> None:
    sae, _, losses = trained(kind)
    metrics = evaluate(sae, dictionary(4096).split(1000))
    falls = 0.5 if kind == "topk" else 0.85  # the sparsity loss of relu has a floor above zero
    assert np.mean(losses[-20:]) < falls * np.mean(losses[5:25])
    assert metrics.explained_variance > 0.8 and metrics.dead_share < 0.3


@pytest.mark.slow
def test_a_larger_l1_is_sparser_and_rebuilds_less() -> None:
    found = [evaluate(trained("relu", l1)[0], [dictionary(4096)]) for l1 in (0.1, 0.3, 1.0)]
    assert found[0].l0 > found[1].l0 > found[2].l0
    variances = [metrics.explained_variance for metrics in found]
    assert variances[0] > variances[1] > variances[2] > 0.5


def gradients(rows: torch.Tensor, sparse: bool) -> dict[str, torch.Tensor]:
    sae = SparseAutoencoder(16, 64, kind="topk", k=3)
    initialize(sae, rows.mean(dim=0), 0)
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-9, -0.5, 64))  # some of the k largest are below zero
    trainer = Trainer(sae, Recipe("topk", 3, 0, 1e-3, 10, 1000), 1.0)
    assert trainer.sparse  # by default, on a CPU, with k far below the width
    trainer.sparse = sparse
    trainer.silent_rows[::2] = 10**6  # half are dead: their loss counts too
    codes, reconstruction, fired = trainer._reconstruct(rows)
    assert codes.shape == ((len(rows), 3) if sparse else (len(rows), 64))
    dead = trainer._aux_loss(rows, rows - reconstruction)
    ((rows - reconstruction).square().sum() + dead).backward()
    found = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}
    return found | {
        "reconstruction": reconstruction.detach(),
        "fired": fired,
        "sum": codes.sum().detach(),
    }


def test_gradients_without_the_zeros_are_those_of_dense_products() -> None:
    rows = dictionary(300) / 3
    sparse, dense = gradients(rows, sparse=True), gradients(rows, sparse=False)
    assert len(sparse) == len(dense) == 7
    assert 0 < int(dense["fired"].sum()) < 3 * len(rows)
    for name, expected in dense.items():
        torch.testing.assert_close(sparse[name], expected, rtol=1e-4, atol=1e-3, msg=name)


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


@pytest.mark.slow
def test_the_loss_aux_loss_brings_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = dead_at_the_end()
    monkeypatch.setattr("actlas.analysis.sae.train.trainer.AUX_COEFFICIENT", 0.0)
    without = dead_at_the_end()
    assert without >= 0.45 and with_it < without - 0.1
