"""The top and bottom tokens of every raw unit of a hookpoint, in one pass over its rows.

Each block of rows is compared with every unit's k-th best so far; what passes is merged. After the
first blocks almost nothing passes, so the pass costs about as much as reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store import layout
from actlas.store.derived import Unit, commit, ensure_groups, extract_inputs
from actlas.store.errors import NotExtractedError
from actlas.store.units import Units, extreme_specs, job_of, open_units

if TYPE_CHECKING:
    from actlas.store.store import Store

KEEP = 64
BLOCK_VALUES = 1 << 22

Progress = Callable[[int, int], None]


class Best:
    """Each unit's ``k`` best tokens so far: the largest values, ties to the lower token.

    Parameters
    ----------
    n_units, k : int

    Attributes
    ----------
    value : ndarray of float32, shape [units, k]
        Falling; -inf where there are fewer.
    t : ndarray of int64, shape [units, k]
        -1 where there are fewer.
    """

    def __init__(self, n_units: int, k: int) -> None:
        self.k = k
        self.value = np.full((n_units, k), -np.inf, np.float32)
        self.t = np.full((n_units, k), -1, np.int64)
        self._empty = True

    def add(self, t: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Take in rows [n, units] of the tokens ``t`` [n]; NaN is left out."""
        few = 4 * self.k
        if self._empty and len(rows) > few:  # a few rows first: most of the rest then fails
            self._empty = False
            self.add(t[:few], rows[:few])
            t, rows = t[few:], rows[few:]
        self._empty = False
        if len(rows) > self.k:
            worst = self.value[:, -1]
            passing = rows > worst
            equal = np.argwhere(rows == worst)
            if len(equal):
                lower = t[equal[:, 0]] < self.t[equal[:, 1], -1]
                passing[tuple(equal[lower].T)] = True
        else:
            passing = ~np.isnan(rows)
        counts = passing.sum(axis=0)
        for few in (counts <= 4 * self.k, counts > 4 * self.k):
            units = np.flatnonzero(few & (counts > 0))
            if len(units):
                self._merge(units, passing[:, units], t, rows[:, units])

    def _merge(
        self,
        units: NDArray[np.int64],
        passing: NDArray[np.bool_],
        t: NDArray[np.int64],
        rows: NDArray[np.float32],
    ) -> None:
        unit, row = np.nonzero(passing.T)
        n = len(units)
        width = int(np.bincount(unit, minlength=n).max())
        value = np.full((n, self.k + width), -np.inf, np.float32)
        token = np.full((n, self.k + width), np.iinfo(np.int64).max, np.int64)
        value[:, : self.k] = self.value[units]
        token[:, : self.k] = np.where(self.t[units] < 0, np.iinfo(np.int64).max, self.t[units])
        first = np.searchsorted(unit, np.arange(n))
        at = self.k + np.arange(len(unit)) - first[unit]
        value[unit, at] = rows[row, unit]
        token[unit, at] = t[row]
        order = np.lexsort((token, -value), axis=-1)[:, : self.k]
        self.value[units] = np.take_along_axis(value, order, axis=1)
        kept = np.take_along_axis(token, order, axis=1)
        self.t[units] = np.where(kept == np.iinfo(np.int64).max, -1, kept)


def gather_extremes(
    store: Store,
    hookpoint: str,
    *,
    attempt: str,
    k: int = KEEP,
    progress: Progress = lambda _done, _of: None,
) -> Units:
    """Gather and write the extremes of every unit of a hookpoint; done once for a store.

    Special tokens that the tokenizer added and values that are NaN or infinite are left out.

    Parameters
    ----------
    store : Store
    hookpoint : str
    attempt : str
        Names this try, for the receipt.
    k : int
        How many tokens of each end.
    progress : callable
        Called with (shards done, shards in all).

    Raises
    ------
    HookpointError
        There is no such hookpoint.
    NotExtractedError
        Not every shard is extracted.
    """
    array = store.activations[hookpoint]
    missing = store.missing()
    if missing:
        raise NotExtractedError(
            f"{store.path}: {len(missing)} of {store.plan.n_shards} shards are not extracted yet: "
            f"`actlas extract {store.path}` goes on.",
            shards=missing,
        )
    n_units = array.shape[1]
    top, bottom = Best(n_units, k), Best(n_units, k)
    block = max(1, BLOCK_VALUES // n_units)
    for shard in range(store.plan.n_shards):
        _add_shard(store, shard, array.reader(shard), block, (top, bottom))
        progress(shard + 1, store.plan.n_shards)
    folder = f"extremes/{hookpoint}"
    ensure_groups(store.objects, "extremes")
    commit(
        store,
        Unit(job_of(hookpoint), 0, 1, folder, 0, n_units),
        {"hookpoint": hookpoint},
        {
            "top_value": np.where(top.t < 0, np.float32(np.nan), top.value),
            "top_t": top.t,
            "bottom_value": np.where(bottom.t < 0, np.float32(np.nan), -bottom.value),
            "bottom_t": bottom.t,
        },
        attempt=attempt,
        inputs=extract_inputs(store, range(store.plan.n_shards)),
        specs=extreme_specs(n_units, k),
        run={"k": k},
    )
    return open_units(store, hookpoint)


def _add_shard(store: Store, shard: int, reader: Any, block: int, ends: tuple[Best, Best]) -> None:
    plan = store.plan
    start, stop = store.shard_range(shard)
    t = layout.shard_tokens(plan.order, plan.seed, start, stop)
    special = store.documents.special(start, stop)[t - start]
    for first in range(0, stop - start, block):
        last = min(first + block, stop - start)
        rows = reader.read_rows(first, last).astype(np.float32)
        kept = ~special[first:last]
        tokens, rows = t[first:last][kept], rows[kept]
        rows[~np.isfinite(rows)] = np.nan
        top, bottom = ends
        top.add(tokens, rows)
        bottom.add(tokens, np.negative(rows, out=rows))
