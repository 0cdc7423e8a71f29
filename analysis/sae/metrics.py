"""Metrics of a sparse autoencoder over a set of rows: reconstruction and sparsity, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.analysis.sae.model import SparseAutoencoder
from actlas.store.errors import NonFiniteError
from actlas.store.statistics.moments import Moments

DENSITY_EDGES = np.linspace(-8.0, 0.0, 33)
"""Edges of the histogram of feature densities, in log10 of the share of tokens."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of a sparse autoencoder over one set of rows.

    Attributes
    ----------
    n_tokens : int
        Rows of the set.
    explained_variance : float
        ``1 - sum |x - x'|^2 / sum |x - mean|^2``, both sums over all rows and units, the mean over
        all rows for each unit; NaN where all rows are the same.
    mse_per_token : float
        ``sum |x - x'|^2 / n_tokens``, summed over units.
    mse_per_value : float
        ``mse_per_token`` divided by the number of units.
    l0 : float
        Mean number of features above zero on a token.
    l1 : float
        Mean sum of a token's feature activations.
    cosine_similarity : float
        Mean over tokens of the cosine between ``x`` and ``x'``; 0 where one of them is 0.
    dead_share : float
        Share of features that are above zero on no token of the set.
    density : ndarray of float64, shape [d_sae]
        Share of tokens on which each feature is above zero.
    """

    n_tokens: int
    explained_variance: float
    mse_per_token: float
    mse_per_value: float
    l0: float
    l1: float
    cosine_similarity: float
    dead_share: float
    density: NDArray[np.float64]

    def __repr__(self) -> str:
        return (
            f"<metrics over {self.n_tokens:,} rows: explained variance "
            f"{self.explained_variance:.3f}, l0 {self.l0:.1f}, {self.dead_share:.1%} dead>"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics as plain values for JSON, the density as a histogram of its log10."""
        alive = self.density[self.density > 0]
        counts, _ = np.histogram(np.log10(alive), np.append(-np.inf, DENSITY_EDGES[1:]))
        names = [name for name in self.__dataclass_fields__ if name != "density"]
        plain = {name: getattr(self, name) for name in names}
        if not np.isfinite(self.explained_variance):
            plain["explained_variance"] = None
        return {
            **plain,
            "n_features": len(self.density),
            "n_dead": int((self.density == 0).sum()),
            "log10_density": {
                "edges": DENSITY_EDGES.tolist(),
                "counts": counts.tolist(),
                "note": "the first bin holds all below it, dead features are in none",
            },
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], density: NDArray[np.float64]) -> Metrics:
        """Return metrics from the plain values of :meth:`as_dict`.

        Parameters
        ----------
        plain : mapping
            The result of :meth:`as_dict`, possibly through JSON.
        density : ndarray of float64, shape [d_sae]
            The density, of which ``plain`` has only a histogram.
        """
        names = [name for name in cls.__dataclass_fields__ if name != "density"]
        values = {name: plain[name] for name in names}
        if values["explained_variance"] is None:
            values["explained_variance"] = float("nan")
        return cls(**values, density=density)


@torch.inference_mode()
def evaluate(sae: SparseAutoencoder, batches: Iterable[torch.Tensor]) -> Metrics:
    """Return the metrics of a sparse autoencoder over raw rows, batch by batch.

    The variance is about the mean of the set itself, by moments that combine (no sum of squares of
    raw values, which a large mean would make inaccurate).

    Parameters
    ----------
    sae : SparseAutoencoder
        On any device.
    batches : iterable of Tensor, shape [rows, d_in]
        Raw rows; each row of the set once.

    Raises
    ------
    ValueError
        The set has no rows.
    NonFiniteError
        Rows hold NaN or infinity.

    Examples
    --------
    >>> sae = SparseAutoencoder(4, 8, architecture="relu")
    >>> rows = torch.eye(4)
    >>> round(evaluate(sae, [rows]).mse_per_token, 6)  # all weights are zero
    1.0
    """
    device = sae.W_dec.device
    fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    squared = l1 = cosine = 0.0
    parts: list[Moments] = []
    n_tokens = 0
    for batch in batches:
        x = batch.to(device).float()
        codes = sae.encode(x)
        reconstruction = (sae.decode(codes) if sae.normalize == "none" else sae(x)).double()
        wide = x.double()
        squared += float((wide - reconstruction).square().sum())
        l1 += float(codes.double().sum())
        norms = wide.norm(dim=-1) * reconstruction.norm(dim=-1)
        dots = (wide * reconstruction).sum(dim=-1)
        cosine += float(torch.where(norms > 0, dots / norms.clamp(min=1e-300), 0.0).sum())
        fired += (codes > 0).sum(dim=0)
        moments = Moments.of(batch.float().cpu().numpy())
        if (moments.n < len(x)).any():
            raise NonFiniteError("the rows to evaluate on hold NaN or infinity.")
        parts = [Moments.combine([*parts, moments])]
        n_tokens += len(x)
    if n_tokens == 0:
        raise ValueError("expected at least one row to evaluate on, got none")
    total = float(parts[0].m2.sum())
    counts = fired.cpu().numpy()
    return Metrics(
        n_tokens=n_tokens,
        explained_variance=1 - squared / total if total > 0 else float("nan"),
        mse_per_token=squared / n_tokens,
        mse_per_value=squared / n_tokens / sae.d_in,
        l0=int(counts.sum()) / n_tokens,
        l1=l1 / n_tokens,
        cosine_similarity=cosine / n_tokens,
        dead_share=float((counts == 0).mean()),
        density=counts / n_tokens,
    )
