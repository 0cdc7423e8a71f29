"""Columns of tokens in a store: plain zarr, rows, documents, and names that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.stores import Columns, create, fill, plan_for, words_columns

from actlas.store.errors import ConfigError
from actlas.store.format.schema import check_token_columns
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify


def with_roles(**more: Any) -> Columns:
    columns = words_columns(3, 40, 20, **more)
    rng = np.random.default_rng(0)
    columns.token_column_names = {"role": ("b", "a"), "empty": ()}
    columns.codes = {
        "role": rng.integers(-1, 2, columns.n_tokens).astype(np.int32),
        "empty": np.full(columns.n_tokens, -1, np.int32),
    }
    return columns


@pytest.fixture
def store(tmp_path: Path) -> Store:
    columns = with_roles()
    store = create(tmp_path / "s.zarr", plan_for(columns), columns)
    fill(store)
    return store


def test_plain_zarr_sees_codes_and_names(store: Store) -> None:
    root = zarr.open_group(store.path, mode="r")
    rows = {name: np.asarray(root[f"rows/{name}"]) for name in ("role", "doc_idx", "pos_idx")}
    expected = with_roles().codes["role"]
    t = np.asarray(root["documents/start"])[rows["doc_idx"]] + rows["pos_idx"]
    np.testing.assert_array_equal(rows["role"], expected[t])
    np.testing.assert_array_equal(np.asarray(root["documents/role"]), expected)
    for group in ("rows", "documents"):
        assert root[f"{group}/role"].attrs["names"] == ["b", "a"]


def test_readers(store: Store) -> None:
    assert list(store.rows.columns) == ["token_id", "doc_idx", "pos_idx", "role", "empty"]
    assert store.rows.names == {"role": ("b", "a"), "empty": ()}
    table = store.rows.to_pandas()
    names = np.array(["b", "a", None], dtype=object)
    codes = store.rows["role"][:]
    assert [v if isinstance(v, str) else None for v in table["role"]] == list(names[codes])
    assert table["empty"].isna().all()
    document = store.document(1)
    start = document.start
    of = with_roles().codes["role"][start : start + len(document)]
    assert document.columns["role"] == tuple(names[of])
    assert store.documents.column_names("role") == ("b", "a")
    for ask in (lambda: store.rows["rol"], lambda: store.documents.token_column("rol", 0, 1)):
        with pytest.raises(KeyError, match=r"'rol'.*role"):
            ask()


def test_verify_sees_a_changed_code(store: Store) -> None:
    assert not list(verify(store, full=True).damages)
    path = Path(store.path) / "rows/role/c/0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert any(
        "rows/role" in damage.key for damage in verify(open_store(store.path), full=True).damages
    )


def test_a_plan_and_its_documents_must_agree(tmp_path: Path) -> None:
    columns = with_roles()
    with pytest.raises(ValueError, match="token_columns"):
        create(tmp_path / "s.zarr", plan_for(columns, token_columns=()), columns)


@pytest.mark.parametrize(
    "names", [("token_id",), ("text",), ("loss",), ("a/b",), ("",), ("a", "a")]
)
def test_names_that_cannot_be(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="cannot name a column"):
        check_token_columns(names)
