"""What other libraries read without actlas: of a store, and of a plain copy of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stores import fill

import actlas
from actlas.store.errors import ConfigError, HookpointError, NotExtractedError, StoreExistsError
from actlas.store.store import Store, open_store

Make = Callable[..., Store]

READERS = """
import importlib.metadata, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "actlas":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
distributions = importlib.metadata.distributions
importlib.metadata.distributions = lambda **named: (
    d for d in distributions(**named) if d.metadata["Name"] != "actlas"
)
import dask.array, tensorstore, xarray, zarr

def read_by_zarr(path, name):
    return zarr.open(path, mode="r")[name][:]

def read_by_dask(path, name):
    return dask.array.from_zarr(path, component=name).compute(scheduler="synchronous")

def read_by_xarray(path, name):
    group, _, variable = name.rpartition("/")
    return xarray.open_zarr(path, group=group, consolidated=False)[variable].values

def read_by_tensorstore(path, name):
    kvstore = {"driver": "file", "path": f"{path}/{name}"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    return array.read().result()

def tree_by_zarr(path, name):
    return len(zarr.open(path, mode="r").members(max_depth=None))

names = ["activations/resid_post.0", "rows/doc_idx", "documents/text"]
said = {}
for path in sys.argv[1:]:
    for reader in (read_by_zarr, read_by_dask, read_by_xarray, read_by_tensorstore, tree_by_zarr):
        for name in names if reader is not tree_by_zarr else [""]:
            try:
                value = reader(path, name)
                answer = float(value.astype("float64").sum()) if name else "whole"
            except ValueError as error:
                answer = str(error)
            said[f"{path}|{reader.__name__}|{name}"] = answer
assert "actlas" not in sys.modules
print(json.dumps(said))
"""


@pytest.fixture
def stored(make: Make) -> Callable[[str], tuple[Store, dict[str, Any]]]:
    def made(dtype: str) -> tuple[Store, dict[str, Any]]:
        store = make(name=f"{dtype}.zarr", dtype=dtype, compression="dense")
        rows = fill(store)
        return open_store(store.path), rows

    return made


@pytest.mark.slow
def test_what_others_read_without_actlas(
    stored: Callable[[str], tuple[Store, dict[str, Any]]], tmp_path: Path
) -> None:
    """The table of docs/guides/read-without-actlas.md."""
    pytest.importorskip("tensorstore", reason="tensorstore is one of the readers")
    pytest.importorskip("xarray", reason="xarray is one of the readers")
    paths, sums = [], {}
    for dtype in ("bfloat16", "float32", "float16"):
        store, rows = stored(dtype)
        paths.append(store.path)
        sums[store.path] = float(rows["resid_post.0"].astype(np.float64).sum())
    plain = actlas.export(paths[0], tmp_path / "plain.zarr")
    paths.append(str(plain))
    sums[str(plain)] = sums[paths[0]]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", READERS, *paths],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    refusal = "No Zarr data type found that matches 'bfloat16'"
    for key, answer in said.items():
        path, reader, name = key.split("|")
        if path == paths[0] and reader != "read_by_tensorstore" and name[:3] in ("act", ""):
            assert refusal in str(answer), key
        elif name.startswith("activations"):
            assert answer == pytest.approx(sums[path], rel=1e-12), key
        elif name:
            assert answer == said[f"{path}|read_by_zarr|{name}"], key
            assert isinstance(answer, float), key
        else:
            assert answer == "whole", key


@pytest.mark.slow
def test_our_environment_needs_an_import_where_zarr_loads_no_entry_point(
    stored: Callable[[str], tuple[Store, dict[str, Any]]],
) -> None:
    import zarr

    store, _ = stored("bfloat16")
    code = "import sys, zarr; print(zarr.open(sys.argv[1], mode='r')['activations/mlp.1'].dtype)"
    for begin, works in (("import actlas; ", True), ("", zarr.__version__ >= "3.4")):
        done = subprocess.run(
            [sys.executable, "-c", begin + code, store.path], capture_output=True, text=True
        )
        assert (done.stdout == "bfloat16\n") is works, (begin, done.stderr)


@pytest.mark.parametrize("stored_as", ["bfloat16", "float16", "float32"])
def test_a_plain_copy_has_the_rows_in_plain_chunks(
    stored: Callable[[str], tuple[Store, dict[str, Any]]],
    stored_as: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import zarr

    monkeypatch.setattr("actlas.store.write.plain.CHUNK_BYTES", 20_000)  # so that there are many
    store, rows = stored(stored_as)
    out = actlas.export(store, tmp_path / "plain.zarr", hookpoints="resid_post.*")
    copy = zarr.open(out, mode="r")
    assert copy.attrs["actlas_export"]["plan_sha256"] == store.plan_sha256
    assert sorted(copy["activations"]) == ["resid_post.0"]
    array = copy["activations/resid_post.0"]
    assert array.dtype == "float32" and array.chunks == (128, 24)
    np.testing.assert_array_equal(array[:], rows["resid_post.0"].astype(np.float32))
    assert array.metadata.dimension_names == ("row", "unit")
    for name, column in store.rows.columns.items():
        np.testing.assert_array_equal(copy[f"rows/{name}"][:], column[:])
    for name, column in store.documents.columns.items():
        np.testing.assert_array_equal(copy[f"documents/{name}"][:], column[:])
    assert copy["documents/source"].attrs["names"] == list(store.documents.source_names)
    assert "sharding" not in (out / "activations/resid_post.0/zarr.json").read_text()
    with pytest.raises(StoreExistsError, match=r"Give another folder, or overwrite=True"):
        actlas.export(store, out)
    actlas.export(store, out, hookpoints="mlp.1", overwrite=True)
    assert sorted(zarr.open(out, mode="r")["activations"]) == ["mlp.1"]
    with pytest.raises(StoreExistsError, match="it is left as it is"):
        actlas.export(store, store.path, overwrite=True)
    assert actlas.verify(store, full=True).ok


def test_values_beyond_float16_are_refused_and_nothing_is_left(make: Make, tmp_path: Path) -> None:
    store = make(dtype="float32", compression="none", order="corpus")
    rows = fill(store)
    store = open_store(store.path)
    array = store.activations["mlp.1"]
    large = rows["mlp.1"].copy()
    large[300, 7] = -70_000
    array.read = lambda start, stop: large[start:stop]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"mlp\.1: row 300, unit 7 is -70000, and float16 ends"):
        actlas.export(store, tmp_path / "half.zarr", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_what_cannot_be_exported_is_refused(make: Make, tmp_path: Path) -> None:
    store = make()
    fill(store, range(1))
    store = open_store(store.path)
    with pytest.raises(NotExtractedError, match="shards are not extracted yet"):
        actlas.export(store, tmp_path / "plain.zarr")
    with pytest.raises(HookpointError, match=r"'mlp\.\?\?': this store has resid_post\.0, mlp\.1"):
        actlas.export(store, tmp_path / "plain.zarr", hookpoints="mlp.??")
    with pytest.raises(ConfigError, match=r"got 'bfloat16', expected 'float32' or 'float16'"):
        actlas.export(store, tmp_path / "plain.zarr", dtype="bfloat16")  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(StoreExistsError):
        actlas.export(store, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
