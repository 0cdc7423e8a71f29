"""Batches: within the budget, longest first, the same each time; and what is laid out in them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlas.pipeline.forward.batching import (
    Batch,
    InputSequence,
    assemble,
    input_sequences,
    pack,
    padding_share,
)
from actlas.store.format.layout import Sequence


def made(lengths: list[int], n_prefix: int = 0, n_suffix: int = 0) -> list[InputSequence]:
    edges = np.cumsum([0, *lengths]).tolist()
    sequences = [
        Sequence(i, edges[i], edges[i + 1], edges[i], edges[i + 1]) for i in range(len(lengths))
    ]
    return list(input_sequences(sequences, n_prefix, n_suffix))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.integers(1, 200),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_every_sequence_once_within_the_budget_longest_first(
    lengths: list[int], budget: int, n_prefix: int, n_suffix: int
) -> None:
    sequences = made(lengths, n_prefix, n_suffix)
    batches = pack(sequences, budget)
    assert sorted(f for batch in batches for f in batch.sequences) == sorted(sequences)
    for batch in batches:
        assert batch.length == max(f.length for f in batch.sequences)
        assert batch.n_padded <= budget or len(batch.sequences) == 1
        assert batch.n_input_tokens == sum(f.length for f in batch.sequences)
    fed_lengths = [f.length for batch in batches for f in batch.sequences]
    assert fed_lengths == sorted(fed_lengths, reverse=True)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 120))
def test_no_way_of_cutting_them_costs_less(lengths: list[int], budget: int) -> None:
    """Brute force over every cut of the sorted sequences, as the notes define the cost."""
    ordered = sorted(lengths, reverse=True)
    a_pass = max(1, budget // 16)

    def cost(edges: list[int]) -> float:
        total = 0.0
        for start, stop in itertools.pairwise(edges):
            tokens = (stop - start) * ordered[start]
            total += a_pass + tokens if tokens <= budget or stop - start == 1 else float("inf")
        return total

    inner = range(1, len(ordered))
    cuts = (c for r in range(len(ordered)) for c in itertools.combinations(inner, r))
    best = min(cost([0, *cut, len(ordered)]) for cut in cuts)
    assert sum(batch.n_padded + a_pass for batch in pack(made(lengths), budget)) == best


def test_little_is_padding_at_the_lengths_of_the_pile() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(1023, np.exp(np.log(500) + 1.6 * rng.standard_normal(120))).astype(int)
    assert padding_share(pack(made([int(n) + 1 for n in lengths], 1), 8192)) < 0.06


def test_the_order_of_the_sequences_does_not_matter() -> None:
    sequences = made([5, 3, 5, 8, 1, 3, 3])
    shuffled = random.Random(1).sample(sequences, len(sequences))
    assert pack(sequences, 12) == pack(shuffled, 12)


def test_a_sequence_longer_than_the_budget_goes_alone() -> None:
    assert [len(batch.sequences) for batch in pack(made([100, 3, 3]), 10)] == [1, 2]


def test_the_padding_share_counts_computed_tokens() -> None:
    batch = Batch(tuple(made([4, 3, 1])), 4)
    assert padding_share([batch]) == pytest.approx(4 / 12)
    assert padding_share([]) == 0


def test_specials_padding_and_kept_rows_are_where_they_should_be() -> None:
    tokens = np.arange(100, 120, dtype=np.int32)  # token t has id 100 + t
    whole = InputSequence(Sequence(0, 2, 6, 2, 6), 1, 1)
    cut = InputSequence(
        Sequence(1, 6, 9, 8, 9), 1, 1
    )  # of three tokens only the last is this shard's
    inputs = assemble(
        Batch((whole, cut), 6),
        tokens,
        0,
        prefix_ids=(7,),
        suffix_ids=(8,),
        pad_id=0,
        causal=False,
    )
    assert inputs.arrays["input_ids"].tolist() == [
        [7, 102, 103, 104, 105, 8],
        [7, 106, 107, 108, 8, 0],
    ]
    assert inputs.arrays["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert inputs.kept.tolist() == [1, 2, 3, 4, 6 + 3]
    assert inputs.token.tolist() == [2, 3, 4, 5, 8]


@pytest.mark.parametrize("causal", [True, False])
def test_no_mask_where_nothing_hides_behind_it(causal: bool) -> None:
    tokens = np.arange(9, dtype=np.int32)
    even = Batch(tuple(made([3, 3])), 3)
    uneven = Batch(tuple(made([3, 2])), 3)
    masks = [
        assemble(
            batch, tokens, 0, prefix_ids=(), suffix_ids=(), pad_id=0, causal=causal
        ).arrays.get("attention_mask")
        for batch in (even, uneven)
    ]
    assert masks[0] is None
    assert (masks[1] is None) == causal
