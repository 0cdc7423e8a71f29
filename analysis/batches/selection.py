"""The rows of a stream of batches: a fraction of the extracted rows, without special tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.batches.sampler import Selection, select
from actlas.store.format.array_spec import ArraySpec
from actlas.store.shards.lazy_array import LazyArray

Integers = NDArray[np.int64]


class SpecialRows:
    """The rows of special tokens, one bit per row, and the usable rows of a block: all others.

    Parameters
    ----------
    spec : ArraySpec
        The layout of the array, with the rows of a block as those of a chunk.
    column : LazyArray of int, shape [rows]
        Not 0 for rows of special tokens.
    shards : sequence of int
        The extracted shards.
    """

    def __init__(self, spec: ArraySpec, column: LazyArray, shards: Sequence[int]) -> None:
        self._spec = spec
        self._bits = {
            shard: np.packbits(column.read(*spec.shard_range(shard)) != 0) for shard in shards
        }

    def counts(self, shard: int) -> Integers:
        """Return the number of usable rows in each block of a shard; shape [blocks]."""
        usable = ~self._flags(shard)
        starts = np.arange(0, len(usable), self._spec.chunk_rows)
        return np.add.reduceat(usable, starts, dtype=np.int64)

    def __call__(self, block: int) -> Integers:
        """Return the usable rows of a block, counted from the block's first row; shape [rows]."""
        shard, within = divmod(block, self._spec.chunks_per_shard)
        start = within * self._spec.chunk_rows
        return np.flatnonzero(~self._flags(shard, start, start + self._spec.chunk_rows))

    def _flags(self, shard: int, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        first, last = self._spec.shard_range(shard)
        stop = last - first if stop is None else min(stop, last - first)
        bits = np.unpackbits(self._bits[shard][start // 8 : -(-stop // 8)])
        return bits[start % 8 : start % 8 + stop - start].astype(np.bool_)


def in_blocks(specs: Sequence[ArraySpec]) -> ArraySpec:
    """Return the layout of arrays of the same rows in blocks that are whole chunks of each.

    Chunks are a power of two of rows, or a whole shard: the longest ones are blocks of all.

    Parameters
    ----------
    specs : sequence of ArraySpec
        The layouts of the arrays.
    """
    longest = max(spec.chunk_rows for spec in specs)
    return dataclasses.replace(specs[0], chunk_rows=longest)


def select_rows(
    spec: ArraySpec,
    done: Sequence[int],
    left_out: SpecialRows | None,
    seed: int,
    fraction: float,
    skip: float,
) -> Selection:
    """Return the selected blocks of the extracted shards.

    Parameters
    ----------
    spec : ArraySpec
        The layout of the array, with the rows of a block as those of a chunk.
    done : sequence of int
        The extracted shards, ascending.
    left_out : SpecialRows, optional
        Rows that are not usable. Default: all rows are.
    seed, fraction, skip
        See :func:`~actlas.analysis.batches.sampler.select`.
    """
    counts = []
    for shard in done:
        start, stop = spec.shard_range(shard)
        edges = np.append(np.arange(0, stop - start, spec.chunk_rows), stop - start)
        counts.append(np.diff(edges) if left_out is None else left_out.counts(shard))
    shard_of = np.repeat(np.array(done, dtype=np.int64), [len(c) for c in counts])
    within = np.concatenate([np.arange(len(c), dtype=np.int64) for c in counts])
    block = shard_of * spec.chunks_per_shard + within
    return select(seed, shard_of, block, np.concatenate(counts), fraction, skip)
