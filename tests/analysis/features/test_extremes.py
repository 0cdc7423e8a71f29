"""The extremes of every unit against brute force, ties and special tokens included."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.features import best, rows_by_token
from support.stores import create, fill, plan_for, words_columns

import actlas
from actlas.analysis.features.extremes import Best, gather_extremes
from actlas.store.errors import ConfigError, FeatureError, HookpointError, NotExtractedError
from actlas.store.features.unit_extremes import open_units
from actlas.store.store import Store
from actlas.store.verify.verify import verify
from actlas.store.write.commit import commit_shard


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    n=st.integers(1, 400),
    units=st.integers(1, 7),
    k=st.integers(1, 20),
    levels=st.sampled_from([1, 2, 5, 1000]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    nans=st.floats(0, 0.3),
)
def test_best_is_brute_force_in_any_order_and_blocks(
    seed: int, n: int, units: int, k: int, levels: int, cuts: list[int], nans: float
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-levels, levels + 1, (n, units)).astype(np.float32)
    rows[rng.random(rows.shape) < nans] = np.nan
    t = rng.permutation(n).astype(np.int64)
    found = Best(units, k)
    edges = sorted({0, n, *(c for c in cuts if c < n)})
    for a, b in itertools.pairwise(edges):
        found.add(t[a:b], rows[a:b])
    by_t = np.empty_like(rows)
    by_t[t] = rows
    for unit in range(units):
        there = np.flatnonzero(~np.isnan(by_t[:, unit]))
        expected = there[best(by_t[there, unit], k, largest=True)] if len(there) else there
        got = found.t[unit][found.t[unit] >= 0]
        assert got.tolist() == expected.tolist()
        assert (found.value[unit, : len(got)] == by_t[expected, unit]).all()


@pytest.mark.parametrize("order", ["shuffled", "corpus"])
def test_a_stores_extremes(tmp_path: Path, order: str) -> None:
    columns = words_columns(0, 60, 25)
    store = create(tmp_path / "run.zarr", plan_for(columns, order=order), columns)
    fill(store)
    rows = rows_by_token(store, "mlp.1")
    with pytest.raises(FeatureError, match="not computed yet"):
        open_units(store, "mlp.1")
    gather_extremes(store, "mlp.1", attempt="test", k=30)
    units = actlas.open(store.path).units("mlp.1")
    n_ties = 0
    for unit in range(rows.shape[1]):
        for k in (1, 30):
            top, bottom = units.top(unit, k), units.bottom(unit, k)
            assert top.t.tolist() == best(rows[:, unit], k, largest=True).tolist()
            assert bottom.t.tolist() == best(rows[:, unit], k, largest=False).tolist()
            assert (top.value == rows[top.t, unit]).all()
            assert (bottom.value == rows[bottom.t, unit]).all()
        n_ties += 30 - len(np.unique(top.value))
    assert n_ties > 50, "bfloat16 ties"
    contexts = units.contexts(3, k=5, bottom=True)
    assert [c.t for c in contexts] == units.bottom(3, 5).t.tolist()
    for c in contexts:
        first = c.t - c.peak
        assert list(c.activations) == rows[first : first + len(c.activations), 3].tolist()
    assert len({c.doc_idx for c in units.contexts(3, k=9, distinct=True)}) == 9
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed
    assert units.top(0, 5).t.tolist() == units.top(0, 30).t.tolist()[:5]
    for call in (lambda: units.top(40, 1), lambda: units.top(0, 31), lambda: units.top(-1, 1)):
        with pytest.raises(FeatureError):
            call()
    with pytest.raises(HookpointError, match="this store has"):
        store.units("resid_post.9")


def test_what_is_not_finite_or_special_is_left_out(tmp_path: Path) -> None:
    columns = words_columns(1, 30, 20)
    columns._ids[::7] = 0  # the helper calls token 0 special
    store = create(tmp_path / "run.zarr", plan_for(columns, keep_special=True), columns)
    hostile = np.zeros((store.plan.n_tokens, 24), np.float32)
    for shard in range(store.plan.n_shards):
        t = store.shard_columns(shard)
        at = store.documents.start[t["doc_idx"]] + t["pos_idx"]
        part = (at % 50).astype(np.float32)[:, None].repeat(24, 1)
        part[at % 50 == 49] = np.inf
        part[at % 50 == 48] = np.nan
        part[t["special"] == 1] = 99
        hostile[at] = part
        rows = {"resid_post.0": part, "mlp.1": np.zeros((len(part), 40), np.float32)}
        specs = store.arrays.activations
        commit_shard(
            store,
            shard,
            {name: rows[name].astype(specs[name].numpy_dtype) for name in rows},
            attempt="test",
        )
    units = gather_extremes(store, "resid_post.0", attempt="test", k=10)
    column = np.where(np.isfinite(hostile[:, 0]), hostile[:, 0], -1)
    column[store.documents.special(0, store.plan.n_tokens)] = -1
    assert column.max() == 47
    assert units.top(0, 10).t.tolist() == best(column, 10, largest=True).tolist()
    contexts = units.contexts(0, 10)
    assert contexts.scale == 47, "not of special tokens"
    assert "(special tokens too)" in contexts.facts["max"]
    few = units.contexts(0, 10, distinct=True)
    assert len(few) < 10 and f"{len(few)} of 10, since 10 tokens" in few.facts["shown"]
    json.dumps(contexts.to_json(), allow_nan=False)
    assert "rgba" in contexts.to_html()
    with pytest.raises(ConfigError, match="expected 1 to 1024"):
        gather_extremes(store, "mlp.1", attempt="test", k=10**11)
    constant = gather_extremes(store, "mlp.1", attempt="test", k=4)
    kept = np.flatnonzero(~store.documents.special(0, store.plan.n_tokens))
    assert constant.top(5, 4).t.tolist() == constant.bottom(5, 4).t.tolist() == kept[:4].tolist()


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    columns = words_columns(0, 60, 25)
    store: Store = create(tmp_path / "run.zarr", plan_for(columns), columns)
    fill(store, range(2))
    with pytest.raises(NotExtractedError, match="not extracted yet"):
        gather_extremes(store, "mlp.1", attempt="test")
