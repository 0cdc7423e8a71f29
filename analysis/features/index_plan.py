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
    from jaxtyping import Float32, Float64, Int64

    from actlas.store.read.reader import StoreReader

BLOCK_CODES = 1 << 22
"""The number of codes of a block of features; one feature alone may have more."""

BLOCK_BYTES_PER_CODE = 40
"""Memory per code, in bytes, while a block is sorted and written, in addition to its codes."""

SHARD_BYTES_PER_CODE = 56
"""Memory per code, in bytes, while a shard's codes are written to their places."""

MEMORY_BYTES = 1 << 30
"""The default memory of a worker in bytes."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the number of shards read, and of all shards."""


def silent(_step: str, _done: int, _of: int) -> None:
    """Report no progress: the default."""


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """The count, sum and maximum of each feature's activations.

    Attributes
    ----------
    count : ndarray of int64, shape [features]
        The number of tokens on which the feature is above zero.
    sum : ndarray of float64, shape [features]
        The sum of its activations.
    max : ndarray of float32, shape [features]
        The largest activation; 0 if the feature is never above zero.
    """

    count: Int64[NDArray[np.int64], " features"]
    sum: Float64[NDArray[np.float64], " features"]
    max: Float32[NDArray[np.float32], " features"]


@dataclass(frozen=True, slots=True, eq=False)
class IndexPlan:
    """The blocks that a set of features is cut into, and the passes that make the missing blocks.

    Attributes
    ----------
    counts : ndarray of int64, shape [features]
        The number of codes of each feature.
    edges : ndarray of int64, shape [blocks + 1]
        The first feature of every block, and the number of features as the last edge. The unit of
        work of a block has the number of its first feature.
    passes : tuple of (int, int)
        The features [start, stop) that each pass over the codes by token makes.
    """

    counts: Int64[NDArray[np.int64], " features"]
    edges: Int64[NDArray[np.int64], " edges"]
    passes: tuple[tuple[int, int], ...]

    @property
    def blocks(self) -> dict[int, int]:
        """The features [start, stop) of every block, by the first."""
        return dict(pairwise(self.edges.tolist()))

    def follows(self) -> dict[int, int]:
        """Return the blocks of each pass but the first, mapped to the block before."""
        starts = {start for start, _ in self.passes}
        planned = [edge for edge in self.edges[:-1].tolist() if self._pass_of(edge) is not None]
        return {block: before for before, block in pairwise(planned) if block not in starts}

    def rest_of_pass(self, block: int) -> tuple[int, int, int]:
        """Return the number of a block's pass, and the features [start, stop) from it to the end.

        A block that was done when this was planned is a pass of its own.

        Parameters
        ----------
        block : int
            The first feature of the block.
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
        The store.
    features : Features
        The set of features.
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
    counts: Int64[NDArray[np.int64], " features"],
    *,
    memory_bytes: int = MEMORY_BYTES,
    block_codes: int = BLOCK_CODES,
    n_workers: int = 1,
) -> IndexPlan:
    """Cut a set of features into blocks, and group the missing blocks into passes.

    Parameters
    ----------
    store : StoreReader
        The store.
    features : Features
        The set of features.
    counts : ndarray of int64, shape [features]
        The number of codes of each feature.
    memory_bytes : int
        The memory of one worker, which holds the codes of a pass.
    block_codes : int
        The number of codes of a block.
    n_workers : int
        The number of workers: there are at least as many passes, if there are as many blocks.

    Raises
    ------
    ConflictError
        A block was made from other codes than the store's present ones.
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
    counts: Int64[NDArray[np.int64], " features"],
    block_codes: int,
    done: Mapping[int, int] | None = None,
) -> Int64[NDArray[np.int64], " edges"]:
    """Return the first feature of every block, and the number of features as the last edge.

    A block takes features until the next would exceed ``block_codes``; a feature with more codes is
    a block of its own. Blocks that are done keep their borders.

    Parameters
    ----------
    counts : ndarray of int64, shape [features]
        The number of codes of each feature.
    block_codes : int
        The number of codes of a block.
    done : mapping of int to int, optional
        The features [start, stop) of the blocks that are done.

    Examples
    --------
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
    """Return the number of codes that a pass may hold.

    It is what is left of the memory after the work on the largest shard and the largest block.

    Parameters
    ----------
    store : StoreReader
        The store.
    features : Features
        The set of features.
    counts : ndarray of int64, shape [features]
        The number of codes of each feature.
    edges : ndarray of int64, shape [blocks + 1]
        The borders of the blocks.
    memory_bytes : int
        The memory of one worker.
    """
    largest_block = max((int(counts[a:b].sum()) for a, b in pairwise(edges)), default=0)
    largest_shard = features.largest_shard()
    left = (
        memory_bytes - BLOCK_BYTES_PER_CODE * largest_block - SHARD_BYTES_PER_CODE * largest_shard
    )
    return max(0, left) // (np.dtype(token_dtype(store.plan.n_tokens)).itemsize + 4)


def _passes(
    counts: NDArray[np.int64], edges: NDArray[np.int64], done: Collection[int], n_codes: int
) -> Iterator[tuple[int, int]]:
    """Yield ranges [first, last) of missing blocks with ``n_codes`` codes at most, or of one block.

    ``done`` holds the first features of the blocks that are done.
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
        The store.
    features : Features
        The set of features.
    step : str
        The name of the step, for the progress.
    progress : callable
        Called with (the step, shards read, shards in all).
    """
    n_shards = store.plan.n_shards
    for shard in range(n_shards):
        yield features.codes(*store.shard_range(shard))
        progress(step, shard + 1, n_shards)
