"""Pooling of tokens, out of core: one sample per document, and the moments of the samples.

Rows are stored shuffled within their shards. Each task reads one shard of one hookpoint, chunk by
chunk, and keeps a float64 sum per document. Documents that lie wholly in the shard become samples,
and the samples moments; the sums of the at most two documents that cross its borders are passed on.
Adjacent parts are then merged in a tree of fixed shape::

    documents     |--- 0 ---|-- 1 --|--------- 2 ---------|- 3 -|
    shards        |-------- 0 -------|--- 1 ---|-------- 2 ------|
    of shard 0    moments of 0, 1; the beginning of 2
    of 0 and 1    moments of 0, 1; still the beginning of 2
    of all        moments of 0, 1, 2, 3

so no part ever holds more than two unfinished documents, whatever the size of the store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.mask_key import Pool
from actlas.analysis.localizer.pooling_shard import ByGroup, Part, merge, pool_shard, shard_samples
from actlas.analysis.localizer.token_contrast import TokenSides, side_samples
from actlas.store.read.reader import StoreReader

if TYPE_CHECKING:
    from dask.delayed import Delayed

MAX_TASKS = 8
"""Default number of concurrent tasks; each reads its chunks in threads of its own."""

FAN_IN = 16


def pooled_moments(
    store: StoreReader,
    hookpoints: Sequence[str],
    group: NDArray[np.int8] | TokenSides,
    *,
    n_groups: int = 2,
    pool: Pool = "last",
    signed: bool = False,
    scheduler: str | None = None,
) -> dict[str, ByGroup]:
    """Return the moments of every hookpoint's pooled documents, by condition.

    The function makes one pass over the shards that hold a document of a condition. At most
    :data:`MAX_TASKS` shards are processed at a time; each task holds its sums (256 MiB at most) and
    a few chunks.

    Parameters
    ----------
    store : StoreReader
        A store whose shards are all extracted.
    hookpoints : sequence of str
        Names of hookpoints.
    group : ndarray of int8, shape [documents], or TokenSides
        The condition of each document, in [0, n_groups), or -1 for none; documents without tokens
        are left out. Or the two sides of a contrast of tokens: each document then gives a sample to
        every side that it has tokens of.
    n_groups : int
        Number of conditions.
    pool : {"last", "mean"}
        The sample of a document: the row of its last kept token, or the mean over its kept tokens
        in float64.
    signed : bool
        Whether samples keep their sign; if not, their absolute value is taken after pooling.
    scheduler : str, optional
        The Dask scheduler. Default: Dask's configuration, else threads. The result does not depend
        on it.

    Returns
    -------
    dict of str to tuple of (Moments or None)
        For each hookpoint, the moments of each condition, shape [units]; None for a condition
        without samples.

    Raises
    ------
    NotExtractedError
        A shard is not extracted.
    CorruptDataError
        Stored bytes differ from the bytes that were written.
    """
    import dask.base
    import dask.config

    start = store.documents.start
    roots = _tree_of(store, hookpoints, group, start, n_groups, pool, signed)
    options: dict[str, Any] = {"scheduler": scheduler} if scheduler is not None else {}
    if scheduler in (None, "threads") and not dask.config.get("num_workers", None):
        options["num_workers"] = min(MAX_TASKS, _n_cpus())
    parts: tuple[Part, ...] = dask.base.compute(  # type: ignore[no-untyped-call]
        *roots, optimize_graph=False, **options
    )
    if left := [doc for part in parts for doc in part.borders]:
        raise AssertionError(
            f"documents {left[:5]} were not finished: a shard is missing in the tree"
        )
    return {name: part.moments for name, part in zip(hookpoints, parts, strict=True)}


def _tree_of(
    store: StoreReader,
    hookpoints: Sequence[str],
    group: NDArray[np.int8] | TokenSides,
    start: NDArray[np.int64],
    n_groups: int,
    pool: Pool,
    signed: bool,
) -> list[Delayed]:
    """Return a lazy :class:`Part` of the whole store for each hookpoint."""
    from dask.delayed import delayed

    samples_of, part_of = delayed(shard_samples, pure=False), delayed(pool_shard, pure=False)
    sides_of = delayed(side_samples, pure=False)
    merged = delayed(merge, pure=False)
    level: dict[str, list[Any]] = {name: [] for name in hookpoints}
    for shard in range(store.plan.n_shards):
        first, last = store.shard_range(shard)
        lo = int(np.searchsorted(start, first, side="right")) - 1
        hi = int(np.searchsorted(start, last, side="left"))
        edges, seed = start[lo : hi + 1], (store.plan.seed, store.plan.order)
        if isinstance(group, TokenSides):
            extent = group.n[lo:hi], group.first[lo:hi], group.last[lo:hi]
            if not extent[0].any():
                continue
            samples = sides_of(first, last, lo, edges, extent, group.reader, *seed, pool)
        else:
            if not (group[lo:hi] >= 0).any():
                continue
            samples = samples_of(first, last, lo, edges, group[lo:hi], *seed, pool, n_groups)
        for name, parts in level.items():
            parts.append(part_of(store.activations[name], shard, samples, signed))
    for name, parts in level.items():
        while len(parts) > 1:
            parts = [merged(parts[i : i + FAN_IN], signed) for i in range(0, len(parts), FAN_IN)]
        level[name] = parts or [delayed(Part)(0, 0, (None,) * n_groups, {})]
    return [parts[0] for parts in level.values()]


def _n_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
