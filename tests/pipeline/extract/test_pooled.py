"""Pooled rows are what numpy makes of transformers' own activations, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.models import build, documents, expected, plan_store, save

from actlas.pipeline.extract.extract_pooled import PooledExtractor
from actlas.pipeline.extract.pooling import Pooler
from actlas.pipeline.forward.cost.memory import shard_bytes
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.pipeline.plan.settings import resolve_settings
from actlas.store.errors import ConfigError
from actlas.store.format import layout
from actlas.store.format.schema import HookpointSpec
from actlas.store.ledger.receipts import POOLED
from actlas.store.store import Store

pytestmark = pytest.mark.slow

# None, one token, longer than a window and than a shard, none at the end of a shard and of all.
LENGTHS = [0, 1, 5, 40, 15, 16, 3, 0, 0, 64, 33, 7, 1, 200, 2, 2, 13, 0]
POOLS = ("last", "mean", "sum")
NAMES = ["resid_pre.1", "resid_post.0", "resid_post.2"]


def run_options(**options: Any) -> RunOptions:
    return RunOptions(**{"device": "cpu", "threads": 1, "tokens_per_batch": 64, **options})


def extracted(store: Store, **options: Any) -> Store:
    extractor = PooledExtractor(store, run_options(**options))
    for shard in range(store.n_shards(POOLED)):
        extractor.extract(shard, attempt="test")
    return store


def by_numpy(store: Store, rows: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Rows by token, pooled one document after the other."""
    start = store.documents.start
    found = {p: np.full((len(start) - 1, rows.shape[1]), np.nan, np.float32) for p in POOLS}
    for doc in range(len(start) - 1):
        own = rows[start[doc] : start[doc + 1]].astype(np.float32)
        if len(own):
            found["last"][doc] = own[-1]
            found["mean"][doc] = own.mean(axis=0)
            found["sum"][doc] = own.sum(axis=0)
    return found


def check(store: Store, model: Any, tolerance: float = 1e-5) -> None:
    truth = expected(store, model, NAMES)
    for name in NAMES:
        for pool, wanted in by_numpy(store, truth[name]).items():
            found = store.pooled[name][pool][:]
            assert found.dtype == np.float32
            scale = np.nanmax(np.abs(wanted))
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)
            empty = np.diff(store.documents.start) == 0
            assert np.array_equal(np.isnan(found).all(axis=1), empty) and empty.any()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "gemma2"])
@pytest.mark.parametrize("dense", [False, True])
def test_it_is_numpy_over_transformers(kind: str, dense: bool, tmp_path: Path) -> None:
    folder = save(kind, tmp_path / "model")
    special = {"special": {"prefix_ids": (1,), "suffix_ids": (2,)}} if kind == "bert" else {}
    store = plan_store(
        tmp_path / "s", folder, documents(LENGTHS), NAMES, pools=POOLS, dense=dense, **special
    )
    assert store.n_shards(POOLED) >= 3
    check(extracted(store), build(kind))


@pytest.mark.parametrize("shard_rows", [16, 1024])
@pytest.mark.parametrize("tokens_per_batch", [1, 16, 4096])
def test_neither_shards_nor_batches_matter(
    shard_rows: int, tokens_per_batch: int, tmp_path: Path
) -> None:
    folder = save("llama", tmp_path / "model")
    changes = {"pools": POOLS, "dense": False, "shard_rows": shard_rows, "order": "shuffled"}
    store = plan_store(tmp_path / "s", folder, documents(LENGTHS), NAMES, **changes)
    assert (store.n_shards(POOLED) == 1) == (shard_rows == 1024)
    check(extracted(store, tokens_per_batch=tokens_per_batch), build("llama"))


@pytest.mark.parametrize("order", ["shuffled", "corpus"])
def test_special_tokens_that_have_rows_are_pooled_too(order: str, tmp_path: Path) -> None:
    """As the dense rows are: a mean is over all the rows that a document has."""
    folder = save("llama", tmp_path / "model")
    changes = {"pools": POOLS, "keep_special": True, "order": order}
    store = plan_store(tmp_path / "s", folder, documents(LENGTHS), NAMES, **changes)
    check(extracted(store), build("llama"))


def test_it_is_pooled_before_it_is_rounded(tmp_path: Path) -> None:
    """The dtype of stored rows has no part in it; that of the model has."""
    folder = save("llama", tmp_path / "model")
    changes = {"pools": ("mean",), "dense": False, "dtype": "float16"}
    store = plan_store(tmp_path / "s", folder, documents(LENGTHS), NAMES, **changes)
    extracted(store)
    truth = by_numpy(store, expected(store, build("llama"), NAMES)["resid_post.2"])["mean"]
    found = store.pooled["resid_post.2"]["mean"][:]
    error = np.nanmax(np.abs(found - truth)) / np.nanmax(np.abs(truth))
    assert error < 1e-6, "rounding the rows to float16 first would give about 1e-4"


def test_documents_without_any_token_make_a_shard(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "model")
    lengths = [5, 3, *[0] * 30, 9]
    changes = {"pools": ("last", "sum"), "dense": False, "shard_rows": 2}
    store = plan_store(tmp_path / "s", folder, documents(lengths), NAMES, **changes)
    assert store.arrays.pooled["resid_post.0", "last"].shard_rows <= 8
    extracted(store)
    rows = store.pooled["resid_post.0"]["last"][:]
    assert np.isnan(rows[2:32]).all() and np.isfinite(rows[[0, 1, 32]]).all()
    assert sum(store.receipt(1, POOLED).n_nonfinite.values()) == 0, "no token, nothing to count"


@pytest.mark.parametrize("seed", range(4))
def test_rows_may_come_in_any_order_and_in_any_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = 17 + np.cumsum([0, *rng.integers(0, 9, 30)])
    spec = HookpointSpec(name="h", module="m", side="output", width=5)
    rows = rng.standard_normal((start[-1], 5)).astype(np.float32)
    rows[start[3] : start[4]] *= 1e6
    pooler = Pooler([spec], POOLS, start)
    tokens = rng.permutation(np.arange(start[0], start[-1]))
    for part in np.array_split(tokens, 7):
        pooler.accumulate("h", torch.from_numpy(rows[part]), part)
    found = pooler.finish()
    for doc in range(30):
        own = rows[start[doc] : start[doc + 1]].astype(np.float64)
        if not len(own):
            assert all(np.isnan(found["h", pool][doc]).all() for pool in POOLS)
            continue
        np.testing.assert_array_equal(found["h", "last"][doc], own[-1].astype(np.float32))
        scale = np.abs(own).sum(axis=0).max() * 1e-6
        np.testing.assert_allclose(found["h", "sum"][doc], own.sum(axis=0), atol=scale)
        np.testing.assert_allclose(found["h", "mean"][doc], own.mean(axis=0), atol=scale)


def test_rows_that_are_missing_are_noticed() -> None:
    spec = HookpointSpec(name="h", module="m", side="output", width=2)
    pooler = Pooler([spec], ("sum",), np.array([0, 3]))
    pooler.accumulate("h", torch.ones(2, 2), np.array([0, 2]))
    with pytest.raises(
        RuntimeError, match=r"expected 3 rows for each hookpoint, pooled \{'h': 2\}"
    ):
        pooler.finish()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooled_only": True}, "give pool="),
        ({"pool": ("last", "last")}, "once"),
        ({"pool": ("last",), "pooled_only": True, "with_loss": True}, "Leave one of them out"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_settings(PlanOptions(model="m", corpus="c", **options))


@pytest.mark.parametrize("n_documents", [1, 3, 480, 10**6])
@pytest.mark.parametrize("mean_tokens", [1, 12, 500, 300_000])
def test_shards_of_documents(n_documents: int, mean_tokens: int) -> None:
    n_tokens = n_documents * mean_tokens
    documents = layout.pooled_shard_documents(n_documents, n_tokens, 65_536, 4 * 4096 * 32)
    assert documents & (documents - 1) == 0 and documents >= 1
    assert documents * 4 * 4096 * 32 <= 1 << 29
    assert documents == 1 or documents * mean_tokens < 2 * 65_536
    if n_documents * mean_tokens <= 65_536 and n_documents <= 512:
        assert documents >= n_documents, "a small store has one shard"


def test_memory_is_that_of_the_pooled_rows(tmp_path: Path) -> None:
    """No shard of tokens' rows is in memory, so none is counted."""
    folder = save("llama", tmp_path / "model")
    changes = {"pools": POOLS, "dense": False, "shard_rows": 1 << 24}
    store = plan_store(tmp_path / "s", folder, documents(LENGTHS), NAMES, **changes)
    assert shard_bytes(store.plan) == len(LENGTHS) * 3 * 3 * 32 * 4
