"""The order of batches, in integers: everything once, evenly dealt, well mixed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actlas.analysis.batches.sampler import (
    Epoch,
    RankSchedule,
    Selection,
    buffer_slots,
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


def rows_of(epoch: Epoch, start: int, stop: int) -> list[tuple[int, int]]:
    """A segment's rows in the order in which they are given, by plain Python."""
    request = epoch.request(start, stop)
    laid = listed(request.chunk, request.start, request.stop)
    assert sorted(request.order.tolist()) == list(range(stop - start))
    return [laid[i] for i in request.order.tolist()]


shard_sizes = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=6
).filter(lambda sizes: sum(map(sum, sizes)) > 0)


@pytest.mark.slow
@given(
    sizes=shard_sizes,
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    batch=st.integers(1, 9),
    groups=st.integers(1, 4),
    ranks=st.integers(1, 5),
    drop_last=st.booleans(),
    share=st.floats(0.01, 1),
)
@settings(max_examples=300, deadline=None)
def test_an_epoch_gives_each_selected_row_once(
    sizes: list[list[int]],
    seed: int,
    epoch: int,
    batch: int,
    groups: int,
    ranks: int,
    drop_last: bool,
    share: float,
) -> None:
    selection = select(seed, *chunks(sizes), fraction=share)
    n = selection.n_rows
    assert n == round(share * sum(map(sum, sizes)))
    if n == 0:
        return
    line = Epoch(selection, seed, epoch)
    slots = buffer_slots(selection.sizes, groups * batch)
    given_rows: list[tuple[int, int]] = []
    counts = set()
    for rank in range(ranks):
        schedule = RankSchedule(n, batch, groups * batch, rank, ranks, drop_last)
        mine = []
        for index in range(schedule.n_segments):
            segment = schedule.segment(index)
            assert len(line.request(segment.start, segment.stop).chunk) <= slots
            rows = rows_of(line, segment.start, segment.stop)
            mine += [rows[a:b] for a, b in zip(segment.edges[:-1], segment.edges[1:], strict=True)]
        assert len(mine) == schedule.n_batches
        assert all(len(b) == batch for b in (mine if drop_last else mine[:-2]))
        assert all(len(b) <= batch for b in mine)
        if n >= ranks and batch > 1 and (n % (ranks * groups * batch)) // ranks >= 1:
            assert all(mine)
        for index in range(schedule.n_batches):
            segment_index, within = schedule.locate(index)
            segment = schedule.segment(segment_index)
            assert len(mine[index]) == segment.edges[within + 1] - segment.edges[within]
        counts.add(len(mine))
        given_rows += [row for rows in mine for row in rows]
    assert len(counts) == 1
    once = Counter(given_rows)
    assert set(once.values()) <= {1}
    wanted = set(listed(selection.chunk, selection.start, selection.stop))
    if drop_last:
        assert once.keys() <= wanted
        assert n - len(once) < ranks * batch
    else:
        assert once.keys() == wanted


@given(sizes=shard_sizes, seed=st.integers(0, 99), cut=st.floats(0.1, 0.9))
@settings(max_examples=100, deadline=None)
def test_what_is_skipped_and_what_is_taken_make_the_whole(
    sizes: list[list[int]], seed: int, cut: float
) -> None:
    table = chunks(sizes)
    first = select(seed, *table, fraction=cut)
    second = select(seed, *table, fraction=1 - cut, skip=cut)
    one = listed(first.chunk, first.start, first.stop)
    two = listed(second.chunk, second.start, second.stop)
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
    lines = [tuple(rows_of(Epoch(selection, seed, e), 0, 64)) for seed in (0, 1) for e in (0, 1, 2)]
    assert len(set(lines)) == 6
    # Where a row comes is uniform: 600 epochs, chi-squared of 8 places, 7 degrees of freedom.
    places = np.zeros((4, 8))
    for e in range(600):
        line = rows_of(Epoch(selection, 5, e), 0, 128)
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
        hits[np.searchsorted(table[1], taken.chunk)] += 1
    expected, deviation = 1000, np.sqrt(2000 * 0.25)
    assert (abs(hits - expected) < 5 * deviation).all(), hits


@given(
    n=st.integers(1, 400),
    batch=st.integers(1, 6),
    groups=st.integers(1, 4),
    ranks=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_ranks_may_change_at_round_ends_and_lose_nothing(
    n: int, batch: int, groups: int, ranks: list[int], data: st.DataObject
) -> None:
    base, seen = 0, np.zeros(n, int)
    for i, world in enumerate(ranks):
        schedules = [
            RankSchedule(n, batch, groups * batch, r, world, base=base) for r in range(world)
        ]
        last = i == len(ranks) - 1
        rounds = schedules[0].n_rounds if last else data.draw(st.integers(0, schedules[0].n_rounds))
        for schedule in schedules:
            for index in range(schedule.n_segments if last else rounds):
                segment = schedule.segment(index)
                seen[segment.start : segment.stop] += 1
        before = schedules[0].rows_before(rounds * groups)
        assert before is not None
        if groups > 1:
            assert schedules[0].rows_before(rounds * groups + 1) is None
        base = before
    assert (seen == 1).all()


def test_segments_of_the_tail_differ_by_at_most_one_row_and_leave_no_batch_empty() -> None:
    schedules = [
        RankSchedule(n_rows=33, batch_size=4, buffer_rows=16, rank=r, world_size=4)
        for r in range(4)
    ]
    segments = [schedule.segment(0) for schedule in schedules]
    sizes = [segment.stop - segment.start for segment in segments]
    assert sorted(sizes) == [8, 8, 8, 9]
    assert [np.diff(segment.edges).tolist() for segment in segments][sizes.index(9)] == [4, 4, 1]
    assert [np.diff(segment.edges).tolist() for segment in segments][sizes.index(8)] == [4, 3, 1]


def test_a_billion_rows_take_seconds_not_minutes() -> None:
    """Chunks of 1,024 rows of a billion: the integers of a start stay small."""
    n_shards = 15_259
    shard = np.repeat(np.arange(n_shards), 64)
    usable = np.full(len(shard), 1024)
    selection: Selection = select(1, shard, np.arange(len(shard)), usable, fraction=0.1)
    request = Epoch(selection, 1, 0).request(10 * 262_144, 11 * 262_144)
    assert len(np.unique(request.chunk // 64)) >= 256  # from all over the store


@pytest.mark.parametrize("rows", [256, 2560])
def test_a_group_holds_equal_parts_of_every_shard(rows: int) -> None:
    shard, number, usable = chunks([[8] * 10] * 32)
    request = Epoch(select(0, shard, number, usable), 0, 0).request(0, rows)
    parts = np.bincount(request.chunk // 10, minlength=32)
    assert parts.max() - parts.min() <= 2
