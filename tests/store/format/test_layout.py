"""Geometry against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlas.store.format import layout

MASK = (1 << 64) - 1


def mix64(z: int) -> int:
    """The page docs/store-format.md in plain Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hash64(seed: int, stream: int, index: int) -> int:
    golden = 0x9E3779B97F4A7C15
    key = mix64((mix64((seed + golden) & MASK) + stream * golden) & MASK)
    return mix64((key + (index + 1) * golden) & MASK)


@given(
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(1, 9),
    index=st.lists(st.integers(0, 2**62), min_size=1, max_size=20),
)
def test_the_hash_is_the_documented_one(seed: int, stream: int, index: list[int]) -> None:
    got = layout.hash64(seed, stream, np.array(index, dtype=np.int64))
    assert [int(h) for h in got] == [hash64(seed, stream, i) for i in index]


@given(seed=st.integers(0, 2**63 - 1), start=st.integers(0, 2**40), n=st.integers(0, 300))
def test_rows_and_tokens_of_a_shard_are_inverse_permutations(seed: int, start: int, n: int) -> None:
    tokens = layout.shard_tokens("shuffled", seed, start, start + n)
    rows = layout.shard_rows_of("shuffled", seed, start, start + n)
    assert sorted(tokens.tolist()) == list(range(start, start + n))
    assert (tokens[rows] == np.arange(start, start + n)).all()
    hashes = [hash64(seed, 1, t) for t in tokens.tolist()]
    assert hashes == sorted(hashes)


def test_the_order_is_frozen() -> None:
    """A change here would mislabel every row of every store there is."""
    tokens = layout.shard_tokens("shuffled", 0, 0, 12)
    assert tokens.tolist() == sorted(range(12), key=lambda t: hash64(0, 1, t))
    assert tokens.tolist() == [0, 7, 8, 11, 2, 5, 9, 4, 10, 6, 3, 1]


@settings(max_examples=300)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    shard_rows=st.integers(1, 50),
    content=st.integers(1, 20),
    causal=st.booleans(),
)
def test_sequences_keep_every_token_once_in_its_own_window(
    lengths: list[int], shard_rows: int, content: int, causal: bool
) -> None:
    starts = np.cumsum([0, *lengths]).astype(np.int64)
    n_tokens = int(starts[-1])
    kept = []
    for shard in range(layout.n_shards(n_tokens, shard_rows)):
        lo, hi = layout.shard_range(shard, shard_rows, n_tokens)
        for s in layout.sequences(starts, 0, lo, hi, content, causal=causal):
            doc_start, doc_stop = int(starts[s.doc_idx]), int(starts[s.doc_idx + 1])
            assert lo <= s.keep_start < s.keep_stop <= hi
            assert s.start <= s.keep_start and s.keep_stop <= s.stop
            # A window begins at a multiple of the content length of its own document.
            assert (s.start - doc_start) % content == 0
            full = min(s.start + content, doc_stop)
            assert s.stop == (min(full, hi) if causal else full)
            kept += range(s.keep_start, s.keep_stop)
    assert kept == list(range(n_tokens))


@given(
    n_tokens=st.integers(1, 10**10),
    row_bytes=st.lists(st.integers(2, 10**6), min_size=1, max_size=40),
    n_parameters=st.integers(0, 10**12),
)
def test_shards_fit_their_limits(n_tokens: int, row_bytes: list[int], n_parameters: int) -> None:
    rows = layout.choose_shard_rows(n_tokens, row_bytes, n_parameters)
    assert 1024 <= rows <= 65_536 and rows & (rows - 1) == 0
    if rows > 1024:
        assert rows * max(row_bytes) <= 512 << 20
        assert rows * sum(row_bytes) <= 4 << 30
        enough = min(16_384, 10**11 // n_parameters) if n_parameters else 0
        assert -(-n_tokens // rows) >= 16 or rows <= min(enough, n_tokens)
    for width in row_bytes:
        chunk = layout.chunk_rows(width, rows)
        assert rows % chunk == 0


def test_known_sizes() -> None:
    assert layout.choose_shard_rows(82_000_000, [6144]) == 65_536
    assert layout.chunk_rows(6144, 65_536) == 128  # 0.79 MB, nearer to 1 MiB than 256 rows
    assert layout.chunk_rows(512, 65_536) == 2048
    assert layout.choose_shard_rows(20_000, [512]) == 1024
    small, smol, large = 5_800_000, 135_000_000, 7_000_000_000  # parameters
    assert layout.choose_shard_rows(100_000, [512] * 6, small) == 16_384
    assert layout.choose_shard_rows(100_000, [1152] * 30, smol) == 4096
    assert layout.choose_shard_rows(10_000, [1152] * 30, smol) == 1024
    assert layout.choose_shard_rows(20_000, [8192], large) == 1024
    assert layout.choose_shard_rows(500, [512], small) == 1024  # one shard is enough
    assert layout.choose_shard_rows(3_000, [512], small) == 2048
    assert layout.choose_shard_rows(82_000_000, [6144], small) == 65_536


def test_no_room_beside_the_special_tokens() -> None:
    with pytest.raises(ValueError, match="give at least 3"):
        layout.content_length(2, 2)


def test_n_windows() -> None:
    assert layout.n_windows(np.array([0, 1, 10, 11, 20]), 10) == 0 + 1 + 1 + 2 + 2
