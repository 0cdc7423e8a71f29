"""Corpora: every kind of file, every bad record, every bad path. The oracle is the library's own
reader of each format, or what the test itself wrote."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actlas.pipeline.corpus.corpus import open_corpus
from actlas.pipeline.corpus.formats import base
from actlas.pipeline.corpus.readers import READERS
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ConfigError, CorpusError

TEXTS = ["one", "", "two\nlines", "עברית 🎉 \x00 nul", "</s><|endoftext|>", "x" * 300_000, "last"]


def corpus_of(uri: Path | str, **options: Any) -> Any:
    return open_corpus(PlanOptions(model="-", corpus=str(uri), **options))


def texts_of(uri: Path | str, **options: Any) -> list[str]:
    return [record.text for record in corpus_of(uri, **options).records()]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": i, "text": t}).encode() + b"\n" for i, t in enumerate(texts))


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_bytes(jsonl(texts))


def write_gz(path: Path, texts: list[str]) -> None:
    with gzip.open(path, "wb") as file:
        file.write(jsonl(texts))


def write_zst(path: Path, texts: list[str]) -> None:
    import zstandard

    half = len(texts) // 2  # Two frames, the second without its size.
    first = zstandard.ZstdCompressor().compress(jsonl(texts[:half]))
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    path.write_bytes(first + stream.compress(jsonl(texts[half:])) + stream.flush())


def write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": list(range(len(texts))), "text": texts})
    pq.write_table(table, path, row_group_size=2)


def write_csv(path: Path, texts: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    ".jsonl": write_jsonl,
    ".jsonl.gz": write_gz,
    ".jsonl.zst": write_zst,
    ".parquet": write_parquet,
    ".csv": write_csv,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_texts_that_were_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, TEXTS)
    corpus = corpus_of(path)
    records = list(corpus.records())
    assert [record.text for record in records] == TEXTS
    assert [record.record for record in records] == list(range(len(TEXTS)))
    assert {record.source for record in records} == {path.name}
    assert corpus.counts.n_read == len(TEXTS) and corpus.counts.n_skipped == 0
    assert corpus.fraction() == 1
    assert [record.text for record in corpus.records()] == TEXTS  # And once more.


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    assert texts_of(tmp_path / "b.txt") == ["one\r\n\r\ntwo\n"]
    assert corpus_of(tmp_path / "b.txt").text_field is None


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_compressed_file_cut_short_is_an_error(tmp_path: Path, suffix: str, cut: int) -> None:
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, TEXTS)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CorpusError, match=r"damaged or truncated"):
        texts_of(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_file_that_is_something_else_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"this is no such file, and it says so at some length")
    with pytest.raises(CorpusError, match=f"a{suffix}"):
        texts_of(path)


def test_bad_records_are_skipped_counted_and_placed(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "\xff\xfe"}',
        b"{not json}",
        b"[1, 2]",
        b'"text"',
        b"",
        b"   \r",
        b'{"other": 1}',
        b'{"text": 5}',
        b'{"text": null}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": "\\ud83c\\udf89"}',
        b'{"text": ""}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    corpus = corpus_of(tmp_path)
    records = [(record.text, record.record) for record in corpus.records()]
    assert records == [("good", 0), ("🎉", 12), ("", 13)]
    assert corpus.counts.skipped == {
        "not UTF-8": 1,
        "not JSON": 2,
        "JSON, but not an object with named fields": 2,
        "no field 'text'": 1,
        "field 'text' is no string": 2,
        "not valid Unicode (half of a surrogate pair)": 1,
    }
    assert corpus.counts.n_read == 12 and corpus.counts.n_skipped == 9
    assert corpus.counts.first["no field 'text'"] == "a.jsonl record 7"
    assert any("the first: a.jsonl record 1" in line for line in corpus.counts.lines())


def test_bad_bytes_in_tables_are_skipped(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_bytes(b'text,n\ngood,1\n\xff\xfe,2\n"two\nlines",3\nalso,4\nshort\n')
    corpus = corpus_of(tmp_path / "a.csv")
    assert [r.text for r in corpus.records()] == ["good", "two\nlines", "also"]
    fewer = "a row with fewer cells than the header"
    assert corpus.counts.skipped == {"not UTF-8": 1, fewer: 1}
    column = pa.array([b"good", b"\xff\xfe", b"also"], pa.binary())
    bad = pa.StringArray.from_buffers(3, column.buffers()[1], column.buffers()[2])
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    corpus = corpus_of(tmp_path / "a.parquet")
    assert [(r.text, r.record) for r in corpus.records()] == [("good", 0), ("also", 2)]
    assert corpus.counts.skipped == {"not UTF-8": 1}


def test_fields_by_name_by_path_and_by_range(tmp_path: Path) -> None:
    record = {"a.b": "dotted", "a": {"b": "nested", "c": {"d": "deep"}}, "w1": "The", "w2": " dog "}
    record |= {"w3": "", "w4": "RAN", "n": 3, "yes": True, "none": None}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    assert texts_of(tmp_path, text_field="a.b") == ["dotted"]
    assert texts_of(tmp_path, text_field="a.c.d") == ["deep"]
    assert texts_of(tmp_path, text_field="w1:w4") == ["The dog RAN"]
    assert texts_of(tmp_path, text_field="w1:w4", lowercase=True) == ["the dog ran"]
    for label, expected in {"n": "3", "yes": "True", "a.c.d": "deep"}.items():
        (found,) = corpus_of(tmp_path, text_field="w1", label_field=label).records()
        assert found.label == expected


def test_only_needed_columns_of_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"text": ["a"], "big": [b"x" * 1000], "meta": [{"set": "w", "n": 1}]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    corpus = corpus_of(tmp_path, label_field="meta.set")
    assert corpus._selection.columns(["text", "big", "meta"]) == ["text", "meta"]
    assert [(r.text, r.label) for r in corpus.records()] == [("a", "w")]


@pytest.mark.parametrize("suffix", WRITERS)
def test_no_text_at_all_names_the_fields_that_exist(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, ["one", "two"])
    with pytest.raises(CorpusError, match=r"none of 2 records has text.*id, text.*text_field="):
        texts_of(path, text_field="story")
    with pytest.raises(CorpusError, match=r"has a label in 'kind'.*id, text.*label_field="):
        texts_of(path, label_field="kind")
    with pytest.raises(CorpusError, match=r"no field 'text:z'"):
        texts_of(path, text_field="text:z")


def test_a_corpus_without_text_is_given_up_early(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n' * 30_000 + '{"text": "at last"}\n')
    with pytest.raises(CorpusError, match=r"none of 10,000 records"):
        texts_of(tmp_path)


def test_files_in_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/9.jsonl", "a/10.jsonl", ".hidden/x.jsonl", "c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, [name])
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / "LICENSE").write_text("terms")
    records = list(corpus_of(tmp_path).records())
    assert [r.text for r in records] == ["a/10.jsonl", "a/9.jsonl", "b/2.jsonl", "c.jsonl"]
    assert [r.source for r in records] == [r.text for r in records]
    assert texts_of(tmp_path / "*" / "9*") == ["a/9.jsonl"]
    assert len(texts_of(f"{tmp_path}/**/*.jsonl")) == 4
    weird = tmp_path / "data[1].jsonl"
    write_jsonl(weird, ["brackets"])
    assert texts_of(weird) == ["brackets"]


@pytest.mark.parametrize("name", ["nowhere", "nowhere.jsonl", "no*.jsonl", "nowhere/*.csv"])
def test_a_missing_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError, match=r"no such path.*\.jsonl.*\.zst.*hf:NAME.*builtin"):
        corpus_of(tmp_path / name)


def test_the_folder_of_a_model_is_no_corpus_but_a_folder_with_a_config_may_be(
    tmp_path: Path,
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}')
    (tmp_path / "config.json").write_text('{"text": "b"}')
    assert sorted(texts_of(tmp_path)) == ["a", "b"]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CorpusError, match="got the folder of a model, expected a corpus"):
        corpus_of(tmp_path)


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus files in it"):
        corpus_of(tmp_path)
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(CorpusError, match=r"'\.docx', expected one of \.jsonl"):
        corpus_of(tmp_path / "a.docx")
    with pytest.raises(CorpusError, match=r"none of its 1 matches is a corpus file"):
        corpus_of(tmp_path / "*.docx")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(CorpusError, match=r"it has no records"):
        texts_of(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xff")
    with pytest.raises(CorpusError, match=r"not UTF-8 \(the first: bad.txt record 0\)"):
        texts_of(tmp_path / "bad.txt")


def test_builtin_corpora() -> None:
    corpus = corpus_of("builtin:language")
    assert corpus.labelled and corpus.finite
    labels = [record.label for record in corpus.records()]
    assert len(labels) == 480 and len(set(labels)) == 2
    assert not corpus_of("builtin:python-docs").labelled
    with pytest.raises(CorpusError, match=r"builtin:python-docs, builtin:language"):
        corpus_of("builtin:nothing")
    with pytest.raises(ConfigError, match=r"text_field"):
        corpus_of("builtin:language", text_field="x")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path) -> None:
    for i in range(5):
        write_parquet(tmp_path / f"{i}.parquet", [f"{i} {j}" for j in range(3)])
    in_order = [f"{i} {j}" for i in range(5) for j in range(3)]
    corpus = corpus_of(f"hf:{tmp_path}", order="corpus")
    assert not corpus.finite
    assert [r.text for r in corpus.records()] == in_order
    orders = set()
    for seed in range(4):
        records = list(corpus_of(f"hf:{tmp_path}:train", seed=seed).records())
        assert sorted(r.text for r in records) == in_order
        for record in records:  # The source names the file, the record its row.
            file, row = record.text.split()
            assert f"file {file} of 5" in record.source and record.record == int(row)
        orders.add(tuple(r.text for r in records))
    assert len(orders) > 1
    with pytest.raises(CorpusError, match=r"Bad split"):
        texts_of(f"hf:{tmp_path}:nosplit")
    with pytest.raises(CorpusError, match=r"none of 15 records has text.*id, text"):
        texts_of(f"hf:{tmp_path}", text_field="nope")
    with pytest.raises(CorpusError, match=r"expected hf:NAME"):
        corpus_of("hf:")
    with pytest.raises(CorpusError, match=r"cannot be read"):
        texts_of(f"hf:{tmp_path}/nowhere")


def test_real_stimuli(shared: Path) -> None:
    options = {"text_field": "stim2:stim13", "label_field": "stim14", "lowercase": True}
    records = list(corpus_of(shared / "data" / "langloc_stimuli", **options).records())
    expected = []
    for path in sorted((shared / "data" / "langloc_stimuli").glob("*.csv")):
        for line in path.read_text().splitlines()[1:]:
            cells = line.split(",")
            expected.append((" ".join(cells[1:13]).lower(), cells[13], path.name))
    assert [(r.text, r.label, r.source) for r in records] == expected
    assert [r.label for r in records].count("S") == [r.label for r in records].count("N") == 240


def test_real_pile_and_c4(shared: Path) -> None:
    for folder, label in {"pile_sample": "meta.pile_set_name", "c4_sample": None}.items():
        expected = []
        for path in sorted((shared / "data" / folder).glob("*.jsonl")):
            values = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
            expected += [(v["text"], v["meta"]["pile_set_name"] if label else None) for v in values]
        found = corpus_of(shared / "data" / folder, label_field=label).records()
        assert [(r.text, r.label) for r in found] == expected


def test_known_suffixes_are_the_contracts() -> None:
    texts = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
    packed = {text + how for text in texts for how in ("", ".gz", ".bz2", ".xz", ".zst")}
    assert set(READERS) == packed | {".parquet", ".arrow", ".feather"}


def test_an_empty_cell_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,kind\none,S\ntwo,\nthree, \n")
    found = corpus_of(tmp_path / "a.csv", label_field="kind").records()
    assert [record.label for record in found] == ["S", None, None]


def test_a_text_that_is_too_long_names_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(CorpusError, match=r"longer than 64 MiB.*A document may have 64 MiB"):
        texts_of(tmp_path / "a.txt")
