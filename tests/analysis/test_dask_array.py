from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.stores import create, fill, plan_for, words_columns

import actlas
from actlas.store.errors import HookpointError, NotExtractedError
from actlas.store.store import Store

dask = pytest.importorskip("dask", reason="dask is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    columns = words_columns(0, 60, 20)
    return create(tmp_path / "run.zarr", plan_for(columns), columns)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_dask_computes_over_the_same_rows(store: Store, scheduler: str) -> None:
    expected = fill(store)["mlp.1"].astype(np.float32)
    array = actlas.dask_array(store, "mlp.1")
    assert array.shape == expected.shape and array.dtype == np.float32
    assert max(array.chunks[0]) <= store.plan.shard_rows
    with dask.config.set({"multiprocessing.context": "spawn"}):
        got = array.compute(scheduler=scheduler)
    np.testing.assert_array_equal(got, expected)


def test_blocks_can_be_smaller_and_wider(store: Store) -> None:
    expected = fill(store)["resid_post.0"].astype(np.float64)
    array = actlas.dask_array(store, "resid_post.0", dtype="float64", rows=100)
    np.testing.assert_allclose(array.mean(axis=0).compute(), expected.mean(axis=0), rtol=1e-12)
    assert set(array.chunks[0][:3]) == {100, 56}


def test_missing_rows_and_unknown_hookpoints_raise(store: Store) -> None:
    fill(store, shards=range(1))
    with pytest.raises(NotExtractedError):
        actlas.dask_array(store, "mlp.1").compute(scheduler="synchronous")
    with pytest.raises(HookpointError):
        actlas.dask_array(store, "nothing")
