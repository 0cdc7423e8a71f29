"""How an index by feature is made: its blocks of features, and the passes over the codes.

The features are cut into blocks by their number of codes. As many blocks as fit the memory of a
worker are made in one pass over the codes by token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actlas.store.features.codes import Codes, token_dtype
from actlas.store.features.features import Features
from actlas.store.ledger.derived import input_seal, same_inputs
from actlas.store.ledger.feature_sets import spec_key
from actlas.store.ledger.job_kinds import ENCODED, INDEX
from actlas.store.ledger.receipts import receipt_key

if TYPE_CHECKING:
    from actlas.store.read.reader import StoreReader

BLOCK_CODES = 1 << 22
"""Codes of a block of features; one feature alone may have more."""

BLOCK_BYTES_PER_CODE = 40
"""Bytes of memory per code, beside the codes themselves, while a block is sorted and written."""

SHARD_BYTES_PER_CODE = 56
"""Bytes of memory per code while a shard's codes are put in their places."""

MEMORY_BYTES = 1 << 30

Progress = Callable[[str, int, int], None]
"""Called with (the step, shards read, shards in all)."""


def silent(_step: str, _done: int, _of: int) -> None:
    """Report no progress: the default."""


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """What each feature's codes add up to.

    Attributes
    ----------
    count : ndarray of int64, shape [features]
        The tokens on which the feature is above zero.
    sum : ndarray of float64, shape [features]
        The sum of its activations.
    max : ndarray of float32, shape [features]
        The largest activation; 0 where the feature is never above zero.
    """

    count: NDArray[np.int64]
    sum: NDArray[np.float64]
    max: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class IndexPlan:
    """The blocks that a set of features is cut into, and the passes that make those missing.

    Attributes
    ----------
    counts : ndarray of int64, shape [features]
        The codes of each feature.
    edges : ndarray of int64, shape [blocks + 1]
        The first feature of every block, and at the end the number of features. A block's unit of
        work has the number of its first feature.
    passes : tuple of (int, int)
        Features [start, stop) of the blocks that are made in one pass over the codes by token.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.int64]
    passes: tuple[tuple[int, int], ...]

    @property
    def blocks(self) -> dict[int, int]:
        """The features [start, stop) of every block, by the first."""
        return dict(pairwise(self.edges.tolist()))

    def follows(self) -> dict[int, int]:
        """Return the blocks that one pass makes with the one before, which it is mapped to."""
        starts = {start for start, _ in self.passes}
        planned = [edge for edge in self.edges[:-1].tolist() if self._pass_of(edge) is not None]
        return {block: before for before, block in pairwise(planned) if block not in starts}

    def rest_of_pass(self, block: int) -> tuple[int, int, int]:
        """Return the number of a block's pass, and the features from it to the pass's end.

        A block that was there when this was planned, and is gone, is a pass of its own.
        """
        found = self._pass_of(block)
        if found is None:
            return len(self.passes), block, self.blocks[block]
        return found, block, self.passes[found][1]

    def _pass_of(self, block: int) -> int | None:
        starts = [start for start, _ in self.passes]
        place = int(np.searchsorted(starts, block, side="right")) - 1
        return place if place >= 0 and block < self.passes[place][1] else None


def totals_of(store: StoreReader, features: Features, progress: Progress = silent) -> Totals:
    """Return each feature's number of codes, their sum and the largest, in one pass.

    Parameters
    ----------
    store : StoreReader
    features : Features
    progress : callable
        Called with (the step, shards read, shards in all).

    Raises
    ------
    FeatureError
        Not every token is encoded.
    """
    features.codes(0, 0)  # raises where not every token is encoded
    n = features.n_features
    counts, sums = np.zeros(n, np.int64), np.zeros(n, np.float64)
    largest = np.zeros(n, np.float32)
    for codes in codes_by_shard(store, features, "counting", progress):
        counts += np.bincount(codes.indices, minlength=n)
        sums += np.bincount(codes.indices, weights=codes.data, minlength=n)
        np.maximum.at(largest, codes.indices, codes.data)
    return Totals(counts, sums, largest)


def plan_index(
    store: StoreReader,
    features: Features,
    counts: NDArray[np.int64],
    *,
    memory_bytes: int = MEMORY_BYTES,
    block_codes: int = BLOCK_CODES,
    n_workers: int = 1,
) -> IndexPlan:
    """Cut a set of features into blocks, and those that are missing into passes.

    Parameters
    ----------
    store : StoreReader
    features : Features
    counts : ndarray of int64, shape [features]
        The codes of each feature.
    memory_bytes : int
        The memory of one worker, which holds the codes of a pass.
    block_codes : int
        Codes of a block.
    n_workers : int
        How many workers there are: each gets a pass where there are blocks enough.

    Raises
    ------
    ConflictError
        A block was made from other codes than those that are there now.
    """
    receipts, inputs = INDEX.receipts(store, features.name), index_inputs(store, features)
    done = {unit: same_inputs(store, receipts.read(unit), inputs).stop for unit in receipts.done()}
    edges = cut_blocks(counts, block_codes, done)
    room = codes_that_fit(store, features, counts, edges, memory_bytes)
    todo = sum(int(counts[a:b].sum()) for a, b in pairwise(edges.tolist()) if a not in done)
    room = min(room, -(-todo // n_workers))
    found = _passes(counts, edges, done, room)
    return IndexPlan(counts, edges, tuple((int(edges[a]), int(edges[b])) for a, b in found))


def index_inputs(store: StoreReader, features: Features) -> dict[str, str]:
    """Return the keys and seals of the records that every block is made from."""
    table = receipt_key(ENCODED.job(features.name), 0)
    return {spec_key(features.name): features.seal, table: input_seal(store.objects, table)}


def cut_blocks(
    counts: NDArray[np.int64], block_codes: int, done: Mapping[int, int] | None = None
) -> NDArray[np.int64]:
    """Return the first feature of every block, and at the end the number of features.

    A block takes features until one more would exceed ``block_codes``; a larger one is alone.
    Blocks that are there already keep their borders, whatever they were cut by.

    Parameters
    ----------
    counts : ndarray of int64, shape [features]
    block_codes : int
    done : mapping of int to int, optional
        The features [start, stop) of the blocks that are there.

    >>> cut_blocks(np.array([3, 3, 9, 1, 1]), 6).tolist()
    [0, 2, 3, 5]
    >>> cut_blocks(np.array([3, 3, 9, 1, 1]), 6, {1: 3}).tolist()
    [0, 1, 3, 5]
    """
    there = dict(done or {})
    edges, held = [0], 0
    for feature, count in enumerate(counts.tolist()):
        inside = feature < there.get(edges[-1], 0)
        if feature > edges[-1] and not inside:
            full = held + count > block_codes
            if full or feature in there or edges[-1] in there:
                edges.append(feature)
                held = 0
        held += count
    return np.array([*edges, len(counts)], np.int64)


def codes_that_fit(
    store: StoreReader,
    features: Features,
    counts: NDArray[np.int64],
    edges: NDArray[np.int64],
    memory_bytes: int,
) -> int:
    """Return how many codes a pass may hold: what is left beside a shard's and a block's work."""
    largest_block = max((int(counts[a:b].sum()) for a, b in pairwise(edges)), default=0)
    largest_shard = features.largest_shard()
    left = (
        memory_bytes - BLOCK_BYTES_PER_CODE * largest_block - SHARD_BYTES_PER_CODE * largest_shard
    )
    return max(0, left) // (np.dtype(token_dtype(store.plan.n_tokens)).itemsize + 4)


def _passes(
    counts: NDArray[np.int64], edges: NDArray[np.int64], done: Collection[int], n_codes: int
) -> Iterator[tuple[int, int]]:
    """Yield ranges of blocks that are not done and fit the memory together, at least one each.

    ``done`` holds the first features of the blocks that are.
    """
    sizes = np.add.reduceat(counts, edges[:-1]) if len(counts) else np.zeros(0, np.int64)
    first, held = 0, 0
    for block in range(len(edges) - 1):
        there = int(edges[block]) in done
        if there or (block > first and held + sizes[block] > n_codes):
            if block > first:
                yield first, block
            first, held = block, 0
        if there:
            first = block + 1
        else:
            held += int(sizes[block])
    if first < len(edges) - 1:
        yield first, len(edges) - 1


def codes_by_shard(
    store: StoreReader, features: Features, step: str, progress: Progress
) -> Iterator[Codes]:
    """Yield the codes of every shard's tokens.

    Parameters
    ----------
    store : StoreReader
    features : Features
    step : str
        The name of the step, for the progress.
    progress : callable
        Called with (the step, shards read, shards in all).
    """
    n_shards = store.plan.n_shards
    for shard in range(n_shards):
        yield features.codes(*store.shard_range(shard))
        progress(step, shard + 1, n_shards)
