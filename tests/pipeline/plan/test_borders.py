"""Where shards end. The oracle counts token by token."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actlas.pipeline.plan.borders import LOOK_AHEAD, crossing_share, fit_borders

LENGTHS = st.lists(st.integers(0, 60), max_size=60)


def computed_twice(lengths: list[int], shard_rows: int, content: int, causal: bool) -> int:
    """Tokens fed in all shards together, less the tokens there are: by walking every window."""
    fed = t = 0
    for n in lengths:
        for a in range(t, t + n, content):
            b = min(a + content, t + n)
            for shard in range(a // shard_rows, (b - 1) // shard_rows + 1):
                fed += (min(b, (shard + 1) * shard_rows) if causal else b) - a
        t += n
    return fed - t


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.sampled_from([4, 16, 32]), st.integers(1, 40), st.booleans())
def test_share_is_what_walking_every_window_gives(
    lengths: list[int], shard_rows: int, content: int, causal: bool
) -> None:
    share = crossing_share(np.array(lengths, np.int64), shard_rows, content, causal=causal)
    total = sum(lengths)
    expected = computed_twice(lengths, shard_rows, content, causal) / total if total else 0
    assert share == expected


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.sampled_from([16, 64]), st.integers(1, 40), st.integers(1, 12))
def test_every_document_comes_once_and_again_the_same(
    lengths: list[int], shard_rows: int, content: int, look_ahead: int
) -> None:
    given_ = np.array(lengths, np.int64)
    order = fit_borders(given_, shard_rows, content, look_ahead)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert order.tolist() == fit_borders(given_, shard_rows, content, look_ahead).tolist()
    # None comes earlier than the look-ahead lets it.
    assert all(doc < place + look_ahead for place, doc in enumerate(order.tolist()))


def test_borders_are_hit_where_lengths_allow() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5, 1, 4000).astype(np.int64) + 1, 1023)
    plain = crossing_share(lengths, 16_384, 1023)
    order = fit_borders(lengths, 16_384, 1023)
    assert plain > 0.005
    assert crossing_share(lengths[order], 16_384, 1023) == 0


def test_documents_longer_than_shards_are_met_at_their_windows() -> None:
    rng = np.random.default_rng(1)
    lengths = np.minimum(rng.lognormal(6.2, 1.6, 3000).astype(np.int64) + 1, 300_000)
    order = fit_borders(lengths, 65_536, 1023)
    assert crossing_share(lengths[order], 65_536, 1023) < crossing_share(lengths, 65_536, 1023) / 2


def test_the_seeded_order_is_kept_away_from_borders() -> None:
    lengths = np.random.default_rng(2).integers(1, 400, 5000)
    order = fit_borders(lengths, 65_536, 512)
    moved = np.abs(order - np.arange(5000)) > LOOK_AHEAD
    assert moved.mean() < 0.01
    in_turn = np.diff(order) == 1
    assert in_turn.mean() > 0.7


def test_nothing_and_only_empty_documents() -> None:
    assert fit_borders(np.zeros(0, np.int64), 16, 4).tolist() == []
    assert fit_borders(np.zeros(5, np.int64), 16, 4).tolist() == [0, 1, 2, 3, 4]
    assert crossing_share(np.zeros(5, np.int64), 16, 4) == 0
