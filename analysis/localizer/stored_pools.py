"""Samples that extraction pooled already: one row per document, read a few chunks at a time."""

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
"""Samples in memory at once, in float64."""


def source_of(store: StoreReader, pool: Pool) -> str:
    """Return the job whose rows are tested: pooled ones where there are all, else tokens'.

    Raises
    ------
    NotExtractedError
        The store has rows for documents alone, and they are pooled in another way.
    """
    if pool in store.plan.pools and not (store.plan.dense and store.missing(POOLED)):
        return POOLED
    if not store.plan.dense:
        next(iter(store.pooled.values()))[pool]  # raises, and says which pools there are
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
    """Return the moments, by condition, of every hookpoint's stored pooled rows.

    As :func:`actlas.analysis.localizer.pooling.pooled_moments` does from the rows of tokens: there
    a mean is over stored rows, here over what the model gave before it was rounded.
    """
    return {
        name: _moments(store.pooled[name][pool], group, n_groups, signed) for name in hookpoints
    }


def _moments(array: LazyArray, group: NDArray[np.int8], n_groups: int, signed: bool) -> ByGroup:
    block = max(array.spec.chunk_rows, BLOCK_BYTES // (8 * array.shape[1]))
    parts: list[list[Moments]] = [[] for _ in range(n_groups)]
    for start in range(0, len(array), block):
        of = group[start : start + block]
        if not (of >= 0).any():
            continue
        samples = array.read(start, start + len(of)).astype(np.float64)
        if not signed:
            np.abs(samples, out=samples)
        for side in range(n_groups):
            if (of == side).any():
                parts[side].append(Moments.of(samples[of == side]))
    return tuple(Moments.combine(found) if found else None for found in parts)
