"""JSON in every arrangement, and beyond Python's limits. The oracle is what the test wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actlas.pipeline.corpus.corpus import open_corpus
from actlas.pipeline.corpus.formats import json_files, streams
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import CorpusError

VALUES: list[Any] = [
    {"text": "plain"},
    {"text": 'brackets ]}[{ , "quotes" \\ and\nlines', "meta": {"a": [1, {"b": [2, 3]}]}},
    {"text": "é🎉", "n": None},
    {"text": ""},
    {"text": "the last", "list": [[], [[]], {}]},
]

ARRANGEMENTS: dict[str, Callable[[], str]] = {
    "lines": lambda: "\n".join(json.dumps(v) for v in VALUES),
    "blank lines": lambda: "\n\n".join(json.dumps(v) for v in VALUES) + "\n\n",
    "array": lambda: json.dumps(VALUES, ensure_ascii=False),
    "array of lines": lambda: "[\n" + ",\n".join(json.dumps(v) for v in VALUES) + "\n]\n",
    "pretty array": lambda: json.dumps(VALUES, indent=2),
    "pretty objects": lambda: "\n".join(json.dumps(v, indent=1) for v in VALUES),
    "without a break": lambda: "".join(json.dumps(v) for v in VALUES),
    "byte-order mark": lambda: "\ufeff" + json.dumps(VALUES),
}


def corpus_of(path: Path, data: bytes | str, **options: Any) -> Any:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_corpus(PlanOptions(model="-", corpus=str(path), **options))


@pytest.mark.parametrize("block", [3, 1 << 18])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_arrangement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrangement: str, block: int
) -> None:
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    corpus = corpus_of(tmp_path / "a.json", ARRANGEMENTS[arrangement]())
    assert [record.text for record in corpus.records()] == [v["text"] for v in VALUES]
    assert not corpus.counts.lines() and corpus.fraction() == 1


def test_bad_values_in_an_array_are_counted(tmp_path: Path) -> None:
    data = b'[{"text": "a"}, 5, [1, "]"], {bad}, {"text": "\xff"}, "x,y", null, {"text": "b"},]'
    corpus = corpus_of(tmp_path / "a.json", data)
    assert [(r.text, r.record) for r in corpus.records()] == [("a", 0), ("b", 7)]
    assert corpus.counts.skipped == {
        "JSON, but not an object with named fields": 4,
        "not JSON": 2,
        "not UTF-8": 1,
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('[{"text": "a"},\n{"text": "b"', "damaged or truncated.*line 2"),
        ('{\n"text": "a"\n}\n{\n"text":', "damaged or truncated.*line 4"),
        ('[{"text": "a"}]\n[{"text": "b"}]', "line 2, column 1: something follows the end"),
        ('[{"text": "a"}] tail', "something follows the end of the array"),
        ('[\n{"text": "a\n"}, {"text": "b"}]', r"line 2, column 12: a string does not end"),
        ('{\n"text": "a"\n}\n}\n', "line 4, column 1: a bracket closes that none opened"),
    ],
)
def test_a_file_that_cannot_be_followed_is_an_error(tmp_path: Path, data: str, said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        list(corpus_of(tmp_path / "a.json", data).records())


def test_other_forms_name_their_fields(tmp_path: Path) -> None:
    for data in ({"data": VALUES}, {"text": ["a", "b"]}, {"text": {"0": "a"}}):
        with pytest.raises(CorpusError, match=r"none of 1 record has text.*Its fields are"):
            list(corpus_of(tmp_path / "a.json", json.dumps(data)).records())


@pytest.mark.parametrize(
    "beside",
    [
        "1" * 5000,
        "-" + "9" * 5000,
        "[" + "1" * 5000 + "]",
        "1e999999999",
        "-1E-999999999",
        "NaN",
        "-Infinity",
        "0." + "1" * 50_000,
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        '"\\ud800"',
        '{"text": 1, "text": 2}',
        '1, "other": 2',
    ],
    ids=lambda value: value[:12],
)
def test_what_a_record_does_not_need_spoils_nothing(tmp_path: Path, beside: str) -> None:
    line = f'{{"text": "good, \\" text", "other": {beside}, "label": "S"}}'
    corpus = corpus_of(tmp_path / "a.jsonl", line, label_field="label")
    assert [(r.text, r.label) for r in corpus.records()] == [('good, " text', "S")]
    assert not corpus.counts.lines()


def test_what_a_record_needs_is_exact_or_counted(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": ' + "7" * 5000 + "}",
        '{"text": "b", "text": "B", "label": 1}',
        '{"text": "c", "text": "c", "label": 2}',
        '{"text": "d", "label": 3, "label": 4}',
        '{"text": "e", "label": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"text": "f", "label": ' + "[" * 5000 + "}" * 5000 + "}",
    ]
    corpus = corpus_of(tmp_path / "a.jsonl", "\n".join(lines), label_field="label")
    assert [(r.text, r.label) for r in corpus.records()] == [("a", "7" * 5000), ("c", "2")]
    assert corpus.counts.skipped == {
        "a field that is needed occurs several times in an object": 2,
        "JSON nested too deeply (about a thousand levels are read)": 1,
        "not JSON": 1,
    }
    nested = '{"meta": {"a": {"t": "x"}, "a": {"t": "y"}}, "w": [{"text": "z", "text": "q"}]}'
    with pytest.raises(CorpusError, match="occurs several times"):
        list(corpus_of(tmp_path / "b.jsonl", nested, text_field="meta.a.t").records())


def test_small_files_of_large_values_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_MARKS_BYTES", 1000)
    long = '{"text": "a", "x": [' + "[]," * 500 + "[]]}"
    prose = json.dumps({"text": "a, [b] {c}, " * 500})
    corpus = corpus_of(tmp_path / "a.jsonl", f"{long}\n{prose}")
    assert [record.text for record in corpus.records()] == [json.loads(prose)["text"]]
    assert corpus.counts.n_skipped == 1
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 2000)
    corpus = corpus_of(tmp_path / "a.json", f'[{prose}, {{"text": "b"}}]')
    assert [record.text for record in corpus.records()] == ["b"]
    assert corpus.counts.skipped == {"longer than 64 MiB": 1}
