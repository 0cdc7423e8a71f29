"""What was written is what is read: by our reader, and by everybody else's."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.stores import fill, words_columns

import actlas
from actlas.store.errors import CorruptDataError, HookpointError, NotExtractedError
from actlas.store.statistics.moments import Moments
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify

Make = Callable[..., Store]


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("compression", ["none", "fast", "dense"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_our_reader_returns_what_was_written(make: Make, compression: str, dtype: str) -> None:
    store = make(compression=compression, dtype=dtype)
    rows = fill(store)
    store = open_store(store.path)
    for name, expected in rows.items():
        array = store.activations[name]
        assert same_bits(array[:], expected)
        assert same_bits(array[250:262], expected[250:262])
        assert same_bits(array[[700, 3, 3, -1]], expected[[700, 3, 3, -1]])
        assert same_bits(array[5], expected[5])
        assert same_bits(array[10:20, [3, 1]], expected[10:20][:, [3, 1]])
        assert same_bits(array[::97], expected[::97])
        mask = np.arange(len(expected)) % 301 == 7
        assert same_bits(array[mask], expected[mask])
        assert same_bits(array[[]], expected[[]])
        assert same_bits(np.asarray(array), expected)


def test_a_forked_process_reads_with_threads_of_its_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actlas.store.format.layout.CHUNK_BYTES", 256)  # so that there are many
    store = make(compression="fast")
    rows = fill(store)["mlp.1"]
    array = open_store(store.path).activations["mlp.1"]
    assert same_bits(array[:], rows)  # this process's reading threads run by now
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # threads are not inherited: waiting for the parent's would never end
        try:
            os.write(write, b"same" if same_bits(array[:], rows) else b"other")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"same"
    os.close(read)


def test_on_a_disk(make: Make) -> None:
    """The other tests' files lie in memory, where there is room for them."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        store = make(name=f"{folder}/run.zarr")
        rows = fill(store)
        store = open_store(store.path)
        assert store.missing() == [] and verify(store, full=True).ok
        assert all(same_bits(store.activations[name][:], rows[name]) for name in rows)
        assert not list(Path(folder, "run.zarr/ledger/staging").iterdir())


@pytest.mark.parametrize("compression", ["none", "fast", "dense"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_plain_zarr_reads_every_array(make: Make, compression: str, dtype: str) -> None:
    columns = words_columns(
        1, 50, 20, label=np.arange(50, dtype=np.int32) % 2, label_names=("a", "b")
    )
    store = make(columns=columns, compression=compression, dtype=dtype)
    rows = fill(store)
    root = zarr.open(store.path, mode="r")
    for name, expected in rows.items():
        assert same_bits(root[f"activations/{name}"][:], expected)
    for name, column in store.rows.columns.items():
        assert same_bits(root[f"rows/{name}"][:], column[:])
    for name, column in store.documents.columns.items():
        assert same_bits(root[f"documents/{name}"][:], column[:])
    assert root["activations/mlp.1"].metadata.dimension_names == ("row", "unit_40")
    assert root.attrs["actlas"]["plan"]["seed"] == 7


def test_zarr_lists_the_store_without_a_warning(make: Make) -> None:
    store = make()
    fill(store)
    members = dict(zarr.open(store.path, mode="r").members(max_depth=None))
    assert "activations/resid_post.0" in members
    assert members["ledger"].shape == (0,)


@pytest.mark.parametrize("compression", ["none", "fast", "dense"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tensorstore_reads_every_array(make: Make, compression: str, dtype: str) -> None:
    ts = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    store = make(compression=compression, dtype=dtype)
    rows = fill(store)
    stored = {f"activations/{name}": expected for name, expected in rows.items()}
    stored |= {f"rows/{name}": column[:] for name, column in store.rows.columns.items()}
    stored |= {f"documents/{name}": c[:] for name, c in store.documents.columns.items()}
    for path, expected in stored.items():
        kvstore = {"driver": "file", "path": f"{store.path}/{path}"}
        array = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
        assert same_bits(array.read().result(), expected)


def test_zarrs_reads_every_activation(make: Make) -> None:
    zarrs = pytest.importorskip("zarrs", reason="zarrs is not installed")
    assert zarrs is not None
    store = make(compression="fast", dtype="float32")
    rows = fill(store)
    settings = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    with zarr.config.set(settings):
        for name, expected in rows.items():
            assert same_bits(zarr.open(store.path, mode="r")[f"activations/{name}"][:], expected)


def test_xarray_opens_every_group(make: Make) -> None:
    xr = pytest.importorskip("xarray", reason="xarray is not installed")
    store = make()
    rows = fill(store)
    activations = xr.open_zarr(store.path, group="activations", consolidated=False)
    assert activations["resid_post.0"].dims == ("row", "unit")
    for name, expected in rows.items():
        assert same_bits(activations[name].values, expected)
    columns = xr.open_zarr(store.path, group="rows", consolidated=False)
    assert same_bits(columns["doc_idx"].values.astype(np.int64), store.rows.doc_idx[:])
    assert "ledger" in xr.open_zarr(store.path, consolidated=False)
    tree = xr.open_datatree(store.path, engine="zarr", consolidated=False)
    assert {"rows", "activations", "documents", "statistics"} <= set(tree.children)


def test_dask_reads_an_activation(make: Make) -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    store = make(dtype="float32")
    rows = fill(store)
    array = da.from_zarr(store.path, component="activations/mlp.1", chunks=(256, 40))
    assert same_bits(array.compute(scheduler="threads"), rows["mlp.1"])


def test_our_reader_reads_what_zarr_wrote(make: Make, tmp_path: Path) -> None:
    """The other direction: shards that zarr-python wrote from our own metadata."""
    store = make(compression="fast", dtype="float32")
    rows = fill(store)
    spec = store.arrays.activations["mlp.1"]
    other = tmp_path / "other" / spec.path
    other.mkdir(parents=True)
    (other / "zarr.json").write_bytes(store.objects.read(spec.metadata_key))
    zarr.open(other, mode="r+")[:] = rows["mlp.1"]
    from actlas.store.objects.local import LocalObjects
    from actlas.store.shards.lazy_array import LazyArray

    assert same_bits(LazyArray(LocalObjects(tmp_path / "other"), spec)[:], rows["mlp.1"])


@pytest.mark.parametrize(("profile", "cname"), [("fast", "lz4"), ("dense", "zstd")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_chunks_of_earlier_profiles_still_read(
    make: Make, tmp_path: Path, profile: str, cname: str, dtype: str
) -> None:
    """Stores made before the profiles changed: lz4 or zstd at level 5, Blosc's own block size."""
    from actlas.store.objects.local import LocalObjects
    from actlas.store.shards.lazy_array import LazyArray

    store = make(compression=profile, dtype=dtype)
    rows = fill(store)
    spec = store.arrays.activations["mlp.1"]
    metadata = json.loads(store.objects.read(spec.metadata_key))
    options = metadata["codecs"][0]["configuration"]["codecs"][1]["configuration"]
    now = dict(options)
    options |= {"cname": cname, "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    assert options != now
    other = tmp_path / "other" / spec.path
    other.mkdir(parents=True)
    (other / "zarr.json").write_text(json.dumps(metadata))
    zarr.open(other, mode="r+")[:] = rows["mlp.1"]
    found = LazyArray(LocalObjects(tmp_path / "other"), spec)
    assert same_bits(found[:], rows["mlp.1"])
    assert same_bits(found[100:300], rows["mlp.1"][100:300])


@pytest.mark.parametrize("compression", ["none", "fast"])
def test_rows_read_alone_are_the_same(make: Make, compression: str) -> None:
    store = make(compression=compression)
    fill(store)
    raw = open_store(store.path, check=False)
    assert not pickle.loads(pickle.dumps(raw)).check
    rng = np.random.default_rng(0)
    for name, array in store.activations.items():
        for n in (1, 3, 1024):
            rows = rng.integers(0, 1024, n)
            assert raw.activations[name][rows].tobytes() == array[rows].tobytes()
    name, array = next(iter(store.activations.items()))
    before = array[[2]].tobytes()
    file = Path(store.path) / array.spec.key(0)
    data = bytearray(file.read_bytes())
    data[array.spec.row_bytes * 2] ^= 1  # in row 2, or in the only chunk
    file.write_bytes(data)
    fresh = open_store(store.path, check=False).activations[name]
    with pytest.raises(CorruptDataError):
        open_store(store.path).activations[name][[2]]
    if compression == "none":
        found = fresh[[2]].tobytes()  # as was asked for, nobody looks
        assert [a ^ b for a, b in zip(before, found, strict=True)] == [1] + [0] * (len(before) - 1)
    else:
        with pytest.raises(CorruptDataError):
            fresh[[2]]


def test_what_is_written_is_what_the_metadata_says(make: Make) -> None:
    """Blosc's header of the first chunk, byte by byte, beside the array's zarr.json."""
    for profile, shuffled in (("fast", 0x4), ("dense", 0x1)):
        store = make(name=f"{profile}.zarr", compression=profile, dtype="float32")
        fill(store)
        spec = store.arrays.activations["mlp.1"]
        header = (Path(store.path) / spec.key(0)).read_bytes()[:16]
        metadata = json.loads(store.objects.read(spec.metadata_key))
        options = metadata["codecs"][0]["configuration"]["codecs"][1]["configuration"]
        assert (options["cname"], header[2] >> 5) == ("zstd", 4)
        assert (options["shuffle"], header[2] & 0x5) == (
            {0x4: "bitshuffle", 0x1: "shuffle"}[shuffled],
            shuffled,
        )
        assert options["typesize"] == header[3] == 4


def test_profile_none_is_a_raw_row_major_body(make: Make) -> None:
    store = make(compression="none", dtype="float32")
    rows = fill(store)
    spec = store.arrays.activations["resid_post.0"]
    body = np.memmap(Path(store.path) / spec.key(0), dtype="<f4", shape=(256, 24), mode="r")
    assert same_bits(body, rows["resid_post.0"][:256])


def test_row_columns_say_which_row_is_which(make: Make) -> None:
    columns = words_columns(3, 70, 15)
    store = make(columns=columns)
    fill(store)
    rows = store.rows.to_pandas()
    assert len(set(zip(rows.doc_idx, rows.pos_idx, strict=True))) == columns.n_tokens
    for token_id, doc_idx, pos_idx in zip(rows.token_id, rows.doc_idx, rows.pos_idx, strict=True):
        assert columns.tokens[doc_idx][pos_idx][0] == token_id


def test_a_document_comes_back_in_order(make: Make) -> None:
    columns = words_columns(4, 40, 60)
    store = make(columns=columns)
    rows = fill(store)
    order = np.lexsort((store.rows.pos_idx[:], store.rows.doc_idx[:]))
    in_order = rows["mlp.1"][order]
    assert not (order == np.arange(len(order))).all(), "the rows do lie shuffled"
    for doc_idx in range(40):
        document = store.document(doc_idx)
        lo, hi = int(columns.start[doc_idx]), int(columns.start[doc_idx + 1])
        assert document.text == columns.texts[doc_idx]
        assert document.token_id.tolist() == [a for a, _ in columns.tokens[doc_idx]]
        assert "".join(document.tokens) == columns.texts[doc_idx] or hi == lo
        assert same_bits(document.activations["mlp.1"], in_order[lo:hi])
        assert document.source.record == columns.record[doc_idx]


def test_corpus_order_keeps_the_rows_in_order(make: Make) -> None:
    columns = words_columns(5, 40, 20)
    store = make(columns=columns, order="corpus")
    fill(store)
    assert store.rows.token_id[:].tolist() == columns.token_ids(0, columns.n_tokens).tolist()


def test_context_has_as_many_words_as_asked_on_each_side(make: Make) -> None:
    columns = words_columns(6, 30, 90)
    store = make(columns=columns)
    doc_idx = int(np.argmax(np.diff(columns.start)))
    n = len(columns.tokens[doc_idx])
    for pos_idx, words in itertools.product([0, 5, n // 2, n - 1], [0, 1, 20]):
        context = store.context(doc_idx, pos_idx, words=words)
        text = columns.texts[doc_idx].split()
        assert context.token.strip() == text[pos_idx]
        assert context.before.split() == text[max(0, pos_idx - words) : pos_idx]
        assert context.after.split() == text[pos_idx + 1 : pos_idx + 1 + words]
        assert context.before + context.token + context.after in columns.texts[doc_idx]
        pieces = store.document(doc_idx).tokens[context.pos_start : context.pos_stop]
        assert "".join(pieces).strip() == str(context).replace("[", "").replace("]", "").strip()


def test_rows_without_a_receipt_are_refused_by_name(make: Make) -> None:
    store = make()
    fill(store, shards=range(0, 2))
    store = open_store(store.path)
    assert len(store.activations["mlp.1"][0:512]) == 512
    with pytest.raises(NotExtractedError, match=r"rows \[512, 768\)"):
        store.activations["mlp.1"][500:520]
    with pytest.raises(NotExtractedError):
        store.rows.token_id[600]
    store.require(np.array([0, 1]))
    with pytest.raises(NotExtractedError, match=r"rows \[512, 768\)"):
        store.require(np.array([0, 2]))


def test_statistics_equal_numpys(make: Make) -> None:
    store = make(dtype="float32")
    rows = fill(store)
    for name, expected in rows.items():
        moments = store.statistics(name)
        wide = expected.astype(np.float64)
        assert (moments.n == len(wide)).all()
        np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moments.variance, wide.var(0, ddof=1), rtol=1e-9)
        np.testing.assert_array_equal(moments.min, wide.min(0))
        np.testing.assert_array_equal(moments.max, wide.max(0))


def test_moments_survive_a_large_mean_and_nonfinite_values() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((5000, 3)) + 1e4).astype(np.float32)
    rows[7, 1], rows[8, 1] = np.nan, np.inf
    moments = Moments.of(rows)
    finite = rows[np.isfinite(rows[:, 1]), 1].astype(np.float64)
    assert moments.n.tolist() == [5000, 4998, 5000]
    np.testing.assert_allclose(moments.variance[1], finite.var(ddof=1), rtol=1e-9)
    np.testing.assert_allclose(moments.variance[0], rows[:, 0].astype("f8").var(ddof=1), rtol=1e-9)


def test_a_store_survives_pickling_and_shows_itself(make: Make) -> None:
    columns = words_columns(1, 20, 20, label=np.zeros(20, np.int32), label_names=("<i>",))
    store = make(columns=columns)
    fill(store)
    again = pickle.loads(pickle.dumps(store))
    assert again.plan == store.plan
    shown = store._repr_html_() + store.document(1)._repr_html_() + store.documents._repr_html_()
    assert "<b>word" not in shown and "&lt;b&gt;" in shown and "&lt;i&gt;" in shown
    assert "made-up" in shown and repr(store).startswith("<actlas store")
    assert "<mark" in store.context(1, 2)._repr_html_()
    assert list(store.documents.to_pandas().columns) == ["n_tokens", "label", "source", "record"]
    assert store.document(1).to_pandas().columns[-1] == "norm mlp.1"


def test_special_tokens_have_a_column_where_they_have_rows(make: Make) -> None:
    columns = words_columns(1, 20, 20)
    columns._ids[::9] = 0
    columns.tokens = []
    store = make(columns=columns, keep_special=True)
    fill(store)
    assert store.rows.special is not None
    assert (store.rows.special[:] == (store.rows.token_id[:] == 0)).all()


def test_an_unknown_hookpoint_says_which_there_are(make: Make) -> None:
    store = make()
    with pytest.raises(HookpointError, match=r"resid_post\.0, mlp\.1"):
        store.activations["resid_post.9"]


def test_bad_indexes_say_what_was_got(make: Make) -> None:
    store = make()
    fill(store)
    array = store.activations["mlp.1"]
    for bad in (len(array), -len(array) - 1, "x", 1.5, [[1]], np.zeros(3, bool)):
        with pytest.raises(IndexError):
            array[bad]
    with pytest.raises(IndexError):
        store.document(10_000)
    with pytest.raises(IndexError):
        store.context(0, 100_000)


def test_a_flipped_bit_never_reads_as_data(make: Make) -> None:
    for compression in ("none", "fast", "dense"):
        store = make(name=f"{compression}.zarr", compression=compression)
        rows = fill(store)
        spec = store.arrays.activations["mlp.1"]
        path = Path(store.path) / spec.key(1)
        good = path.read_bytes()
        for at in np.random.default_rng(0).integers(0, len(good), 40):
            bad = bytearray(good)
            bad[at] ^= 1 << int(at % 8)
            path.write_bytes(bad)
            with pytest.raises(CorruptDataError):
                open_store(store.path).activations["mlp.1"][256:512]
        path.write_bytes(good)
        assert same_bits(open_store(store.path).activations["mlp.1"][:], rows["mlp.1"])


def test_open_loads_neither_torch_nor_ray_nor_dask(make: Make) -> None:
    import subprocess
    import sys

    store = make()
    code = (
        "import sys, actlas\n"
        f"store = actlas.open({store.path!r}); repr(store)\n"
        "bad = {'torch', 'ray', 'dask', 'transformers', 'zarr', 'pandas', 'scipy'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
        "import zarr\n"
        f"print(zarr.open({store.path!r}, mode='r')['activations/mlp.1'].dtype)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bfloat16"


def test_the_public_names_are_there() -> None:
    assert set(actlas.__all__) <= set(dir(actlas))
    assert actlas.open is open_store
    with pytest.raises(AttributeError):
        actlas.nothing  # noqa: B018
