"""The order of batches, in integers: everything once, evenly dealt, well mixed."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actlas.analysis.batches.sampler import (
    Epoch,
    Request,
    Schedule,
    Selection,
    even_order,
    select,
)


def chunks(sizes: list[list[int]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Shard, chunk number and usable rows, as a store of these chunks per shard has them."""
    shard = np.repeat(np.arange(len(sizes)), [len(s) for s in sizes])
    number = np.concatenate([10 * i + np.arange(len(s)) for i, s in enumerate(sizes)])
    return shard, number, np.concatenate([np.array(s, np.int64) for s in sizes])


def listed(chunk: Any, start: Any, stop: Any) -> list[tuple[int, int]]:
    """Every (chunk, usable row), written out one by one."""
    return [
        (int(c), row)
        for c, lo, hi in zip(chunk, start, stop, strict=True)
        for row in range(int(lo), int(hi))
    ]


def batches_of(request: Request) -> list[list[tuple[int, int]]]:
    """The rows of each batch of a request, by plain Python."""
    laid = listed(request.block, request.start, request.stop)
    assert len(set(request.order.tolist())) == len(request.order) <= len(laid)
    rows = [laid[i] for i in request.order.tolist()]
    edges = request.edges.tolist()
    return [rows[a:b] for a, b in itertools.pairwise(edges)]


def epoch_of(
    epoch: Epoch, schedule: Schedule, rank: int = 0, ranks: int = 1
) -> list[list[tuple[int, int]]]:
    """All batches of a rank."""
    found = []
    for i in range(schedule.n_groups):
        size = schedule.group_size(i)
        request = epoch.request(schedule.group(i), schedule.batch_size, size, rank, ranks)
        assert request.n_batches == size
        found += batches_of(request)
    return found


shard_sizes = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=6
).filter(lambda sizes: sum(map(sum, sizes)) > 0)


@pytest.mark.slow
@given(
    sizes=shard_sizes,
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    share=st.integers(1, 4),
    groups=st.integers(1, 4),
    ranks=st.integers(1, 5),
    drop_last=st.booleans(),
    fraction=st.floats(0.01, 1),
)
@settings(max_examples=300, deadline=None)
def test_an_epoch_gives_each_selected_row_once_and_any_ranks_the_same_batches(
    sizes: list[list[int]],
    seed: int,
    epoch: int,
    share: int,
    groups: int,
    ranks: int,
    drop_last: bool,
    fraction: float,
) -> None:
    selection = select(seed, *chunks(sizes), fraction=fraction)
    n, batch = selection.n_rows, share * ranks
    assert n == round(fraction * sum(map(sum, sizes)))
    if n == 0:
        return
    line = Epoch(selection, seed, epoch)
    schedule = Schedule(n, batch, groups * batch, drop_last)
    alone = epoch_of(line, schedule)
    each = [epoch_of(line, schedule, rank, ranks) for rank in range(ranks)]
    assert [[row for part in parts for row in part] for parts in zip(*each, strict=True)] == alone
    # Sizes: full ones, and at the end what is left; a rank's share is a row more or less.
    wanted = [batch] * (n // batch) + [n % batch] * (n % batch > 0 and not drop_last)
    assert [len(rows) for rows in alone] == wanted
    for parts in zip(*each, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    once = Counter(row for rows in alone for row in rows)
    every = set(listed(selection.block, selection.start, selection.stop))
    assert set(once.values()) <= {1} and once.keys() <= every
    assert drop_last or once.keys() == every
    for step in range(len(alone)):
        group, within = schedule.locate(step)
        found = batches_of(line.request(schedule.group(group), batch, schedule.group_size(group)))
        assert found[within] == alone[step]


@given(
    n=st.integers(1, 300),
    batch=st.integers(1, 12),
    groups=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_a_batch_takes_one_row_of_each_lane(n: int, batch: int, groups: int, seed: int) -> None:
    """The lanes written out: the l-th of B begins at l n / B, rounded down."""
    selection = select(seed, *chunks([[1] * n]))
    line, schedule = Epoch(selection, seed, 0), Schedule(n, batch, groups * batch)
    for index in range(schedule.n_groups):
        start, stop = schedule.group(index)
        size = stop - start
        edges = [lane * size // batch for lane in range(batch + 1)]
        request = line.request((start, stop), batch, schedule.group_size(index))
        for a, b in zip(request.edges[:-1], request.edges[1:], strict=True):
            places = request.order[a:b].tolist()
            lanes = [max(k for k in range(batch) if edges[k] <= place) for place in places]
            assert lanes == sorted(set(lanes))
            full = [k for k in range(batch) if edges[k + 1] - edges[k] > size // batch]
            assert len(places) == batch or lanes == full


@given(sizes=shard_sizes, seed=st.integers(0, 99), cut=st.floats(0.1, 0.9))
@settings(max_examples=100, deadline=None)
def test_what_is_skipped_and_what_is_taken_make_the_whole(
    sizes: list[list[int]], seed: int, cut: float
) -> None:
    table = chunks(sizes)
    first = select(seed, *table, fraction=cut)
    second = select(seed, *table, fraction=1 - cut, skip=cut)
    one = listed(first.block, first.start, first.stop)
    two = listed(second.block, second.start, second.stop)
    assert sorted(one + two) == sorted(listed(table[1], 0 * table[2], table[2]))


@given(
    n_chunks=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_every_prefix_is_even_over_shards(n_chunks: list[int], seed: int, share: float) -> None:
    shard, number, _ = chunks([[1] * n for n in n_chunks])
    order = even_order(seed, shard, number)
    assert sorted(order.tolist()) == list(range(len(shard)))
    # A prefix ends somewhere in [0, 1): no shard of n chunks is more than one off its share there.
    prefix = round(share * len(shard))
    taken = np.bincount(shard[order[:prefix]], minlength=len(n_chunks))
    low = max((t - 1) / n for t, n in zip(taken, n_chunks, strict=True))
    high = min((t + 1) / n for t, n in zip(taken, n_chunks, strict=True))
    assert low <= high


def test_seeds_and_epochs_give_other_orders_of_which_none_is_preferred() -> None:
    shard, number, usable = chunks([[4] * 8] * 4)
    selection = select(0, shard, number, usable)
    schedule = Schedule(128, 16, 64)

    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        return [row for rows in epoch_of(Epoch(selection, seed, epoch), schedule) for row in rows]

    assert len({tuple(order(seed, e)) for seed in (0, 1) for e in (0, 1, 2)}) == 6
    # Where a row comes is uniform: 600 epochs, chi-squared of 8 places, 7 degrees of freedom.
    places = np.zeros((4, 8))
    for e in range(600):
        line = order(5, e)
        for i, row in enumerate([(0, 0), (7, 3), (13, 1), (37, 2)]):
            places[i, line.index(row) // 16] += 1
    chi2 = ((places - 75) ** 2 / 75).sum(axis=1)
    assert (chi2 < 26.0).all(), chi2  # p = 0.0005 each


def test_a_fraction_takes_each_chunk_equally_often() -> None:
    """Chunks of a long shard and of a short one alike, in 2,000 seeds."""
    table = chunks([[1] * 9, [1], [1] * 4])
    hits = np.zeros(14)
    for seed in range(2000):
        taken = select(seed, *table, fraction=0.5)
        hits[np.searchsorted(table[1], taken.block)] += 1
    expected, deviation = 1000, np.sqrt(2000 * 0.25)
    assert (abs(hits - expected) < 5 * deviation).all(), hits


def test_a_billion_rows_take_seconds_not_minutes() -> None:
    """Chunks of 1,024 rows of a billion: the integers of a start stay small."""
    n_shards = 15_259
    shard = np.repeat(np.arange(n_shards), 64)
    usable = np.full(len(shard), 1024)
    selection: Selection = select(1, shard, np.arange(len(shard)), usable, fraction=0.1)
    request = Epoch(selection, 1, 0).request((10 * 262_144, 11 * 262_144), 8192, 32)
    assert len(np.unique(request.block // 64)) >= 256  # from all over the store


@pytest.mark.parametrize("rows", [256, 2560])
def test_a_group_holds_equal_parts_of_every_shard(rows: int) -> None:
    shard, number, usable = chunks([[8] * 10] * 32)
    request = Epoch(select(0, shard, number, usable), 0, 0).request((0, rows), 32, rows // 32)
    parts = np.bincount(request.block // 10, minlength=32)
    assert parts.max() - parts.min() <= 2
