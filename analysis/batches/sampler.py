"""The order of shuffled batches. Integers in, integers out: nothing is read here.

The unit of reading is a block: a whole inner chunk, or several of them. Blocks are selected and put
in a seeded order that is even over shards. Their rows in that order are the epoch order, N rows,
new in every epoch. It is cut into groups of P rows, which are read into the shuffle buffer; P is a
multiple of the batch size B. A group is cut into B lanes of P / B consecutive rows, and each of its
P / B batches takes one row of every lane, which rows being drawn at random::

    blocks       |  17  |  4  |  31  |  8  |  22  |  5  |  40  |  13  | 9 |
    epoch order  0                                                        N
    groups, P    |------ 0 ------|------ 1 ------|------ 2 ------|-- 3 ---|
    lanes, B     |  |  |  |  |  ||  |  |  |  |  ||  |  |  |  |  || | | | ||
    2 ranks      |rank 0 | rank 1||rank 0 | rank 1||       ...

A batch is thus a stratified sample of its group. Rank r of W takes the batches' rows of its share
of the lanes, which is one stretch of the epoch order, so that each block is read by one rank (two
at a border), and the batches are the same whatever W is, if W divides B: the number of ranks may
change after any batch. A position is (epoch, step), the same on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.layout import ceil_div, hash64

if TYPE_CHECKING:
    from jaxtyping import Int64

STREAM_BLOCKS = 3

STREAM_STRATA = 4

STREAM_EPOCHS = 5

STREAM_BUFFER = 6

Integers = NDArray[np.int64]


def even_order(
    seed: int, shard: Int64[Integers, " blocks"], block: Int64[Integers, " blocks"]
) -> Int64[Integers, " blocks"]:
    """Return a random order of blocks in which every stretch is even over shards.

    The blocks of a shard are put in a random order and the k-th of n gets a random place in
    [k / n, (k + 1) / n): jittered stratified sampling. A prefix that holds a share f of all blocks
    holds f * n of each shard's, rounded up or down.

    Parameters
    ----------
    seed : int
        Different seeds give different orders.
    shard : ndarray of int64, shape [n], ascending
        The shard of each block.
    block : ndarray of int64, shape [n]
        The block's number in the store, unique among all blocks.

    Returns
    -------
    ndarray of int64, shape [n]
        Indices into ``shard`` and ``block``.

    Examples
    --------
    >>> shard = np.repeat([0, 1], 4)
    >>> [int(s) for s in shard[even_order(0, shard, np.arange(8))]]
    [1, 0, 1, 0, 0, 1, 1, 0]
    """
    shuffled = np.lexsort((hash64(seed, STREAM_BLOCKS, block), shard))
    _, first, count = np.unique(shard, return_index=True, return_counts=True)
    rank = np.arange(len(shard), dtype=np.int64) - np.repeat(first, count)
    jitter = (hash64(seed, STREAM_STRATA, block[shuffled]) >> np.uint64(11)) * 2.0**-53
    place = (rank + jitter) / np.repeat(count, count)
    return shuffled[np.lexsort((block[shuffled], place))]


class Selection(NamedTuple):
    """The selected blocks and their selected rows, in the order of shards.

    The usable rows of a block are numbered from 0 in storage order; ``[start, stop)`` of them are
    selected: all of them, except in the first and the last block of the selection.

    Attributes
    ----------
    shard : ndarray of int64, shape [n]
        The shard of each block, ascending.
    block : ndarray of int64, shape [n]
        The block's number in the store.
    start, stop : ndarray of int64, shape [n]
        The selected usable rows.
    """

    shard: Integers
    block: Integers
    start: Integers
    stop: Integers

    @property
    def sizes(self) -> Integers:
        """Number of selected rows of each block; shape [n]."""
        return self.stop - self.start

    @property
    def n_rows(self) -> int:
        """Number of selected rows of all blocks."""
        return int(self.sizes.sum())


def select(
    seed: int,
    shard: Int64[Integers, " blocks"],
    block: Int64[Integers, " blocks"],
    usable: Int64[Integers, " blocks"],
    fraction: float = 1.0,
    skip: float = 0.0,
) -> Selection:
    """Select a fraction of the usable rows, by whole blocks, evenly over shards.

    Rows [skip * n, (skip + fraction) * n), rounded, of the blocks laid out in a fixed random
    order. So (skip 0, fraction 0.1) and (skip 0.1, fraction 0.1) share no row.

    Parameters
    ----------
    seed : int
        The seed of the blocks' order; the same for selections that must be disjoint.
    shard, block, usable : ndarray of int64, shape [n]
        For each block: its shard (ascending), its number in the store, its number of usable rows.
    fraction, skip : float
        The share of rows to select, and the share to leave out before it; each in [0, 1], and so
        is their sum.
    """
    order = even_order(seed, shard, block)
    total = int(usable.sum())
    first = round(round(skip, 12) * total)
    last = round(round(skip + fraction, 12) * total)
    begins = np.cumsum(usable[order]) - usable[order]
    start = np.empty_like(usable)
    stop = np.empty_like(usable)
    start[order] = np.clip(first - begins, 0, usable[order])
    stop[order] = np.clip(last - begins, 0, usable[order])
    kept = stop > start
    return Selection(shard[kept], block[kept], start[kept], stop[kept])


class Request(NamedTuple):
    """A read request: the blocks of a rank's part of a group, and the order of their rows.

    Attributes
    ----------
    block, start, stop : ndarray of int64, shape [k]
        For each block, in the epoch order: its number in the store, and its usable rows
        [start, stop).
    order : ndarray of int64, shape [n]
        The n rows in the order of the batches, as indices into the usable rows, concatenated block
        by block.
    edges : ndarray of int64, shape [batches + 1]
        Where batches begin and end in ``order``.
    """

    block: Integers
    start: Integers
    stop: Integers
    order: Integers
    edges: Integers

    @property
    def n_batches(self) -> int:
        """Number of batches of the group."""
        return len(self.edges) - 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """The division of an epoch order into groups and batches; the same for any number of ranks.

    Parameters
    ----------
    n_rows : int
        Rows of the epoch order.
    batch_size, buffer_rows : int
        Rows of a batch and of a group, of all ranks; the second is a multiple of the first.
    drop_last : bool
        Whether to leave out the rows at the end that make no full batch.
    """

    n_rows: int
    batch_size: int
    buffer_rows: int
    drop_last: bool = False

    @property
    def group_batches(self) -> int:
        """Batches of a full group."""
        return self.buffer_rows // self.batch_size

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return self._batches(self.n_rows)

    @property
    def n_groups(self) -> int:
        """Groups of an epoch that give a batch."""
        return ceil_div(self.n_batches, self.group_batches)

    def group(self, index: int) -> tuple[int, int]:
        """Return the rows [start, stop) of the epoch order of a group, from 0."""
        start = index * self.buffer_rows
        return start, min(start + self.buffer_rows, self.n_rows)

    def group_size(self, index: int) -> int:
        """Return the number of batches of a group."""
        start, stop = self.group(index)
        return self._batches(stop - start)

    def locate(self, step: int) -> tuple[int, int]:
        """Return the group that holds a batch of the epoch, and the batch's number within it."""
        return divmod(step, self.group_batches)

    def _batches(self, rows: int) -> int:
        return rows // self.batch_size if self.drop_last else ceil_div(rows, self.batch_size)


class Epoch:
    """The order of one epoch: the selected blocks in a new order, even over shards.

    Parameters
    ----------
    selection : Selection
        The selected blocks.
    seed : int
        The seed of the stream.
    epoch : int
        The epoch, from 0.
    """

    def __init__(self, selection: Selection, seed: int, epoch: int) -> None:
        self._seed = int(hash64(seed, STREAM_EPOCHS, np.array([epoch]))[0])
        order = even_order(self._seed, selection.shard, selection.block)
        self._block, self._start = selection.block[order], selection.start[order]
        self._edges = np.concatenate([[0], np.cumsum(selection.sizes[order])])

    def request(
        self,
        group: tuple[int, int],
        batch_size: int,
        n_batches: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> Request:
        """Return the read request of a rank's part of a group.

        Parameters
        ----------
        group : (int, int)
            Rows [start, stop) of the epoch order.
        batch_size : int
            Rows of a batch, of all ranks.
        n_batches : int
            Batches that the group gives.
        rank, world_size : int
            This rank, from 0, and the number of ranks, which divides ``batch_size``.
        """
        n = group[1] - group[0]
        start = group[0] + n * rank // world_size
        stop = group[0] + n * (rank + 1) // world_size
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        last = max(first, int(np.searchsorted(self._edges, stop, side="left")))
        edges = self._edges[first : last + 1]
        offset = self._start[first:last] - edges[:-1]
        order, sizes = self._deal(group, start, stop, batch_size)
        ends = np.concatenate([[0], np.cumsum(sizes)])[: n_batches + 1]
        return Request(
            block=self._block[first:last],
            start=np.maximum(edges[:-1], start) + offset,
            stop=np.minimum(edges[1:], stop) + offset,
            order=order[: ends[-1]],
            edges=ends,
        )

    def _deal(
        self, group: tuple[int, int], start: int, stop: int, lanes: int
    ) -> tuple[Integers, Integers]:
        """Return rows [start, stop) in the order of batches, counted from start; batches' sizes.

        No two rows of a lane have the same key: for one seed and stream the hash is a bijection.
        """
        n = group[1] - group[0]
        place = np.arange(start, stop, dtype=np.int64)
        key = hash64(self._seed, STREAM_BUFFER, place)
        if n % lanes == 0:
            length = n // lanes
            rows = np.argsort(key.reshape(-1, length), axis=1)
            rows += np.arange(len(rows), dtype=np.int64)[:, None] * length
            return np.ascontiguousarray(rows.T).reshape(-1), np.full(length, len(rows))
        lane = ((place - group[0] + 1) * lanes - 1) // n  # the last one to begin at or before
        by_lane = np.lexsort((key, lane))
        batch = np.arange(len(lane), dtype=np.int64) - np.searchsorted(lane, lane)
        order = by_lane[np.argsort(batch, kind="stable")]
        return order, np.bincount(batch, minlength=ceil_div(n, lanes))
