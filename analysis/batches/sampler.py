"""The order of shuffled batches. Integers in, integers out: nothing is read here.

The unit of reading is a whole inner chunk. Chunks are selected and put in a seeded order that is
even over shards. Their rows in that order are the epoch order, N rows, new in every epoch. It is
cut into groups of P rows: the chunks of a group are read whole into the shuffle buffer, its rows
are permuted there and cut into batches of B rows; P is a multiple of B::

    chunks       |  17  |  4  |  31  |  8  |  22  |  5  |  40  |  13  | 9 |
    epoch order  0                                                        N
    groups, P    |------ 0 ------|------ 1 ------|------ 2 ------|--------|
    2 ranks      |    rank 0     |    rank 1     |   rank 0   |  rank 1   |
                 '---------- round 0 ------------'---------- tail --------'

A rank's part of a round or of the tail is a segment. Every rank gives the same number of batches.
A position is (epoch, base, batch): the rows of the epoch order that were given before the present
number of ranks took over, and the batches that each rank has given since. It is the same on all
ranks, and at the end of a round the number of ranks may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.layout import ceil_div, hash64

if TYPE_CHECKING:
    from jaxtyping import Int64

STREAM_CHUNKS = 3

STREAM_STRATA = 4

STREAM_EPOCHS = 5

STREAM_BUFFER = 6

Integers = NDArray[np.int64]


def even_order(
    seed: int, shard: Int64[Integers, " chunks"], chunk: Int64[Integers, " chunks"]
) -> Int64[Integers, " chunks"]:
    """Return a random order of chunks in which every stretch is even over shards.

    The chunks of a shard are put in a random order and the k-th of n gets a random place in
    [k / n, (k + 1) / n): jittered stratified sampling. A prefix that holds a share f of all chunks
    holds f * n of each shard's, rounded up or down.

    Parameters
    ----------
    seed : int
        Different seeds give different orders.
    shard : ndarray of int64, shape [n], ascending
        The shard of each chunk.
    chunk : ndarray of int64, shape [n]
        The chunk's number in the store, unique among all chunks.

    Returns
    -------
    ndarray of int64, shape [n]
        Indices into ``shard`` and ``chunk``.

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
    """The selected chunks and their selected rows, in the order of shards.

    The usable rows of a chunk are numbered from 0 in storage order; ``[start, stop)`` of them are
    selected: all of them, except in the first and the last chunk of the selection.

    Attributes
    ----------
    shard : ndarray of int64, shape [n]
        The shard of each chunk, ascending.
    chunk : ndarray of int64, shape [n]
        The chunk's number in the store.
    start, stop : ndarray of int64, shape [n]
        The selected usable rows.
    """

    shard: Integers
    chunk: Integers
    start: Integers
    stop: Integers

    @property
    def sizes(self) -> Integers:
        """Number of selected rows of each chunk; shape [n]."""
        return self.stop - self.start

    @property
    def n_rows(self) -> int:
        """Number of selected rows of all chunks."""
        return int(self.sizes.sum())


def select(
    seed: int,
    shard: Int64[Integers, " chunks"],
    chunk: Int64[Integers, " chunks"],
    usable: Int64[Integers, " chunks"],
    fraction: float = 1.0,
    skip: float = 0.0,
) -> Selection:
    """Select a fraction of the usable rows, by whole chunks, evenly over shards.

    Rows [skip * n, (skip + fraction) * n), rounded, of the chunks laid out in a fixed random
    order. So (skip 0, fraction 0.1) and (skip 0.1, fraction 0.1) share no row.

    Parameters
    ----------
    seed : int
        The seed of the chunks' order; the same for selections that must be disjoint.
    shard, chunk, usable : ndarray of int64, shape [n]
        For each chunk: its shard (ascending), its number in the store, its number of usable rows.
    fraction, skip : float
        The share of rows to select, and the share to leave out before it; each in [0, 1], and so
        is their sum.
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
    """A read request: the chunks of a segment, and the permutation of their rows.

    Attributes
    ----------
    chunk, start, stop : ndarray of int64, shape [k]
        For each chunk, in the epoch order: its number in the store, and its usable rows
        [start, stop).
    order : ndarray of int64, shape [n]
        The permutation of those n rows, concatenated chunk by chunk.
    """

    chunk: Integers
    start: Integers
    stop: Integers
    order: Integers


class Epoch:
    """The order of one epoch: the selected chunks in a new order, even over shards.

    Parameters
    ----------
    selection : Selection
        The selected chunks.
    seed : int
        The seed of the stream.
    epoch : int
        The epoch, from 0.
    """

    def __init__(self, selection: Selection, seed: int, epoch: int) -> None:
        self._seed = int(hash64(seed, STREAM_EPOCHS, np.array([epoch]))[0])
        order = even_order(self._seed, selection.shard, selection.chunk)
        self._chunk, self._start = selection.chunk[order], selection.start[order]
        self._edges = np.concatenate([[0], np.cumsum(selection.sizes[order])])

    def request(self, start: int, stop: int) -> Request:
        """Return the read request for rows [start, stop) of the epoch order."""
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        last = max(first, int(np.searchsorted(self._edges, stop, side="left")))
        edges = self._edges[first : last + 1]
        offset = self._start[first:last] - edges[:-1]
        key = hash64(self._seed, STREAM_BUFFER, np.arange(start, stop, dtype=np.int64))
        return Request(
            chunk=self._chunk[first:last],
            start=np.maximum(edges[:-1], start) + offset,
            stop=np.minimum(edges[1:], stop) + offset,
            order=np.argsort(key),  # no ties: for one seed and stream the hash is a bijection
        )


class Segment(NamedTuple):
    """A segment of the epoch order: the rows that one rank reads together.

    Attributes
    ----------
    start, stop : int
        Rows [start, stop) of the epoch order.
    edges : ndarray of int64, shape [batches + 1]
        Where batches begin and end, counted from ``start``.
    """

    start: int
    stop: int
    edges: Integers

    @property
    def n_batches(self) -> int:
        """Number of batches of the segment."""
        return len(self.edges) - 1


@dataclass(frozen=True, slots=True)
class RankSchedule:
    """The division of an epoch order among ranks: groups in turn, and the tail evenly.

    Parameters
    ----------
    n_rows : int
        Rows of the epoch order.
    batch_size, buffer_rows : int
        Rows of a batch and of a group; the second is a multiple of the first.
    rank, world_size : int
        This rank, from 0, and the number of ranks.
    drop_last : bool
        Whether to leave out rows that make no full batch on every rank.
    base : int
        Rows of the epoch order that were given before.
    """

    n_rows: int
    batch_size: int
    buffer_rows: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    base: int = 0

    @property
    def group_batches(self) -> int:
        """Batches of a full group."""
        return self.buffer_rows // self.batch_size

    @property
    def n_rounds(self) -> int:
        """Rounds in which every rank has a full group."""
        return (self.n_rows - self.base) // (self.buffer_rows * self.world_size)

    @property
    def tail_batches(self) -> int:
        """Batches that each rank makes of the tail."""
        rows, share = self._tail_rows, self.world_size * self.batch_size
        return rows // share if self.drop_last else ceil_div(rows, share)

    @property
    def n_batches(self) -> int:
        """Batches of each rank."""
        return self.n_rounds * self.group_batches + self.tail_batches

    @property
    def n_segments(self) -> int:
        """Segments of each rank: its groups, then its part of the tail."""
        return self.n_rounds + (self.tail_batches > 0)

    @property
    def _tail_rows(self) -> int:
        return (self.n_rows - self.base) % (self.buffer_rows * self.world_size)

    def segment(self, index: int) -> Segment:
        """Return this rank's segment with an index from 0."""
        size = self.batch_size
        if index < self.n_rounds:
            start = self.base + (index * self.world_size + self.rank) * self.buffer_rows
            edges = np.arange(self.group_batches + 1, dtype=np.int64) * size
            return Segment(start, start + self.buffer_rows, edges)
        tail, n = self._tail_rows, self.tail_batches
        start = self.n_rows - tail + tail * self.rank // self.world_size
        stop = self.n_rows - tail + tail * (self.rank + 1) // self.world_size
        edges = np.arange(n + 1, dtype=np.int64) * size
        if not self.drop_last:
            rows = stop - start
            edges = np.minimum(edges, rows)
            if n > 1 and size > 1 and edges[-2] == rows:
                # A rank with one row less than another has no row left for its last batch: the
                # batch before gives up one row, since a trainer has no use for an empty batch.
                edges[-2] -= 1
        return Segment(start, start + int(edges[-1]), edges)

    def locate(self, batch: int) -> tuple[int, int]:
        """Return the segment that holds this rank's batch, and the batch's number within it."""
        segment = min(batch // self.group_batches, self.n_rounds)
        return segment, batch - segment * self.group_batches

    def rows_before(self, batch: int) -> int | None:
        """Return the rows given by all ranks before ``batch``; None unless it ends a round."""
        rounds, within = divmod(batch, self.group_batches)
        if within or rounds > self.n_rounds:
            return None
        return self.base + rounds * self.buffer_rows * self.world_size


def buffer_slots(sizes: Int64[Integers, " chunks"], buffer_rows: int) -> int:
    """Return the largest number of chunks that ``buffer_rows`` rows of an epoch order can touch.

    Parameters
    ----------
    sizes : ndarray of int64, shape [n]
        Rows of each chunk, above zero.
    buffer_rows : int
        Rows of the shuffle buffer.
    """
    whole = np.cumsum(np.sort(sizes))  # the smallest chunks inside, and a partial one at each end
    return min(len(sizes), int(np.searchsorted(whole, buffer_rows - 2, side="right")) + 2)
