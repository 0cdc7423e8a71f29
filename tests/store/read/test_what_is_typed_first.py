"""What people type first in a notebook: lengths, shapes, tensors, the last document, displays."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stores import fill, words_columns

import actlas
from actlas.store.errors import MissingPackageError, NotExtractedError
from actlas.store.store import Store, as_store

Make = Callable[..., Store]


def test_lengths_and_shapes_are_those_of_numpy_and_zarr(make: Make) -> None:
    store = make()
    fill(store)
    assert store.hookpoints == ("resid_post.0", "mlp.1") == tuple(store.activations)
    assert len(store) == len(store.rows) == store.plan.n_tokens
    lazy = store.activations["mlp.1"]
    rows = lazy[:]
    for name in ("shape", "ndim", "size", "nbytes", "dtype"):
        assert getattr(lazy, name) == getattr(rows, name), name
    import zarr

    theirs = zarr.open_array(f"{store.path}/activations/mlp.1", mode="r")
    assert lazy.chunks == theirs.chunks and lazy.shards == theirs.shards
    pooled = make(name="pooled.zarr", dense=False, pools=("mean",), hookpoints=(HOOKPOINT,))
    assert len(pooled) == pooled.plan.n_documents
    with pytest.raises(NotExtractedError, match="none per token"):
        pooled.document(0).activations["resid_post.0"]


HOOKPOINT = {"name": "resid_post.0", "module": "layers.0", "side": "output", "width": 24}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rows_become_tensors_with_the_same_bits(make: Make, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    store = make(dtype=dtype)
    rows = fill(store)["resid_post.0"]
    lazy = store.activations["resid_post.0"]
    for index in (slice(3, 9), [5, 2], 4, (slice(0, 7), [1, 0])):
        tensor = lazy.torch(index)
        assert tensor.dtype == getattr(torch, dtype)
        expected = rows[index] if not isinstance(index, tuple) else rows[:7][:, [1, 0]]
        assert np.array_equal(tensor.float().numpy(), expected.astype(np.float32))
    assert lazy.torch(slice(0, 2), dtype="float64").dtype == torch.float64
    assert lazy.torch().shape == lazy.shape
    document = store.document(1)
    tensor = document.activations.torch("resid_post.0", dtype=torch.float32)
    assert np.array_equal(tensor, document.activations["resid_post.0"].astype(np.float32))
    with pytest.raises(ValueError, match="got 'bf16', expected a torch dtype"):
        lazy.torch(0, dtype="bf16")


def test_without_torch_the_error_says_how_to_get_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    fill(store)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'actlas\[extract\]'") as caught:
        store.activations["mlp.1"].torch(0)
    assert isinstance(caught.value, ImportError)


def test_negative_numbers_count_from_the_end(make: Make) -> None:
    store = make()
    fill(store)
    n = len(store.documents)
    last, first = store.document(-1), store.document(-n)
    assert (last.doc_idx, first.doc_idx) == (n - 1, 0)
    assert store.documents.text(-2) == store.documents.text(n - 2)
    assert store.documents.source(-1) == store.documents.source(n - 1)
    assert store.context(-1, -1).pos_idx == len(last) - 1
    assert store.documents[-1].text == last.text
    assert [d.doc_idx for d in store.documents[-2:]] == [n - 2, n - 1]
    assert next(iter(store.documents)).activations["mlp.1"].shape == (len(first), 40)
    for number in (n, -n - 1):
        with pytest.raises(IndexError, match=f"document {number}: .* documents 0 to {n - 1}"):
            store.document(number)
    with pytest.raises(IndexError, match="document 5 has no token"):
        store.context(5, 0)
    with pytest.raises(TypeError, match=r"document: got 'a' \(str\), expected a whole number"):
        store.document("a")  # type: ignore[arg-type]


def test_a_fresh_stores_units_are_gathered_when_they_are_asked_for(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make()
    rows = fill(store)["resid_post.0"].astype(np.float32)
    found = store.units("resid_post.0").contexts(3, k=2)
    assert found[0].value == rows[:, 3].max()
    assert "in one pass over the store" in capsys.readouterr().err
    store.units("resid_post.0")
    assert not capsys.readouterr().err, "the second call gathers nothing"


def test_every_function_of_a_store_takes_it_or_its_path(make: Make, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    store = make()
    fill(store)
    assert actlas.verify(store.path).ok and actlas.verify(Path(store.path)).ok
    assert actlas.open(store).path == store.path
    for each in (store, store.path, Path(store.path)):
        assert as_store(each).plan == store.plan
        assert next(iter(actlas.batches(each, "mlp.1", batch_size=8)))[0].shape == (8, 40)
        batch = next(iter(actlas.batches(each, "mlp.1", batch_size=8, dtype="bfloat16")))[0]
        assert batch.dtype == torch.bfloat16
        assert actlas.dask_array(each, "mlp.1").shape == store.activations["mlp.1"].shape
    trained = actlas.train_sae(
        store.path, "mlp.1", tmp_path / "sae", d_sae=16, k=2, steps=2, batch_size=32
    )
    assert trained.n_steps == 2 and "topk of 16 features on mlp.1" in repr(trained)
    assert "<table" in trained._repr_html_()
    with pytest.raises(ValueError, match=r"store: got 3 \(int\), expected an open store"):
        actlas.batches(3, "mlp.1")  # type: ignore[arg-type]


def test_displays_are_short_and_escaped(make: Make) -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    codes = np.zeros(60, np.int32)
    documents = words_columns(0, 60, 20, label=codes, label_names=(evil,))
    store = make(columns=documents)
    fill(store)
    shown: dict[str, Any] = {
        "store": store,
        "rows": store.rows,
        "column": store.rows.token_id,
        "array": store.activations["mlp.1"],
        "activations": store.activations,
        "statistics": store.statistics("mlp.1"),
        "documents": store.documents,
        "document": store.document(0),
        "context": store.context(0, 0),
        "units": store.units("mlp.1"),
        "contexts": store.units("mlp.1").contexts(0, k=3),
        "one context": store.units("mlp.1").contexts(0, k=3)[0],
    }
    for name, value in shown.items():
        text, html = repr(value), value._repr_html_()
        assert text.startswith("<") and len(text) < 2000, name
        assert "array(" not in text and "\x1b" not in text, name
        assert len(html) < 40_000 and re.match(r"<(table|div|h3)", html), name
        assert "<script" not in html and "\x1b" not in html, name
    assert "mean" in repr(shown["statistics"]) and "max" in shown["statistics"]._repr_html_()
    assert list(shown["statistics"].to_pandas().columns) == ["n", "mean", "std", "min", "max"]
    many = shown["units"].contexts(0, k=60)
    assert "… and 20 more" in repr(many) and len(many) == 60


def test_tab_completion_offers_the_keys(make: Make) -> None:
    store = make()
    fill(store)
    assert store.activations._ipython_key_completions_() == ["resid_post.0", "mlp.1"]
    assert store.document(0).activations._ipython_key_completions_() == ["resid_post.0", "mlp.1"]
    assert store.rows._ipython_key_completions_() == ["token_id", "doc_idx", "pos_idx"]
    assert {"hookpoints", "activations", "statistics", "units"} <= {*dir(store)}
    assert {*dir(actlas)} >= {"open", "extract", "train_sae"}
    assert builtins.open is not actlas.open
