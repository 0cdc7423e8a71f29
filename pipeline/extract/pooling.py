"""Pooling of tokens: one row per document, reduced batch by batch without storing the tokens' rows.

All pooling is in float32, from the model's own output and on its device, before any rounding to the
dtype in which rows are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.store.format.schema import HookpointSpec, Pool
from actlas.store.write.outputs import PooledRows

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


class Pooler:
    """An accumulator of the last rows, means and sums of documents, from rows in any order.

    Parameters
    ----------
    hookpoints : sequence of HookpointSpec
        The hookpoints of the rows.
    pools : sequence of {"last", "mean", "sum"}
        The kinds of pooling.
    start : ndarray of int64, shape [documents + 1]
        The edges of the documents, in tokens of the corpus.

    Examples
    --------
    >>> spec = HookpointSpec(name="h", module="h", side="output", width=1)
    >>> pooler = Pooler([spec], ["last", "mean"], np.array([4, 6, 6]))
    >>> pooler.accumulate("h", torch.tensor([[3.0], [1.0]]), np.array([5, 4]))
    >>> pooler.finish()["h", "last"].tolist(), pooler.finish()["h", "mean"].tolist()
    ([[3.0], [nan]], [[2.0], [nan]])
    """

    def __init__(
        self,
        hookpoints: Sequence[HookpointSpec],
        pools: Sequence[Pool],
        start: NDArray[np.int64],
    ) -> None:
        self._hookpoints, self._pools = tuple(hookpoints), tuple(pools)
        self._start = start
        self._lengths = np.diff(start)
        self._n_seen = {hookpoint.name: 0 for hookpoint in hookpoints}
        self._last: dict[str, torch.Tensor] = {}
        self._sum: dict[str, torch.Tensor] = {}

    def accumulate(
        self,
        name: str,
        gathered: Float[torch.Tensor, "rows units"],
        token: Int64[NDArray[np.int64], " rows"],
    ) -> None:
        """Add rows of the documents. Each row must come once.

        Parameters
        ----------
        name : str
            The name of the hookpoint.
        gathered : Tensor, shape [n, units]
            Rows as the model computed them, in any dtype, on any device.
        token : ndarray of int64, shape [n]
            The token of the corpus of each row.
        """
        document = np.searchsorted(self._start, token, side="right") - 1
        self._n_seen[name] += len(token)
        if "last" in self._pools:
            final = np.flatnonzero(token == self._start[document + 1] - 1)
            if len(final):
                picked = gathered.index_select(0, _on(gathered, final)).float()
                held = self._held(self._last, name, gathered)
                held.index_copy_(0, _on(gathered, document[final]), picked)
        if self._pools != ("last",):
            present, place = np.unique(document, return_inverse=True)
            # The batch is summed first: rounding errors grow with the batches, not the rows.
            sums = gathered.new_zeros((len(present), gathered.shape[1]), dtype=torch.float32)
            sums.index_add_(0, _on(gathered, place), gathered.float())
            held = self._held(self._sum, name, gathered)
            held.index_add_(0, _on(gathered, present), sums)

    def finish(self) -> PooledRows:
        """Return the pooled rows by hookpoint and pooling; NaN for documents without tokens.

        Returns
        -------
        dict of (str, str) to ndarray of float32, shape [documents, units]

        Raises
        ------
        RuntimeError
            Rows are missing, or came twice.
        """
        expected = int(self._lengths.sum())
        if wrong := {name: n for name, n in self._n_seen.items() if n != expected}:
            raise RuntimeError(f"expected {expected} rows for each hookpoint, pooled {wrong}")
        return {
            (hookpoint.name, pool): self._pooled(hookpoint, pool)
            for hookpoint in self._hookpoints
            for pool in self._pools
        }

    def _pooled(self, hookpoint: HookpointSpec, pool: Pool) -> NDArray[np.float32]:
        held = (self._last if pool == "last" else self._sum).get(hookpoint.name)
        if held is None:  # no document has a token
            return np.full((len(self._lengths), hookpoint.width), np.nan, np.float32)
        rows: NDArray[np.float32] = held.cpu().numpy().copy()
        if pool == "mean":
            rows /= np.maximum(self._lengths, 1)[:, None].astype(np.float32)
        rows[self._lengths == 0] = np.nan
        return rows

    def _held(self, held: dict[str, torch.Tensor], name: str, like: torch.Tensor) -> torch.Tensor:
        if name not in held:
            shape = len(self._lengths), like.shape[1]
            held[name] = like.new_zeros(shape, dtype=torch.float32)
        return held[name]


def _on(like: torch.Tensor, index: NDArray[np.integer]) -> torch.Tensor:
    return torch.from_numpy(index.astype(np.int64, copy=False)).to(like.device)
