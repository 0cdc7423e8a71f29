"""Statistics of shards and in total, against numpy over the rows as they are stored."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.localizer import labelled, stored
from support.stores import fill

from actlas.store.format.layout import shard_tokens
from actlas.store.format.sealing import seal
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.statistics.moments import BLOCK_VALUES, Moments
from actlas.store.statistics.shard import EARLIER_STATISTICS, STATISTICS, ShardStatistics
from actlas.store.statistics.shard_documents import ShardDocuments
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify
from actlas.store.write.commit import commit_shard

# Empty, of one token, ending at a border (64), over several shards, over one exactly.
LENGTHS = [0, 1, 5, 58, 200, 1, 1, 1, 0, 53, 64, 40, 2, 300, 0, 3, 17, 64, 0]
NAME = "resid_post.0"
WIDTH = 24


def made(path: Path, values: NDArray[Any], lengths: list[int] = LENGTHS, **plan: Any) -> Store:
    columns = labelled(lengths, [0] * len(lengths))
    return stored(path, columns, {NAME: values}, **{"shard_rows": 64, **plan})[0]


def rows_by_document(store: Store, shards: set[int]) -> list[NDArray[np.float64]]:
    """What is stored of every document in these shards, in float64."""
    rows, found = store.activations[NAME], []
    for doc in range(len(store.documents)):
        start, stop = (int(t) for t in store.documents.starts(doc, doc + 1))
        t = np.array([t for t in range(start, stop) if t // store.plan.shard_rows in shards], int)
        found.append(rows.take(store.row_of(t)).astype(np.float64))
    return found


def check(store: Store, rtol: float = 1e-9) -> None:
    documents = rows_by_document(store, set(store.done()))
    every = np.concatenate(documents)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.array([np.sqrt((row * row).sum()) for row in every])
    norms = norms[np.isfinite(norms)]
    found = store.statistics(NAME)
    for unit in range(every.shape[1]):
        values = every[np.isfinite(every[:, unit]), unit]
        own = [d[np.isfinite(d[:, unit]), unit] for d in documents]
        own = [d for d in own if len(d)]
        within = sum(((d - d.mean()) ** 2).sum() for d in own)
        total = ((values - values.mean()) ** 2).sum()
        assert found.n[unit] == len(values) and found.n_documents is not None
        assert found.n_documents[unit] == len(own)
        noise = rtol * (total + np.spacing(np.abs(values).max()) ** 2 * len(values))
        assert found.within_m2 is not None and found.within_document_variance is not None
        assert abs(found.m2[unit] - total) <= noise
        assert abs(found.within_m2[unit] - within) <= noise
        np.testing.assert_allclose(found.mean[unit], values.mean(), rtol=rtol, atol=noise)
        np.testing.assert_allclose(found.variance[unit], values.var(ddof=1), rtol=1e-7, atol=noise)
        freedom = len(values) - len(own)
        if freedom:
            truth = within / freedom
            assert abs(found.within_document_variance[unit] - truth) <= noise
        else:
            assert np.isnan(found.within_document_variance[unit])
        assert found.between_m2 is not None
        between = sum(len(d) * (d.mean() - values.mean()) ** 2 for d in own)
        assert abs(found.between_m2[unit] - between) <= 2 * noise
        assert (found.min[unit], found.max[unit]) == (values.min(), values.max())
    assert found.n_norms == len(norms) and found.norm_std is not None
    np.testing.assert_allclose(found.mean_norm, norms.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.norm_std, norms.std(ddof=1), rtol=1e-4, atol=1e-6)


def normal(seed: int = 0, lengths: list[int] = LENGTHS) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((sum(lengths), WIDTH)).astype(np.float32)


@pytest.mark.parametrize("order", ["shuffled", "corpus"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_numpy_over_the_stored_rows(order: str, dtype: str, tmp_path: Path) -> None:
    import ml_dtypes

    values = normal().astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    check(made(tmp_path / "s", values, order=order, dtype=dtype))


def test_large_means_between_documents_and_in_all(tmp_path: Path) -> None:
    """Documents a thousand standard deviations apart, around a mean of a million of them."""
    values = normal()
    document = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    values += 1e6 + 1e3 * np.random.default_rng(1).standard_normal(len(LENGTHS))[document, None]
    check(made(tmp_path / "s", values.astype(np.float32)))


def test_documents_that_are_constant_have_no_variance_within(tmp_path: Path) -> None:
    document = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    values = np.repeat(document[:, None], WIDTH, axis=1).astype(np.float32) ** 2 - 50
    store = made(tmp_path / "s", values)
    check(store)
    found = store.statistics(NAME)
    assert found.within_m2 is not None and found.between_share is not None
    assert (found.within_m2 <= 1e-12 * found.m2).all() and (found.between_share > 0.999).all()


def test_one_token_each(tmp_path: Path) -> None:
    store = made(tmp_path / "s", normal(lengths=[1] * 300), [1] * 300)
    check(store)
    found = store.statistics(NAME)
    assert found.within_m2 is not None and (found.within_m2 == 0).all()


def test_one_document_in_all(tmp_path: Path) -> None:
    store = made(tmp_path / "s", normal(lengths=[700]), [700])
    check(store)
    found = store.statistics(NAME)
    np.testing.assert_allclose(found.within_m2, found.m2, rtol=1e-12)
    np.testing.assert_allclose(found.within_document_variance, found.variance, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_lengths_and_values_that_are_no_numbers(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, 2, 3, 20, 70, 150], 30).tolist()
    values = normal(seed, lengths) * np.float32(10.0 ** rng.integers(-3, 4))
    holes = rng.random(values.shape)
    values[holes < 0.02] = np.nan
    values[(holes > 0.02) & (holes < 0.03)] = np.inf
    values[holes > 0.99] = -np.inf
    values[100:400, 3] = np.nan  # a unit without a number in whole documents and shards
    store = made(tmp_path / "s", values, lengths, shard_rows=int(2 ** rng.integers(4, 8)))
    check(store)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e18, 1e30])
def test_norms_whose_squares_are_no_float32(scale: float, tmp_path: Path) -> None:
    values = normal() * np.float32(scale)
    store = made(tmp_path / "s", values)
    truth = np.linalg.norm(values.astype(np.float64), axis=1).mean()
    np.testing.assert_allclose(store.statistics(NAME).mean_norm, truth, rtol=1e-6)


def test_a_shard_that_is_missing_between(tmp_path: Path) -> None:
    """Of a document in shards 0, 1 and 2, what there is counts as one document."""
    columns = labelled(LENGTHS, [0] * len(LENGTHS))
    store, _ = stored(tmp_path / "whole", columns, {NAME: normal()}, shard_rows=64)
    for shard in (2, 4, 9):
        (Path(store.path) / f"ledger/receipts/extract/{shard:08d}.json").unlink()
    store = open_store(store.path)
    assert {2, 4, 9}.isdisjoint(store.done())
    check(store)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 16, 300, BLOCK_VALUES // 4])
def test_blocks_of_rows_do_not_matter(width: int) -> None:
    """Wide rows come a few at a time, so that one document takes several blocks."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([1, 2, 5, 15, 16, 17, 33, 90], 12)
    n = 20 + int(lengths.sum()) + 35  # the first and the last document cross the borders
    edges = np.concatenate([[-7], 20 + np.cumsum([0, *lengths]), [n + 3]])
    row_of = rng.permutation(n)
    rows = np.empty((n, width), np.float32)
    by_token = rng.standard_normal((n, width)).astype(np.float32) + 3
    rows[row_of] = by_token
    found = ShardStatistics.of(rows, ShardDocuments.of(row_of, edges, 0, n))
    own = [by_token[a:b].astype(np.float64) for a, b in itertools.pairwise(edges[1:-1])]
    within = sum(((d - d.mean(axis=0)) ** 2).sum(axis=0) for d in own)
    np.testing.assert_allclose(found.within_m2, within, rtol=1e-9)
    wide = by_token.astype(np.float64)
    for part, truth in ((found.left, wide[:20]), (found.right, wide[-35:]), (found.moments, wide)):
        assert part is not None and (part.n == len(truth)).all()
        np.testing.assert_allclose(part.mean, truth.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(part.m2, ((truth - truth.mean(axis=0)) ** 2).sum(0), rtol=1e-9)
    again = ShardStatistics.from_table(STATISTICS, found.table())
    np.testing.assert_array_equal(again.table(), found.table())


def earlier(store: Store) -> Store:
    """The same store as an earlier version planned it: with fewer statistics."""
    root = Path(store.path)
    file = store.plan_file
    objects = dict(file.objects)
    for hookpoint in store.plan.hookpoints:
        key = f"statistics/{hookpoint.name}/zarr.json"
        body = json.loads((root / key).read_text())
        body["attributes"]["statistics"] = list(EARLIER_STATISTICS)
        body["shape"][1] = body["chunk_grid"]["configuration"]["chunk_shape"][1] = 5
        body["codecs"][0]["configuration"]["chunk_shape"][1] = 5
        data = json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"
        (root / key).write_bytes(data)
        objects[key] = hashlib.sha256(data).hexdigest(), len(data)
    earlier = file.model_copy(update={"objects": objects, "has_copy": False})
    (root / PLAN_KEY).write_bytes(seal(earlier))
    (root / PLAN_COPY_KEY).unlink()
    return open_store(store.path)


def test_a_store_of_an_earlier_version(tmp_path: Path) -> None:
    columns = labelled(LENGTHS, [0] * len(LENGTHS))
    from support.stores import create, plan_for

    plan = plan_for(columns, shard_rows=64, dtype="float32")
    store = earlier(create(tmp_path / "s", plan, columns))
    rows = fill(store)
    assert store.arrays.statistics[NAME].shape == (store.plan.n_shards, 5, WIDTH)
    found, truth = store.statistics(NAME), Moments.of(rows[NAME])
    for name in EARLIER_STATISTICS:
        np.testing.assert_allclose(getattr(found, name), getattr(truth, name), rtol=1e-12)
    nothing = (found.within_m2, found.n_documents, found.mean_norm, found.norm_std)
    assert nothing == (None,) * 4 and found.within_document_variance is None
    assert found.between_m2 is None and found.between_share is None
    assert verify(store, full=True).ok


def test_the_statistics_of_what_was_adopted(tmp_path: Path) -> None:
    """An attempt that finds its rows written takes the statistics from there."""
    columns = labelled(LENGTHS, [0] * len(LENGTHS))
    store, values = stored(tmp_path / "s", columns, {NAME: normal()}, shard_rows=64)
    before = store.statistics(NAME)
    for shard in sorted(store.done()):
        (Path(store.path) / f"ledger/receipts/extract/{shard:08d}.json").unlink()
    (Path(store.path) / f"statistics/{NAME}/c/3/0/0").unlink()
    rounder = {name: v * np.float32(1 + 1e-4) for name, v in values.items()}
    store = open_store(store.path)
    for shard in range(store.plan.n_shards):
        start, stop = store.shard_range(shard)
        t = shard_tokens(store.plan.order, store.plan.seed, start, stop)
        part = {name: v[t] for name, v in rounder.items()}
        commit_shard(store, shard, part, attempt="two")
        assert len(t) == stop - start
    after = store.statistics(NAME)
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.within_m2, before.within_m2)
    check(store)
