"""Extremes: the top and bottom tokens of every raw unit of a hookpoint, in one pass over its rows.

Each block of rows is compared with every unit's k-th best value so far, and the values that exceed
it are merged. After the first blocks almost no value does, so the comparison is the cost of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConfigError, NotExtractedError
from actlas.store.features.unit_extremes import KEEP_MAX as KEEP_MAX
from actlas.store.features.unit_extremes import Units, extreme_specs, open_units
from actlas.store.format import layout
from actlas.store.ledger.derived import extract_inputs
from actlas.store.ledger.job_kinds import EXTREMES
from actlas.store.write.derived import commit, ensure_groups, sweep

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

    from actlas.store.format.schema import Receipt
    from actlas.store.read.reader import StoreReader
    from actlas.store.shards.lazy_array import LazyArray

KEEP = 64
"""The default number of tokens that are kept of each end."""

BLOCK_VALUES = 1 << 22
"""The number of values [rows, units] of a block."""

Progress = Callable[[int, int], None]
"""Called with (shards read, shards in all)."""


class Best:
    """The ``k`` tokens so far with the largest values of each unit; ties to the lower token.

    Parameters
    ----------
    n_units : int
        The number of units.
    k : int
        The number of tokens that are kept.

    Attributes
    ----------
    value : ndarray of float32, shape [units, k]
        The values, falling; -inf where a unit has fewer than ``k``.
    t : ndarray of int64, shape [units, k]
        The tokens; -1 where a unit has fewer than ``k``.
    """

    def __init__(self, n_units: int, k: int) -> None:
        self.k, self.n_units = k, n_units
        self.value = np.full((n_units, k), -np.inf, np.float32)
        self.t = np.full((n_units, k), -1, np.int64)
        self._n_seen = 0

    def add(
        self, t: Int64[NDArray[np.int64], " rows"], rows: Float32[NDArray[np.float32], "rows units"]
    ) -> None:
        """Add rows of tokens; NaN and -infinity are left out.

        Each step is as long as all rows before it: the more rows were seen, the fewer values of the
        next exceed the k-th best.

        Parameters
        ----------
        t : ndarray of int64, shape [rows]
            The tokens.
        rows : ndarray of float32, shape [rows, units]
            Their values.
        """
        start = 0
        while start < len(rows):
            step = max(2 * self.k, self._n_seen)
            self._step(t[start : start + step], rows[start : start + step])
            self._n_seen += step
            start += step

    def _step(self, t: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        worst, last = np.ascontiguousarray(self.value[:, -1]), self.t[:, -1]
        at = np.flatnonzero(rows >= worst)  # False where it is NaN
        row, unit = np.divmod(at, self.n_units)
        value, token = rows.reshape(-1)[at], t[row]
        better = (value > worst[unit]) | ((token < last[unit]) & (value > -np.inf))
        unit, value, token = unit[better], value[better], token[better]
        if not len(unit):
            return
        order = np.lexsort((token, -value, unit))
        unit, value, token = unit[order], value[order], token[order]
        units, first, count = np.unique(unit, return_index=True, return_counts=True)
        rank = np.arange(len(unit)) - np.repeat(first, count)
        place = np.repeat(np.arange(len(units)), count)
        few = rank < self.k
        self._merge(units, place[few], rank[few], value[few], token[few])

    def _merge(
        self,
        units: NDArray[np.int64],
        place: NDArray[np.int64],
        rank: NDArray[np.int64],
        value: NDArray[np.float32],
        token: NDArray[np.int64],
    ) -> None:
        """Merge at most ``k`` new tokens of each of some units with the tokens kept so far."""
        none = np.iinfo(np.int64).max
        width = int(rank.max()) + 1
        values = np.full((len(units), self.k + width), -np.inf, np.float32)
        tokens = np.full((len(units), self.k + width), none, np.int64)
        values[:, : self.k] = self.value[units]
        tokens[:, : self.k] = np.where(self.t[units] < 0, none, self.t[units])
        values[place, self.k + rank] = value
        tokens[place, self.k + rank] = token
        order = np.lexsort((tokens, -values), axis=-1)[:, : self.k]
        self.value[units] = np.take_along_axis(values, order, axis=1)
        kept = np.take_along_axis(tokens, order, axis=1)
        self.t[units] = np.where(kept == none, -1, kept)


class ExtremesGatherer:
    """Gathers the extremes of all units of one hookpoint, which is one unit of work.

    Parameters
    ----------
    store : StoreReader
        A store of which every shard is extracted.
    hookpoint : str
        The hookpoint.
    k : int
        The number of tokens to keep of each end.
    progress : callable
        Called with (shards read, shards in all).

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    ConfigError
        ``k`` is out of range.
    NotExtractedError
        Not every shard is extracted.
    """

    def __init__(
        self,
        store: StoreReader,
        hookpoint: str,
        k: int = KEEP,
        progress: Progress = lambda _done, _of: None,
    ) -> None:
        self.store, self.hookpoint, self.k = store, hookpoint, k
        self._array, self._progress = store.activations[hookpoint], progress
        if not 1 <= k <= KEEP_MAX:
            raise ConfigError(f"got k = {k} tokens of each end, expected 1 to {KEEP_MAX}.", k=k)
        missing = sorted({*range(store.plan.n_shards)} - {*store.whole()})
        if missing:
            raise NotExtractedError(
                f"{store.path}: {len(missing)} of {store.plan.n_shards} shards are not extracted "
                f"yet. `actlas extract {store.path}` extracts them.",
                shards=missing,
            )

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Gather the extremes in one pass over the rows, and write them.

        Parameters
        ----------
        shard : int
            The number of the unit of work: 0.
        attempt : str
            The name of this attempt, for the receipt.
        """
        store, hookpoint, n_units = self.store, self.hookpoint, self._array.shape[1]
        top, bottom = Best(n_units, self.k), Best(n_units, self.k)
        with ThreadPoolExecutor(1, thread_name_prefix="actlas-extremes") as other:
            for t, rows in _blocks(store, self._array, n_units, self._progress):
                below = other.submit(bottom.add, t, -rows)
                top.add(t, rows)
                below.result()
        ensure_groups(store, EXTREMES, hookpoint)
        done = commit(
            store,
            EXTREMES.unit_of_work(store, hookpoint, shard, 0, n_units),
            {"hookpoint": hookpoint},
            {
                "top_value": np.where(top.t < 0, np.float32(np.nan), top.value),
                "top_t": top.t,
                "bottom_value": np.where(bottom.t < 0, np.float32(np.nan), -bottom.value),
                "bottom_t": bottom.t,
            },
            attempt=attempt,
            inputs=extract_inputs(store, range(store.plan.n_shards)),
            specs=extreme_specs(n_units, self.k),
            run={"k": self.k},
        )
        sweep(store, EXTREMES, hookpoint)
        return done


def gather_extremes(
    store: StoreReader,
    hookpoint: str,
    *,
    attempt: str,
    k: int = KEEP,
    progress: Progress = lambda _done, _of: None,
) -> Units:
    """Gather and write the extremes of every unit of a hookpoint, once for a store.

    Special tokens that the tokenizer added and values that are NaN or infinite are left out.

    Parameters
    ----------
    store : StoreReader
        The store.
    hookpoint : str
        The hookpoint.
    attempt : str
        The name of this attempt, for the receipt.
    k : int
        The number of tokens to keep of each end.
    progress : callable
        Called with (shards read, shards in all).

    Raises
    ------
    HookpointError, ConfigError, NotExtractedError
        As :class:`ExtremesGatherer`.
    """
    ExtremesGatherer(store, hookpoint, k, progress).extract(0, attempt=attempt)
    return open_units(store, hookpoint)


def _blocks(
    store: StoreReader, array: LazyArray, n_units: int, progress: Progress
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield blocks of tokens and rows without special tokens, with infinities set to NaN."""
    plan = store.plan
    n_rows = max(1, BLOCK_VALUES // n_units)
    for shard in range(plan.n_shards):
        start, stop = store.shard_range(shard)
        reader = array.reader(shard)
        t = layout.shard_tokens(plan.order, plan.seed, start, stop)
        kept = ~store.documents.special(start, stop)[t - start]
        for first in range(0, stop - start, n_rows):
            last = min(first + n_rows, stop - start)
            rows = reader.read_rows(first, last).astype(np.float32)
            if not kept[first:last].all():
                rows = rows[kept[first:last]]
            if not np.isfinite(rows).all():
                rows[np.isinf(rows)] = np.nan
            yield t[first:last][kept[first:last]], rows
        progress(shard + 1, plan.n_shards)
