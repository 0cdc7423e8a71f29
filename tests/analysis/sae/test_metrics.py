"""Metrics of sparse autoencoders are those of numpy in float64."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from support.sae import oracle

from actlas.analysis.sae.metrics import Metrics, evaluate
from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.train.trainer import initialize
from actlas.store.errors import NonFiniteError


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


def test_metrics_do_not_depend_on_how_rows_are_cut() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((501, 8)).astype(np.float32) + 30)
    sae = SparseAutoencoder(8, 20, kind="topk", k=3)
    initialize(sae, x.mean(dim=0), 0)
    whole, cut = evaluate(sae, [x]), evaluate(sae, x.split(7))
    np.testing.assert_array_equal(whole.density, cut.density)
    for name, value in whole.as_dict().items():
        if isinstance(value, float):
            assert getattr(cut, name) == pytest.approx(value, rel=1e-5), name


def test_metrics_come_back_from_json() -> None:
    sae = SparseAutoencoder(3, 4, kind="relu")
    for rows in (torch.ones(5, 3), torch.eye(3)):
        made = evaluate(sae, [rows])
        back = Metrics.from_dict(json.loads(json.dumps(made.as_dict())), made.density)
        assert back.as_dict() == made.as_dict()
