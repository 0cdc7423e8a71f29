"""Which row comes when: the order of shuffled batches. Integers in, integers out.

The unit of reading is a whole inner chunk. Chunks are selected and put in a seeded order that is
even over shards; laid out they make a line of N rows, new in every epoch, cut into groups of P
rows. A group's chunks are read whole into a pool, its rows are permuted there and cut into
batches of B; P is a multiple of B::

    chunks       |  17  |  4  |  31  |  8  |  22  |  5  |  40  |  13  | 9 |
    line         0                                                        N
    groups, P    |------ 0 ------|------ 1 ------|------ 2 ------|--rest--|
    2 ranks      |    rank 0     |    rank 1     | r0 piece | r1 piece    |
                 '---------- round 0 ------------'------- the rest -------'

Every rank gives the same number of batches. A state is (epoch, base, batch): the rows of the line
that were done before the present number of ranks took over, and the batches that each rank gave
since. It is the same on all ranks, and at a round's end the number of ranks may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.layout import ceil_div, hash64

STREAM_CHUNKS = 3

STREAM_STRATA = 4

STREAM_EPOCHS = 5

STREAM_POOL = 6

Integers = NDArray[np.int64]


def even_order(seed: int, shard: Integers, chunk: Integers) -> Integers:
    """Return a random order of chunks in which every stretch is even over shards.

    The chunks of a shard are put in a random order and the k-th of n gets a random place in
    [k / n, (k + 1) / n): jittered stratified sampling. A prefix that holds a share f of all chunks
    holds f * n of each shard's, rounded up or down.

    Parameters
    ----------
    seed : int
        Another seed gives another order.
    shard : ndarray of int64, shape [n], ascending
        The shard of each chunk.
    chunk : ndarray of int64, shape [n]
        The chunk's number in the store, which no other has.

    Returns
    -------
    ndarray of int64, shape [n]
        Indexes into the two.

    Examples
    --------
    >>> shard = np.repeat([0, 1], 4)
    >>> [int(s) for s in shard[even_order(0, shard, np.arange(8))]]
    [1, 0, 1, 0, 0, 1, 1, 0]
    """
    shuffled = np.lexsort((hash64(seed, STREAM_CHUNKS, chunk), shard))
    _, first, count = np.unique(shard, return_index=True, return_counts=True)
    rank = np.arange(len(shard), dtype=np.int64) - np.repeat(first, count)
    jitter = (hash64(seed, STREAM_STRATA, chunk[shuffled]) >> np.uint64(11)) * 2.0**-53
    place = (rank + jitter) / np.repeat(count, count)
    return shuffled[np.lexsort((chunk[shuffled], place))]


class Selection(NamedTuple):
    """Chunks to read and which of their usable rows count, shape [n] each, in order of shards.

    A chunk's usable rows are numbered from 0 in the order in which they lie; ``[start, stop)`` of
    them are selected: all, but for the first and last chunk of the selection.
    """

    shard: Integers
    chunk: Integers
    start: Integers
    stop: Integers

    @property
    def sizes(self) -> Integers:
        """Selected rows of each chunk."""
        return self.stop - self.start

    @property
    def n_rows(self) -> int:
        """Selected rows of all."""
        return int(self.sizes.sum())


def select(
    seed: int,
    shard: Integers,
    chunk: Integers,
    usable: Integers,
    fraction: float = 1.0,
    skip: float = 0.0,
) -> Selection:
    """Select a fraction of the usable rows, by whole chunks, evenly over shards.

    Rows [skip * n, (skip + fraction) * n), rounded, of the chunks laid out in a fixed random
    order. So (skip 0, fraction 0.1) and (skip 0.1, fraction 0.1) share no row.

    Parameters
    ----------
    seed : int
        The same for selections that are to be disjoint.
    shard, chunk, usable : ndarray of int64, shape [n]
        Of each chunk: its shard (ascending), its number in the store, its usable rows.
    fraction, skip : float
        In [0, 1], and so is their sum.
    """
    order = even_order(seed, shard, chunk)
    total = int(usable.sum())
    first = round(round(skip, 12) * total)
    last = round(round(skip + fraction, 12) * total)
    begins = np.cumsum(usable[order]) - usable[order]
    start = np.empty_like(usable)
    stop = np.empty_like(usable)
    start[order] = np.clip(first - begins, 0, usable[order])
    stop[order] = np.clip(last - begins, 0, usable[order])
    kept = stop > start
    return Selection(shard[kept], chunk[kept], start[kept], stop[kept])


class Request(NamedTuple):
    """What to read for a piece of the line, and how to order it.

    Attributes
    ----------
    chunk, start, stop : ndarray of int64, shape [k]
        Of each chunk, in the line's order, usable rows [start, stop).
    order : ndarray of int64, shape [n]
        The permutation of those n rows, laid one after the other.
    """

    chunk: Integers
    start: Integers
    stop: Integers
    order: Integers


class Epoch:
    """One epoch's line: the selected chunks in a new order, even over shards."""

    def __init__(self, selection: Selection, seed: int, epoch: int) -> None:
        self._seed = int(hash64(seed, STREAM_EPOCHS, np.array([epoch]))[0])
        order = even_order(self._seed, selection.shard, selection.chunk)
        self._chunk, self._start = selection.chunk[order], selection.start[order]
        self._edges = np.concatenate([[0], np.cumsum(selection.sizes[order])])

    def request(self, start: int, stop: int) -> Request:
        """Return what rows [start, stop) of the line ask for."""
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        last = max(first, int(np.searchsorted(self._edges, stop, side="left")))
        edges = self._edges[first : last + 1]
        offset = self._start[first:last] - edges[:-1]
        key = hash64(self._seed, STREAM_POOL, np.arange(start, stop, dtype=np.int64))
        return Request(
            chunk=self._chunk[first:last],
            start=np.maximum(edges[:-1], start) + offset,
            stop=np.minimum(edges[1:], stop) + offset,
            order=np.argsort(key),  # no ties: for one seed and stream the hash is a bijection
        )


class Piece(NamedTuple):
    """Rows [start, stop) of the line, cut into batches at ``edges`` (counted from ``start``)."""

    start: int
    stop: int
    edges: Integers

    @property
    def n_batches(self) -> int:
        """How many batches."""
        return len(self.edges) - 1


@dataclass(frozen=True, slots=True)
class Deal:
    """How a line of rows is dealt to ranks: by groups in turn, the rest evenly.

    Parameters
    ----------
    n_rows : int
        Of the line.
    batch_size, pool_rows : int
        Rows of a batch and of a group; the second is a multiple of the first.
    rank, world_size : int
    drop_last : bool
        Leave out what makes no full batch on every rank.
    base : int
        Rows of the line that were dealt before.
    """

    n_rows: int
    batch_size: int
    pool_rows: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    base: int = 0

    @property
    def group_batches(self) -> int:
        """Batches of a full group."""
        return self.pool_rows // self.batch_size

    @property
    def n_rounds(self) -> int:
        """Rounds in which every rank has a full group."""
        return (self.n_rows - self.base) // (self.pool_rows * self.world_size)

    @property
    def rest_batches(self) -> int:
        """Batches that each rank makes of the rest."""
        rest, share = self._rest, self.world_size * self.batch_size
        return rest // share if self.drop_last else ceil_div(rest, share)

    @property
    def n_batches(self) -> int:
        """Batches of each rank."""
        return self.n_rounds * self.group_batches + self.rest_batches

    @property
    def n_pieces(self) -> int:
        """Pieces of each rank: its groups, then its part of the rest."""
        return self.n_rounds + (self.rest_batches > 0)

    @property
    def _rest(self) -> int:
        return (self.n_rows - self.base) % (self.pool_rows * self.world_size)

    def piece(self, index: int) -> Piece:
        """Return a piece of this rank."""
        size = self.batch_size
        if index < self.n_rounds:
            start = self.base + (index * self.world_size + self.rank) * self.pool_rows
            edges = np.arange(self.group_batches + 1, dtype=np.int64) * size
            return Piece(start, start + self.pool_rows, edges)
        rest, n = self._rest, self.rest_batches
        start = self.n_rows - rest + rest * self.rank // self.world_size
        stop = self.n_rows - rest + rest * (self.rank + 1) // self.world_size
        edges = np.arange(n + 1, dtype=np.int64) * size
        if not self.drop_last:
            rows = stop - start
            edges = np.minimum(edges, rows)
            if n > 1 and size > 1 and edges[-2] == rows:
                # With one row less than another rank there is none left for the last batch: the
                # one before it gives one, since a trainer has no use for an empty batch.
                edges[-2] -= 1
        return Piece(start, start + int(edges[-1]), edges)

    def locate(self, batch: int) -> tuple[int, int]:
        """Return (piece, batch within it) of this rank's batch."""
        piece = min(batch // self.group_batches, self.n_rounds)
        return piece, batch - piece * self.group_batches

    def rows_before(self, batch: int) -> int | None:
        """Return the rows of the line done by all ranks, where ``batch`` is a round's end."""
        rounds, within = divmod(batch, self.group_batches)
        if within or rounds > self.n_rounds:
            return None
        return self.base + rounds * self.pool_rows * self.world_size


def pool_slots(sizes: Integers, pool_rows: int) -> int:
    """Return the most chunks that any ``pool_rows`` rows of any order of chunks can touch.

    Parameters
    ----------
    sizes : ndarray of int64, shape [n]
        Rows of each chunk, above zero.
    pool_rows : int
    """
    whole = np.cumsum(np.sort(sizes))  # the smallest ones inside, and one cut at each end
    return min(len(sizes), int(np.searchsorted(whole, pool_rows - 2, side="right")) + 2)
