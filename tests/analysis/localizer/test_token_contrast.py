"""Contrasts of tokens: equal to scipy on samples gathered from a store's rows by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from support.localizer import labelled, stored
from support.stores import Columns, create, plan_for

from actlas.analysis.localizer.localize import localize
from actlas.analysis.localizer.masks import Mask
from actlas.analysis.localizer.pooling import pooled_moments
from actlas.analysis.localizer.token_contrast import read_sides
from actlas.store.errors import ConfigError, NotExtractedError
from actlas.store.store import Store, open_store

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
pytest.importorskip("dask", reason="dask is not installed")

NAMES = ("assistant", "user")


def chats(seed: int, lengths: list[int]) -> Columns:
    """Documents whose tokens have a role, in runs, with gaps; some have only one, some none."""
    rng = np.random.default_rng(seed)
    columns = labelled(lengths, [0] * len(lengths))
    codes = []
    for i, n in enumerate(lengths):
        of = np.repeat(rng.integers(-1, 2, size=n // 3 + 1), 3)[:n]
        codes.append(of if i % 5 else np.full(n, rng.integers(-1, 2)))
    columns.token_column_names = {"role": NAMES}
    columns.codes = {"role": np.concatenate(codes).astype(np.int32)}
    return columns


LENGTHS = [0, 7, 40, 1, 300, 3, 90, 0, 700, 12, 31, 64, 2, 5, 128, 33, 0, 4]


def by_hand(
    path: Path, hookpoint: str, pool: str, signed: bool, positive: str, negative: str
) -> list[NDArray[np.float64]]:
    """Gather both sides' samples with zarr and the row columns alone."""
    root = zarr.open_group(path, mode="r")
    rows = {name: np.asarray(root[f"rows/{name}"]) for name in ("doc_idx", "pos_idx", "role")}
    names = root["rows/role"].attrs["names"]
    values = np.asarray(root[f"activations/{hookpoint}"]).astype(np.float64)
    is_positive = rows["role"] == names.index(positive)
    is_negative = ~is_positive if negative == "*" else rows["role"] == names.index(negative)
    sides = []
    for mask in (is_positive, is_negative):
        samples = []
        for doc in np.unique(rows["doc_idx"][mask]):
            found = np.flatnonzero(mask & (rows["doc_idx"] == doc))
            found = found[np.argsort(rows["pos_idx"][found])]
            sample = values[found[-1]] if pool == "last" else values[found].mean(axis=0)
            samples.append(sample if signed else np.abs(sample))
        sides.append(np.array(samples))
    return sides


@pytest.fixture(scope="module", params=["shuffled", "corpus"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("chats") / "s.zarr"
    return stored(path, chats(3, LENGTHS), order=request.param, shard_rows=64)[0]


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("negative", ["user", "*"])
def test_equal_to_scipy_on_rows_gathered_by_hand(
    store: Store, pool: str, signed: bool, negative: str
) -> None:
    assert store.plan.n_shards > 10  # documents of 300 and 700 tokens cross several borders
    found = localize(store, f"role=assistant:{negative}", pool=pool, signed=signed, top=5)  # type: ignore[arg-type]
    at = 0
    for spec in store.plan.hookpoints:
        part = slice(at, at + spec.width)
        at += spec.width
        a, b = by_hand(Path(store.path), spec.name, pool, signed, "assistant", negative)
        expected = stats.ttest_ind(a, b, equal_var=False)
        np.testing.assert_allclose(found.test.t[part], expected.statistic, rtol=1e-9)
        np.testing.assert_allclose(found.test.p[part], expected.pvalue, rtol=1e-9)
        assert [c.n_documents for c in found.conditions] == [len(a), len(b)]
    chosen = set(np.argsort(-found.test.t)[:5].tolist())
    assert set(np.flatnonzero(found.selected).tolist()) == chosen


def test_one_pass_in_blocks_gives_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_sides(store, "role", 0, None)
    monkeypatch.setattr("actlas.analysis.localizer.token_contrast.BLOCK_TOKENS", 37)
    blocks = read_sides(store, "role", 0, None)
    for name in ("n", "first", "last"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(blocks, name))
    assert whole.n.sum() == store.plan.n_tokens
    one = pooled_moments(store, ["resid_post.0"], whole, pool="mean", scheduler="sync")
    threads = pooled_moments(store, ["resid_post.0"], blocks, pool="mean", scheduler="threads")
    for a, b in zip(one["resid_post.0"], threads["resid_post.0"], strict=True):
        assert a is not None and b is not None
        np.testing.assert_array_equal(a.mean, b.mean)


def test_the_mask_says_which_column(store: Store, tmp_path: Path) -> None:
    found = localize(store, ("role", "user", "assistant"), top=3)
    found.mask.save(tmp_path / "mask.json")
    key = Mask.load(tmp_path / "mask.json").key
    assert (key.column, key.positive, key.negative) == ("role", "user", "assistant")
    assert "role=user against assistant" in repr(found.mask)
    assert found.mask.key != localize(store, "role=user:*", top=3).mask.key


def test_special_tokens_are_not_among_all_others(tmp_path: Path) -> None:
    columns = chats(4, [9] * 8)
    columns._ids[::9] = 0  # what the made-up documents take for a special token
    special = stored(tmp_path / "s.zarr", columns, keep_special=True)[0]
    sides = read_sides(special, "role", 0, None)
    is_other = (columns.codes["role"] != 0) & (columns._ids != 0)
    assert sides.n[:, 1].sum() == is_other.sum() < 72


def test_errors(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no token column 'rol'.* role"):
        localize(store, "rol=user:assistant")
    with pytest.raises(ConfigError, match=r"no label 'tool'.*assistant, user"):
        localize(store, "role=tool:user")
    with pytest.raises(ConfigError, match="must come second"):
        localize(store, "role=*:user")
    columns = chats(5, [6, 6, 6])
    columns.codes = {"role": np.array([0] + [1] * 17, np.int32)}
    few, _ = stored(tmp_path / "few.zarr", columns)
    with pytest.raises(ConfigError, match="1 document with tokens of role=assistant"):
        localize(few, "role=assistant:user")


def test_a_store_of_pooled_rows_alone_is_refused(tmp_path: Path) -> None:
    columns = chats(6, [30] * 9)
    plan = plan_for(columns, dense=False, pools=("mean",))
    create(tmp_path / "p.zarr", plan, columns)
    with pytest.raises(NotExtractedError, match="pooled_only=True"):
        localize(open_store(tmp_path / "p.zarr"), "role=user:assistant", pool="mean")
