"""The moments of pooled rows that a store holds: one row per document, read in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.mask_key import Pool
from actlas.analysis.localizer.pooling_shard import ByGroup
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.read.reader import StoreReader
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.statistics.moments import Moments

BLOCK_BYTES = 64 << 20
"""Memory of a block of samples, in float64."""


def source_of(store: StoreReader, pool: Pool) -> str:
    """Return the job whose rows are tested: stored pooled rows if complete, else rows of tokens.

    Parameters
    ----------
    store : StoreReader
        The store.
    pool : {"last", "mean"}
        The kind of pooling.

    Raises
    ------
    NotExtractedError
        The store has only pooled rows, and they are pooled in another way.
    CorruptDataError
        All documents were pooled, and receipts are lost since.
    """
    if pool in store.plan.pools:
        pooled = len(store.whole(POOLED)) == store.n_shards(POOLED)
        if pooled or not store.plan.dense:
            return POOLED
    if not store.plan.dense:
        next(iter(store.pooled.values()))[pool]  # raises an error that names the available kinds
    return EXTRACT


def stored_moments(
    store: StoreReader,
    hookpoints: Sequence[str],
    group: NDArray[np.int8],
    *,
    n_groups: int = 2,
    pool: Pool = "last",
    signed: bool = False,
) -> dict[str, ByGroup]:
    """Return the moments of every hookpoint's stored pooled rows, by condition.

    The counterpart of :func:`actlas.analysis.localizer.pooling.pooled_moments`, which pools rows of
    tokens: there a mean is over stored, rounded rows, here over the model's own output.

    Parameters
    ----------
    store : StoreReader
        A store whose pooled rows are all extracted.
    hookpoints : sequence of str
        Names of hookpoints.
    group : ndarray of int8, shape [documents]
        The condition of each document, in [0, n_groups), or -1 for none.
    n_groups : int
        Number of conditions.
    pool : {"last", "mean"}
        The kind of pooling.
    signed : bool
        Whether samples keep their sign; if not, their absolute value is taken.
    """
    return {
        name: _moments(store.pooled[name][pool], group, n_groups, signed) for name in hookpoints
    }


def _moments(array: LazyArray, group: NDArray[np.int8], n_groups: int, signed: bool) -> ByGroup:
    block = max(array.spec.chunk_rows, BLOCK_BYTES // (8 * array.shape[1]))
    parts: list[list[Moments]] = [[] for _ in range(n_groups)]
    for start in range(0, len(array), block):
        part = group[start : start + block]
        if not (part >= 0).any():
            continue
        samples = array.read(start, start + len(part)).astype(np.float64)
        if not signed:
            np.abs(samples, out=samples)
        for side in range(n_groups):
            if (part == side).any():
                parts[side].append(Moments.of(samples[part == side]))
    return tuple(Moments.combine(found) if found else None for found in parts)
