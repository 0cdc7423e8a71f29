"""Tables that are not quite tables. The oracle is the rows that Python's writer wrote."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlas.pipeline.corpus.corpus import open_corpus
from actlas.pipeline.corpus.formats import base, csv_table
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ConfigError, CorpusError
from actlas.store.format.schema import CorpusSpec

ROWS = [
    ["1", "plain", "S"],
    ["2", 'with "quotes", and a comma', "N"],
    ["3", "two\nlines", "S"],
    ["4", "", ""],
    ["5", '"', "N"],
    ["6", "the end, it is", "S"],
]


def written(rows: list[list[str]], **options: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **options).writerows([["id", "text", "kind"], *rows])
    return text.getvalue().encode()


def read(path: Path, data: bytes, **options: Any) -> tuple[list[str], dict[str, int]]:
    path.write_bytes(data)
    corpus: Any = open_corpus(PlanOptions(model="-", corpus=str(path), **options))
    texts = [record.text for record in corpus.records()]
    return texts, dict(corpus.counts.skipped)


def refusal(path: Path, data: bytes, **options: Any) -> str:
    with pytest.raises(CorpusError) as caught:
        read(path, data, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quoting": csv.QUOTE_ALL},
        {"lineterminator": "\n"},
        {"lineterminator": "\r", "quoting": csv.QUOTE_ALL},
    ],
    ids=["minimal", "all", "newline", "return"],
)
def test_a_table_that_is_one(tmp_path: Path, options: dict[str, Any]) -> None:
    texts, skipped = read(tmp_path / "a.csv", written(ROWS, **options))
    assert texts == [row[1] for row in ROWS] and not skipped
    tabs = written(ROWS, delimiter="\t", **options)
    assert read(tmp_path / "a.tsv", tabs) == (texts, {})
    assert read(tmp_path / "a.tsv.gz", gzip.compress(tabs)) == (texts, {})


cells = st.text(st.sampled_from('ab,"\n\r\t é'), max_size=6)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(cells, cells), max_size=5), st.integers(1, 9))
def test_any_cells_as_python_writes_them(rows: list[tuple[str, str]], n: int) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    data = text.getvalue().encode()
    blocks = [data[i : i + n] for i in range(0, len(data), n)]
    found = csv_table.csv_rows(blocks, Path("x.csv"), lambda names, _: names)
    assert [tuple(row.values()) for _, row in found] == rows  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{}, {"quoting": csv.QUOTE_ALL}], ids=["minimal", "all"])
def test_no_row_vanishes_with_a_missing_quote(tmp_path: Path, options: dict[str, Any]) -> None:
    """Whichever quote is missing: an error with its place, or every other row is there."""
    data = written(ROWS, **options)
    n_refused = 0
    for place in [match.start() for match in re.finditer(b'"', data)]:
        cut = data[:place] + data[place + 1 :]
        hurt = data[:place].count(b"\r\n")  # only the ends of rows are these
        try:
            texts, skipped = read(tmp_path / "a.csv", cut)
        except CorpusError as error:
            assert re.search(r"a\.csv, line \d+, column \d+: ", str(error))
            n_refused += 1
            continue
        others = [row[1] for i, row in enumerate(ROWS, 1) if i != hurt]
        assert [text for text in texts if text in others] == others, cut
        assert len(texts) + sum(skipped.values()) >= len(ROWS), cut
    assert n_refused >= 6


def test_a_quote_that_does_not_end_names_where_it_began(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    said = refusal(path, b'id,text\n1,good\n2,"bad\n3,good\n')
    assert "line 3, column 3: a quoted cell does not end" in said
    said = refusal(path, b'id,text\n1,good\n2,"bad\n3,good\n4,"fine"\n')
    assert "line 5, column 4: something follows a closing quote" in said
    said = refusal(path, b'text\n"bad\ngood\n"\nfoo"\n')
    assert "line 2, column 1: a quoted cell spans lines" in said and "line 5, column 4" in said
    said = refusal(path, 'text\n"é" x\n'.encode())
    assert "line 2, column 4" in said  # in characters


def test_rows_that_do_not_fit_the_header_are_counted_with_their_lines(tmp_path: Path) -> None:
    data = b'id,text\n1,Hello, world\n2,"fine\nit is"\n3\n\n4,a,b,c,"d"\n5,good\n'
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    corpus: Any = open_corpus(PlanOptions(model="-", corpus=str(path)))
    assert [(r.text, r.record) for r in corpus.records()] == [("fine\nit is", 1), ("good", 4)]
    assert corpus.counts.skipped == {
        "a row with more cells than the header": 2,
        "a row with fewer cells than the header": 1,
    }
    assert "record 0, line 2: more than 2 cells" in " ".join(corpus.counts.lines())
    assert "record 2, line 5: 1 cells" in " ".join(corpus.counts.lines())


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_in_some_rows(tmp_path: Path, delimiter: str) -> None:
    data = f"text,n\ngood,1\nbad{delimiter}2\n".encode()
    texts, skipped = read(tmp_path / "a.csv", data)
    assert texts == ["good"] and sum(skipped.values()) == 1
    assert read(tmp_path / "a.csv", data.replace(b",", delimiter.encode())) == (["good", "bad"], {})


def test_a_name_twice_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    said = refusal(path, b"text,n,text\na,1,b\n")
    assert "a.csv, line 1: 2 columns have the name 'text' (columns 1, 3)" in said
    stimuli = b"stim1,stim2,x,x,stim3\nThe,dog,big,red,ran\n"
    assert "'x' (columns 3, 4)" in refusal(path, stimuli, text_field="stim1:stim3")
    assert "'x' (columns 3, 4)" in refusal(path, stimuli, text_field="stim1", label_field="x")
    assert read(path, stimuli, text_field="stim1:stim2") == (["The dog"], {})


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    marks = {name: getattr(codecs, "BOM_" + name.upper().replace("-", "", 1).replace("-", "_"))
             for name in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")}  # fmt: skip
    texts = [row[1] + "é🎉" for row in ROWS]
    data = written([[row[0], text, ""] for row, text in zip(ROWS, texts, strict=True)])
    data = marks[encoding] + data.decode().encode(encoding)
    assert read(tmp_path / "a.csv", data) == (texts, {})
    if encoding != "utf-8":
        assert "is not" in refusal(tmp_path / "a.csv", data[:-1])


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    texts, skipped = read(path, b"text,n\ncaf\xe9,1\nnul\0,2\ngood,\xff\n")
    assert texts == ["nul\0", "good"] and skipped == {"not UTF-8": 1}
    assert "caf" in refusal(path, b"caf\xe9,n\na,1\n")
    assert "no records" in refusal(path, b"")
    assert "no records" in refusal(path, b"text,n\n")


def test_lines_and_cells_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.csv.gz"
    for body in (b"x" * 2000, b'"' + b"x\n" * 1000 + b'"'):
        with pytest.raises(CorpusError, match="MiB"):
            read(path, gzip.compress(b"text\n" + body))
    monkeypatch.setattr(csv_table, "MAX_HEADER_BYTES", 100)
    with pytest.raises(CorpusError, match="header"):
        read(path, gzip.compress(b"," * 200 + b"\n"))
    assert base.MAX_LINE_BYTES == 128 << 20


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header(tmp_path: Path, delimiter: str, quoting: Any) -> None:
    rows = [*ROWS, ["7", "1,5; and | so on", "N"]]
    for suffix, own in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"table{suffix}"
        path.write_bytes(written(rows, delimiter=delimiter, quoting=quoting))
        corpus: Any = open_corpus(PlanOptions(model="-", corpus=str(path), label_field="kind"))
        found = [(record.text, record.label) for record in corpus.records()]
        assert found == [(text, kind or None) for _, text, kind in rows]
        told = corpus.counts.delimiter_lines()
        assert bool(told) is (delimiter != own)
        if told:
            shown = "a tab" if delimiter == "\t" else repr(delimiter)
            assert told == [
                f"{shown} separates the columns of table{suffix} (--delimiter names another)"
            ]


def test_a_header_that_fits_several_delimiters_is_read_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert read(path, b"text\na;b\nc|d\n")[0] == ["a;b", "c|d"]
    assert read(path, b"text,a;b\none,two\n")[0] == ["one"]
    assert read(path, b"Satz, deutsch;text\nGuten Tag, Welt;one\n")[0] == ["one"]
    texts, _ = read(path, b"id;text;kind\n1;1,5 Liter, etwa;S\n", text_field="text:kind")
    assert texts == ["1,5 Liter, etwa S"]
    said = refusal(path, b"id;words\n1;a\n")
    assert "Its fields are id, words: name the one with text" in said


def test_a_given_delimiter_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert read(path, b"text;a,text\none;two,three\n", delimiter=",", text_field="text;a")[0] == [
        "one;two"
    ]
    assert read(path, b"id^text\n1^a,b\n", delimiter="^")[0] == ["a,b"]
    assert read(path, b"id\ttext\n1\ta\n", delimiter="tab")[0] == ["a"]
    assert read(path, b"sep=^\r\nid^text\r\n1^a\r\n2\r\n") == (
        ["a"],
        {"a row with fewer cells than the header": 1},
    )
    said = refusal(path, b'\nsep=;\nid;text\n1;"bad\n')
    assert "line 4, column 3: a quoted cell does not end" in said
    for bad in ("ab", "a", '"', "\n", ""):
        with pytest.raises(ValueError, match="should be one character"):
            PlanOptions(model="-", corpus="x", delimiter=bad)


def test_text_files_are_tables_or_lines_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    data = b"text;label\r\nel gato, pues;S\r\n\r\nzu drei;N\r\n"
    assert read(path, data)[0] == [data.decode()]
    path.write_bytes(data)
    table: Any = open_corpus(
        PlanOptions(model="-", corpus=str(path), delimiter=";", label_field="label")
    )
    found = [(record.text, record.label, record.record) for record in table.records()]
    assert found == [("el gato, pues", "S", 0), ("zu drei", "N", 1)]
    lines: Any = open_corpus(PlanOptions(model="-", corpus=str(path), lines=True))
    found = [(record.text, record.label, record.record) for record in lines.records()]
    assert [(text, record) for text, _, record in found] == [
        ("text;label", 0),
        ("el gato, pues;S", 1),
        ("zu drei;N", 3),
    ]
    texts, skipped = read(path, b"good\n\xff\n  \nlast", lines=True)
    assert texts == ["good", "last"] and skipped == {"not UTF-8": 1}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.jsonl", {"delimiter": ";"}, "delimiter= is for tables of text"),
        ("a.csv", {"lines": True}, "lines=True is for .txt files"),
        ("a.txt", {"lines": True, "delimiter": ";"}, "Leave one of them out"),
        ("builtin:language", {"lines": True}, "lines=True is for files of text"),
    ],
)
def test_options_of_other_files_are_refused(
    tmp_path: Path, name: str, options: dict[str, Any], says: str
) -> None:
    corpus = name if ":" in name else str(tmp_path / name)
    if ":" not in name:
        Path(corpus).write_text("text\na\n")
    with pytest.raises(ConfigError, match=says):
        open_corpus(PlanOptions(model="-", corpus=corpus, **options))


def test_only_a_plan_with_another_delimiter_says_so() -> None:
    fields: dict[str, Any] = {"uri": "a.csv", "fingerprint": "", "text_field": "text"}
    fields |= {"label_field": None, "lowercase": False, "sample": "all"}
    fields |= {"n_records_read": 1, "n_records_skipped": 0}
    plain, other = CorpusSpec(**fields), CorpusSpec(**fields, delimiters=(";",))
    assert json.loads(plain.model_dump_json()) == fields, "as earlier versions wrote it"
    assert CorpusSpec.model_validate_json(other.model_dump_json()) == other
