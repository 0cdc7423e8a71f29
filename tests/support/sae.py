"""What numpy makes of a sparse autoencoder, in float64."""

from __future__ import annotations

import numpy as np

from actlas.analysis.sae.model import SparseAutoencoder


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
