"""Parquet and Arrow: bytes that expand, names twice, files cut short. The oracle is what the test
wrote, and the peak of the memory, as Arrow's own allocator counts it or the kernel."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, ipc

from actlas.pipeline.corpus.corpus import open_corpus
from actlas.pipeline.corpus.formats import base, parquet_pages
from actlas.pipeline.corpus.formats.parquet import parquet_rows
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import CorpusError

TEXTS = ["one", "", "עברית 🎉 \x00 nul", None, "x" * 5000, "one", "last"]

MIB = 1 << 20


def corpus_of(path: Path, **options: Any) -> Any:
    return open_corpus(PlanOptions(model="-", corpus=str(path), **options))


def stream(table: pa.Table, path: Path, **options: Any) -> None:
    with ipc.new_stream(path, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=3)


def as_file(table: pa.Table, path: Path) -> None:
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "a.parquet": lambda table, path: pq.write_table(table, path, row_group_size=3),
    "b.parquet": lambda table, path: pq.write_table(
        table, path, use_dictionary=False, data_page_version="2.0", compression="zstd"
    ),
    "c.parquet": lambda table, path: pq.write_table(
        table, path, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    ),
    "a.arrow": stream,
    "b.arrow": as_file,
    "c.arrow": lambda table, path: stream(table, path, compression="zstd"),
    "d.feather": lambda table, path: feather.write_feather(table, path),
}

TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("of", TYPES, ids=str)
@pytest.mark.parametrize("name", WRITERS)
def test_the_texts_that_were_written(tmp_path: Path, name: str, of: pa.DataType) -> None:
    if name == "c.parquet" and pa.types.is_dictionary(of):
        of = pa.string()
    table = pa.table({"id": range(7), "text": pa.array(TEXTS, pa.string()).cast(of)})
    WRITERS[name](table, tmp_path / name)
    corpus = corpus_of(tmp_path / name)
    found = [(record.text, record.record) for record in corpus.records()]
    assert found == [(text, i) for i, text in enumerate(TEXTS) if text is not None]
    assert corpus.counts.n_read == 7 and corpus.counts.n_skipped == 1 and corpus.fraction() == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "b.arrow"])
def test_a_name_twice_is_refused_where_it_is_needed(tmp_path: Path, name: str) -> None:
    columns = [pa.array([text]) for text in ("a", "b", "c", "d")]
    table = pa.Table.from_arrays(columns, ["text", "x", "x", "y"])
    WRITERS[name](table, tmp_path / name)
    assert [record.text for record in corpus_of(tmp_path / name).records()] == ["a"]
    for options in ({"text_field": "x"}, {"label_field": "x"}, {"text_field": "text:y"}):
        with pytest.raises(CorpusError, match=r"schema: 2 columns have the name 'x'.*\(.* 2, 3\)"):
            list(corpus_of(tmp_path / name, **options).records())


def test_nested_values(tmp_path: Path) -> None:
    twice = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["t", "t"])
    table = pa.table({"text": ["good"], "meta": [{"set": {"name": "pile"}}], "twice": twice})
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = corpus_of(tmp_path / "a.parquet", label_field="meta.set.name").records()
    assert (found.text, found.label) == ("good", "pile")
    with pytest.raises(CorpusError, match=r"fields are text, meta\.set\.name, twice\.t"):
        list(corpus_of(tmp_path / "a.parquet", text_field="meta.nothing").records())
    with pytest.raises(CorpusError, match="Python has no counterpart"):
        list(corpus_of(tmp_path / "a.parquet", text_field="twice.t").records())


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_cut_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    WRITERS[name](pa.table({"text": [text or "-" for text in TEXTS]}), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for size in {0, 4, 8, len(data) - 1, *range(1, len(data), max(1, len(data) // 40))}:
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(CorpusError, match="damaged or truncated"):
            list(corpus_of(tmp_path / name).records())


def test_a_stream_cut_between_two_batches(tmp_path: Path) -> None:
    """Arrow's own reader takes what is left for the whole."""
    path = tmp_path / "a.arrow"
    stream(pa.table({"text": ["a", "b", "c", "d", "e"]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])  # the mark of the end
    assert ipc.open_stream(path).read_all().num_rows == 5
    with pytest.raises(CorpusError, match="without a mark of its end"):
        list(corpus_of(path).records())


def test_checksums_of_pages_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["this is the text " + str(i) for i in range(50)]})
    pq.write_table(table, path, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"text 31")] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"damaged.*(CRC|checksum)"):
        list(corpus_of(path).records())


def test_rows_that_share_one_large_value(tmp_path: Path) -> None:
    """A file of 1 kB whose rows take 600 MB if they are decoded at once."""
    path = tmp_path / "a.parquet"
    value = "x" * (4 * MIB)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 150, pa.int32()), [value])
    pq.write_table(pa.table({"text": text}), path, compression="zstd")
    assert path.stat().st_size < 2000
    before, pool = pa.total_allocated_bytes(), pa.default_memory_pool()
    n = most = 0
    for record in corpus_of(path).records():
        n += record.text == value
        most = max(most, pa.total_allocated_bytes() - before)
    assert n == 150 and most < 320 * MIB and pool.bytes_allocated() - before < MIB


_PEAK = """
import sys
from pathlib import Path
import pyarrow.parquet
from actlas.pipeline.corpus.formats.base import Position
from actlas.pipeline.corpus.formats.parquet import parquet_rows

def peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

before = peak()
for _ in parquet_rows(Path(sys.argv[1]), lambda names, fields: ["text"], Position()):
    pass
print((peak() - before) >> 10)
"""
_VALUE = "ab " * (4 << 20)
_SHARED = pa.DictionaryArray.from_arrays(pa.array([0] * 90, pa.int32()), [_VALUE])
AMPLIFIED = {
    "a value in every row": _SHARED,
    "a list of ten in every row": pa.ListArray.from_arrays(list(range(0, 91, 10)), _SHARED),
    "a list of all in one row": pa.ListArray.from_arrays([0, 90, *[90] * 99], _SHARED),
    "values of structures": pa.ListArray.from_arrays(
        [0, 90], pa.StructArray.from_arrays([_SHARED], names=["content"])
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's VmHWM")
@pytest.mark.parametrize("kind", AMPLIFIED)
def test_a_small_file_takes_no_multiple_of_its_largest_value(tmp_path: Path, kind: str) -> None:
    """A value of 12 MiB that is named 90 times, in a file of 3 kB: 1.1 GB if it is decoded."""
    path = tmp_path / "a.parquet"
    table, options = pa.table({"text": AMPLIFIED[kind]}), {"dictionary_pagesize_limit": 1 << 30}
    pq.write_table(table, path, compression="zstd", store_schema=False, **options)
    assert path.stat().st_size < 5000
    command = [sys.executable, "-c", _PEAK, str(path)]
    peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(peak) < 160, peak


def test_a_column_of_which_values_are_shared_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dictionary ends within the column, so that the last values have none."""
    monkeypatch.setattr(parquet_pages, "_BATCH_BYTES", 1000)
    turns = [[f"{i} {j} " + "w" * (i % 50) for j in range(i % 4)] for i in range(300)]
    texts = [None if i % 7 == 0 else f"text {i % 90}" for i in range(300)]
    path = tmp_path / "a.parquet"
    options: Any = {"dictionary_pagesize_limit": 2000, "data_page_size": 500, "write_batch_size": 9}
    pq.write_table(pa.table({"turns": turns, "text": texts}), path, **options)
    with path.open("rb") as file:
        group = pq.read_metadata(path).row_group(0)
        names = ["turns", "text"]
        shared = parquet_pages.batches(file, path, group, names).shared
    assert shared == ("turns.list.element", "text")
    rows = [row for _, row in parquet_rows(path, lambda *_: names, base.Position())]
    assert rows == [{"turns": a, "text": b} for a, b in zip(turns, texts, strict=True)]


def test_what_one_row_unpacks_to_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_UNPACKED_BYTES", MIB)
    monkeypatch.setattr(parquet_pages, "MAX_UNPACKED_BYTES", MIB)
    zeros = pa.array([0] * (MIB // 4), pa.int32())
    lists = pa.ListArray.from_arrays([0, len(zeros)], zeros)
    table = pa.table({"text": ["x" * 2 * MIB], "list": lists, "good": ["good"]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    feather.write_feather(table, tmp_path / "a.arrow", compression="zstd")
    for name, field in (("a.parquet", "text"), ("a.parquet", "list"), ("a.arrow", "text")):
        with pytest.raises(CorpusError, match=r"MiB of memory, and at most 1 MiB.*Write it again"):
            list(corpus_of(tmp_path / name, text_field=field).records())
    (found,) = corpus_of(tmp_path / "a.parquet", text_field="good").records()
    assert found.text == "good"  # the other columns are not unpacked


def test_incompressible_pages_of_any_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_UNPACKED_BYTES", 1000)
    texts = ["".join(chr(97 + (i * i * j + j) % 26) for j in range(500)) for i in range(40)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert [record.text for record in corpus_of(tmp_path / "a.parquet").records()] == texts


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_pages_are_those_that_the_file_states(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i} " * 20 for i in range(5000)], "n": range(5000)})
    options: Any = {"data_page_version": version, "data_page_size": 4096}
    pq.write_table(table, path, row_group_size=3000, write_page_index=True, **options)
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                found = list(parquet_pages.pages(file, path, chunk))
                packed = sum(page.n_header + page.n_packed for page in found)
                unpacked = sum(page.n_header + page.n_unpacked for page in found)
                assert packed == chunk.total_compressed_size
                assert unpacked == chunk.total_uncompressed_size
                assert [page.kind for page in found].count(2) == chunk.has_dictionary_page


@pytest.mark.parametrize("head", [b"", b"\x00", b"\xff" * 40, b"\x15\x00\x25", b"\x1c" * 40])
def test_bytes_that_are_no_header_of_a_page(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 100]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4 : 4 + len(head)] = head
    path.write_bytes(data)
    if head:
        with pytest.raises(CorpusError, match="damaged or truncated"):
            list(corpus_of(path).records())


def test_bytes_that_are_no_message_of_arrow(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    stream(pa.table({"text": ["a", "b"]}), path)
    data = path.read_bytes()
    for place in range(0, 300, 4):
        hurt = bytearray(data)
        struct.pack_into("<i", hurt, place, -1 - place)
        path.write_bytes(hurt)
        corpus = corpus_of(path)
        try:
            list(corpus.records())
        except CorpusError:
            continue
        assert corpus.counts.n_read == 2  # bytes that say nothing of rows
