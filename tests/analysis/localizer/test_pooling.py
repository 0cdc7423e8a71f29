"""Pooling over rows that lie shuffled in their shards, against numpy on the rows in order."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.localizer import labelled, samples_by_hand, stored

from actlas.analysis.localizer import pooling
from actlas.analysis.localizer import pooling_shard as pooling_parts
from actlas.analysis.localizer.pooling import pooled_moments
from actlas.analysis.statistics.welch import welch
from actlas.store.format import layout
from actlas.store.statistics.moments import Moments
from actlas.store.store import Store

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
dask = pytest.importorskip("dask", reason="dask is not installed")

NAMES = ("resid_post.0", "mlp.1")


def groups(store: Store) -> np.ndarray:
    codes = store.documents.label_codes
    assert codes is not None
    return np.where(codes < 2, codes, -1).astype(np.int8)


def check(store: Store, by_t: dict[str, Any], pool: Any, signed: bool, **more: Any) -> None:
    found = pooled_moments(store, NAMES, groups(store), pool=pool, signed=signed, **more)
    for name in NAMES:
        a, b = (samples_by_hand(store, by_t[name], g, pool, signed) for g in (0, 1))
        for moments, expected in zip(found[name], (a, b), strict=True):
            if len(expected) == 0:
                assert moments is None
                continue
            assert moments is not None
            np.testing.assert_array_equal(moments.n, len(expected))
            np.testing.assert_allclose(moments.mean, expected.mean(0), rtol=1e-12, atol=1e-13)
            m2 = ((expected - expected.mean(0)) ** 2).sum(0)
            np.testing.assert_allclose(moments.m2, m2, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(moments.min, expected.min(0), rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(moments.max, expected.max(0), rtol=1e-12, atol=1e-15)
        if min(len(a), len(b)) >= 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                t = stats.ttest_ind(a, b, equal_var=False).statistic
            ours = welch(*found[name])
            np.testing.assert_allclose(ours.t, t, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(
        st.sampled_from([0, 1, 1, 2, 3, 5, 8, 13, 17, 40]), min_size=1, max_size=16
    ).filter(any),
    shard_rows=st.sampled_from([2, 4, 16, 64, 256]),
    chunk_bytes=st.sampled_from([1 << 20, 400, 1200]),
    order=st.sampled_from(["shuffled", "corpus"]),
    compression=st.sampled_from(["fast", "none"]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    pool=st.sampled_from(["last", "mean"]),
    signed=st.booleans(),
    fan_in=st.sampled_from([2, 3, 16]),
    sum_bytes=st.sampled_from([1 << 28, 700]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_chunking_shard_size_and_order(
    lengths: list[int],
    shard_rows: int,
    chunk_bytes: int,
    order: str,
    compression: str,
    dtype: str,
    pool: str,
    signed: bool,
    fan_in: int,
    sum_bytes: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    columns = labelled(lengths, rng.integers(-1, 3, len(lengths)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(pooling, "FAN_IN", fan_in)
        patch.setattr(pooling_parts, "SUM_BYTES", sum_bytes)
        plan = {"shard_rows": shard_rows, "order": order, "dtype": dtype, "seed": seed}
        store, by_t = stored(Path(folder) / "s.zarr", columns, compression=compression, **plan)
        check(store, by_t, pool, signed)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    """Documents of 0 to 900 tokens in shards of 64: some span many shards, some none."""
    rng = np.random.default_rng(5)
    lengths = np.minimum(rng.lognormal(2.5, 1.6, 150).astype(int), 900)
    lengths[:3] = 0, 900, 64
    columns = labelled(lengths.tolist(), rng.integers(-1, 3, len(lengths)))
    return stored(tmp_path_factory.mktemp("many") / "s.zarr", columns, shard_rows=64)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [None, "synchronous", "threads", "processes"])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_the_scheduler_changes_nothing(
    many: tuple[Store, dict[str, Any]], scheduler: str | None, pool: Any
) -> None:
    """Bit for bit, nothing of any moment: and one of the schedulers is right."""
    store, by_t = many
    with dask.config.set({"multiprocessing.context": "spawn", "num_workers": 2}):
        found = pooled_moments(store, NAMES, groups(store), pool=pool, scheduler=scheduler)
    if scheduler == "synchronous":
        check(store, by_t, pool, False, scheduler=scheduler)
    alone = pooled_moments(store, NAMES, groups(store), pool=pool, scheduler="synchronous")
    for name in NAMES:
        for got, expected in zip(found[name], alone[name], strict=True):
            assert got is not None and expected is not None
            for field in ("n", "mean", "m2", "min", "max"):
                np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))


def test_the_tree_holds_at_most_two_unfinished_documents(
    many: tuple[Store, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, by_t = many
    held: list[int] = []
    real = pooling_parts.merge

    def watched(parts: Any, signed: bool) -> Any:
        merged = real(parts, signed)
        held.extend(len(part.borders) for part in (*parts, merged))
        return merged

    monkeypatch.setattr(pooling, "merge", watched)
    monkeypatch.setattr(pooling, "FAN_IN", 2)
    check(store, by_t, "mean", False)
    assert max(held) == 2, "or no document crosses a border here"


def test_last_reads_only_the_chunks_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 400)  # 4 rows of 24 float32
    columns = labelled([200, 200, 100], [0, 1, 0])
    store, _ = stored(tmp_path / "s.zarr", columns, shard_rows=256, order="corpus")
    read: list[int] = []
    real = pooling_parts.LazyArray.reader

    def watched(array: Any, shard: int) -> Any:
        reader = real(array, shard)
        chunks = reader.read_chunks
        reader.read_chunks = lambda wanted: (read.extend(wanted), chunks(wanted))[1]
        return reader

    monkeypatch.setattr(pooling_parts.LazyArray, "reader", watched)
    pooled_moments(store, ["resid_post.0"], groups(store), pool="last")
    assert len(read) == 3, "one chunk for each document"
    read.clear()
    pooled_moments(store, ["resid_post.0"], groups(store), pool="mean")
    assert len(read) > 100


def test_shards_without_a_document_of_the_contrast_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = labelled([64] * 8, [2, 2, 0, 1, 0, 1, -1, 2])
    store, by_t = stored(tmp_path / "s.zarr", columns, shard_rows=64)
    shards: list[int] = []
    real = pooling.pool_shard

    def watched(array: Any, shard: int, *rest: Any) -> Any:
        shards.append(shard)
        return real(array, shard, *rest)

    monkeypatch.setattr(pooling, "pool_shard", watched)
    pooled_moments(store, ["mlp.1"], groups(store), pool="mean")
    assert sorted(shards) == [2, 3, 4, 5]
    monkeypatch.undo()
    check(store, by_t, "mean", True)


def test_a_constant_unit_is_exactly_constant(tmp_path: Path) -> None:
    """Whatever the lengths, and however a document is cut: 0.1 summed and divided is 0.1."""
    columns = labelled([1, 3, 7, 100, 33, 5, 260], [0, 1, 0, 1, 0, 1, 0])
    values = np.full((columns.n_tokens, 24), np.float32(0.1))
    store, _ = stored(tmp_path / "s.zarr", columns, {"resid_post.0": values}, shard_rows=16)
    for pool in ("last", "mean"):
        a, b = pooled_moments(store, ["resid_post.0"], groups(store), pool=pool)["resid_post.0"]  # type: ignore[arg-type]
        assert a is not None and b is not None
        assert (a.m2 == 0).all() and (b.m2 == 0).all()
        assert np.isnan(welch(a, b).t).all()


def test_infinities_are_left_out_and_no_warning_escapes(tmp_path: Path) -> None:
    columns = labelled([4, 40, 3, 5, 30], [0, 1, 0, 1, 0])
    values = np.random.default_rng(0).standard_normal((columns.n_tokens, 24)).astype(np.float32)
    values[10, 0], values[30, 0] = np.inf, -np.inf  # both in document 1, over two shards
    values[0, 1] = np.nan
    store, _ = stored(tmp_path / "s.zarr", columns, {"resid_post.0": values}, shard_rows=16)
    a, b = pooled_moments(store, ["resid_post.0"], groups(store), pool="mean")["resid_post.0"]
    assert isinstance(a, Moments) and isinstance(b, Moments)
    assert (a.n[1], b.n[0]) == (2, 1)
    assert (a.n[[0, 2]] == 3).all() and (b.n[1:] == 2).all()
