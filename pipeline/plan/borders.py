"""An order of documents in which shards end where sequences end. Pure integer arithmetic.

The part of a causal sequence before a shard's border is computed twice::

    shards      |-------- 0 --------|-------- 1 --------|
    sequences   |---a---|-----b-----|---c---|---d---|--e--|--
                                    0 twice         ^^^ e's first part twice

Near a border the planner therefore looks ahead in the seeded order for documents that fill the rest
of the shard exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jaxtyping import Int64, Integer

LOOK_AHEAD = 256
"""Documents to choose from near a border."""

NEAR = 24
"""Distance from a border, in documents of mean length, at which the choice begins."""


def fit_borders(
    lengths: Integer[NDArray[np.integer], " documents"],
    shard_rows: int,
    content: int,
    look_ahead: int = LOOK_AHEAD,
) -> Int64[NDArray[np.int64], " documents"]:
    """Return an order of documents in which few sequences cross a shard's border.

    Away from borders the given order is kept; near a border some of the next ``look_ahead``
    documents come earlier. The result depends on the arguments alone.

    Parameters
    ----------
    lengths : ndarray of int, shape [documents]
        Kept tokens of each document, in the seeded order.
    shard_rows : int
        Tokens of a shard.
    content : int
        Kept tokens of a full window.
    look_ahead : int
        Documents to choose from, at least 1.

    Returns
    -------
    ndarray of int64, shape [documents]
        ``order[i]`` is the index of the document that comes i-th.
    """
    n = len(lengths)
    edges = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    near = min(NEAR * int(edges[-1]) // max(1, n), shard_rows // 2)
    order = np.empty(n, dtype=np.int64)
    # Documents of earlier look-aheads that still wait come before `upcoming`, in their order.
    waiting: list[int] = []
    upcoming, placed, room = 0, 0, shard_rows
    while placed < n:
        if waiting and room > near and lengths[waiting[0]] < room:
            chosen: Sequence[int] = _up_to_border(waiting, lengths[waiting].tolist(), room, near)
            waiting = waiting[len(chosen) :]
        elif not waiting and room > near and lengths[upcoming] < room:
            # All documents up to the border's neighbourhood, in one step.
            reached = np.searchsorted(
                edges, [edges[upcoming] + room - near, edges[upcoming] + room]
            )
            chosen = range(upcoming, min(n, int(reached[0]), int(reached[1]) - 1))
            upcoming = chosen.stop
        else:
            more = min(n, upcoming + look_ahead - len(waiting))
            waiting += range(upcoming, more)
            upcoming = more
            places = _fill(lengths[waiting].tolist(), room, content)
            chosen = [waiting[k] for k in places]
            left = set(chosen)
            waiting = [i for i in waiting if i not in left]
        order[placed : placed + len(chosen)] = chosen
        placed += len(chosen)
        taken = int(lengths[chosen].sum())
        room = room - taken if taken < room else shard_rows - (taken - room) % shard_rows
    return order


def _up_to_border(waiting: list[int], sizes: list[int], room: int, near: int) -> list[int]:
    """Return the first waiting documents, up to the border's neighbourhood."""
    n = 0
    while n < len(sizes) and room > near and sizes[n] < room:
        room -= sizes[n]
        n += 1
    return waiting[:n]


def _fill(sizes: list[int], room: int, content: int) -> list[int]:
    """Return the indices of the documents that come next, up to the border or across it.

    A window that crosses the border costs its tokens before the border. Where no documents fill
    the room exactly, the longest one crosses, after a subset that minimizes its cost.
    """
    if sum(sizes) <= room:
        return [0]
    sums = _sums(sizes, room)
    if sums[-1] >> room & 1:
        return _subset(sizes, sums, room)
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    others = sizes[:longest] + sizes[longest + 1 :]
    sums = _sums(others, room)
    bits = np.frombuffer(sums[-1].to_bytes(room // 8 + 1, "little"), dtype=np.uint8)
    totals = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    before = room - totals
    cost = np.where(before < sizes[longest], before % content, content)
    total = int(totals[np.flatnonzero(cost == cost.min())[-1]])
    if sizes[longest] <= room - total:
        return [0]
    return [k + (k >= longest) for k in _subset(others, sums, total)] + [longest]


def _sums(sizes: list[int], room: int) -> list[int]:
    """Return, for each k, the sums of subsets of the first k sizes, up to ``room``: bit s for s."""
    mask = (1 << (room + 1)) - 1
    sums = [1]
    for size in sizes:
        sums.append((sums[-1] | (sums[-1] << size)) & mask if size <= room else sums[-1])
    return sums


def _subset(sizes: list[int], sums: list[int], total: int) -> list[int]:
    """Return indices whose sizes sum to a total, preferring early ones."""
    chosen: list[int] = []
    for k in range(len(sizes), 0, -1):
        if not sums[k - 1] >> total & 1:
            chosen.append(k - 1)
            total -= sizes[k - 1]
    return chosen[::-1]


def crossing_share(
    lengths: Integer[NDArray[np.integer], " documents"],
    shard_rows: int,
    content: int,
    *,
    causal: bool = True,
) -> float:
    """Return the share of the tokens that is computed again because windows cross borders.

    Parameters
    ----------
    lengths : ndarray of int, shape [documents]
        Kept tokens of each document, in the plan's order.
    shard_rows, content : int
        Tokens of a shard, and kept tokens of a full window.
    causal : bool
        Whether the model is causal: a window is then computed again up to each border within it,
        otherwise as a whole.
    """
    edges = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    n_tokens = int(edges[-1])
    borders = np.arange(shard_rows, n_tokens, shard_rows, dtype=np.int64)
    if len(borders) == 0:
        return 0.0
    document = np.searchsorted(edges, borders, side="right") - 1
    before = (borders - edges[document]) % content
    window = np.minimum(content, edges[document + 1] - (borders - before))
    again = before if causal else np.where(before > 0, window, 0)
    return float(again.sum()) / n_tokens
