"""Columns of tokens from spans: held against transformers' own offsets, character by character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlas.pipeline.corpus.formats.base import Unreadable
from actlas.pipeline.corpus.spans import Span, spans_of, token_codes
from actlas.pipeline.corpus.tokenization import Tokens
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.make import make_plan
from actlas.store.errors import ConfigError, CorpusError
from actlas.store.store import Store


def plan(folder: Path, records: list[dict[str, Any]], **options: Any) -> Store:
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = {"model": "builtin:actlas-6m", "corpus": str(corpus), "order": "corpus", **options}
    return make_plan(folder / "s.zarr", PlanOptions(**asked))


TEXTS = [
    "Ada Lovelace met Charles Babbage in London.",
    "In Paris, Marie Curie worked.",
    "Nothing at all, but a 😀 face and Zoë.",
    "",
]
NAMES = {"Ada Lovelace": "PER", "Charles Babbage": "PER", "London": "LOC", "Paris": "LOC"}
NAMES |= {"Marie Curie": "PER", "😀": "FACE", "Zoë": "PER"}


def spans_in(text: str) -> list[dict[str, Any]]:
    places = ((text.index(name), name) for name in NAMES if name in text)
    return [{"start": i, "stop": i + len(n), "label": NAMES[n]} for i, n in places]


def records() -> list[dict[str, Any]]:
    return [{"text": t, "ann": {"entity": spans_in(t)}, "subject": [[0, 2]]} for t in TEXTS[:3]]


@pytest.mark.slow
def test_tokens_get_the_label_of_what_they_overlap(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from actlas.pipeline.model.files import locate_model

    folder = locate_model("builtin:actlas-6m", None, code=False).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    store = plan(tmp_path, records(), span_fields=("ann.entity", "subject"))
    assert store.plan.token_columns == ("entity", "subject")
    assert store.documents.column_names("entity") == ("FACE", "LOC", "PER")
    assert store.documents.column_names("subject") == ("subject",)
    for i, text in enumerate(TEXTS[:3]):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        expected = []
        for a, b in encoded["offset_mapping"]:
            inside = [s["label"] for s in spans_in(text) if s["start"] < b and a < s["stop"]]
            expected.append(inside[0] if inside else None)
        assert store.document(i).token_id.tolist() == encoded["input_ids"]
        assert list(store.document(i).columns["entity"]) == expected
    face = store.document(2).columns["entity"]
    assert face.count("FACE") > 1  # one character of several tokens: all of them


@pytest.mark.slow
@pytest.mark.parametrize("order", ["corpus", "shuffled"])
def test_rows_say_the_same_as_documents(tmp_path: Path, order: str) -> None:
    many = [records()[i % 3] | {"n": i} for i in range(60)]
    options = {"max_tokens": 300, "sample": "uniform"} if order == "shuffled" else {}
    store = plan(tmp_path, many, span_fields=("ann.entity",), order=order, **options)
    for doc_idx in range(len(store.documents)):
        document = store.document(doc_idx)
        alone = next(i for i, text in enumerate(TEXTS) if text == document.text)
        assert ("FACE" in document.columns["entity"]) == (alone == 2)
    names = (*store.documents.column_names("entity"), None)
    for shard in range(store.plan.n_shards):
        columns = store.shard_columns(shard)
        triples = zip(columns["doc_idx"], columns["pos_idx"], columns["entity"], strict=True)
        for doc, pos, code in triples:
            assert store.document(int(doc)).columns["entity"][pos] == names[code]


@pytest.mark.slow
def test_a_parquet_of_structs_gives_the_same(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "a").mkdir()
    first = plan(tmp_path / "a", records(), span_fields=("ann.entity",))
    pq.write_table(pa.Table.from_pylist(records()), tmp_path / "c.parquet")
    options = PlanOptions(
        model="builtin:actlas-6m",
        corpus=str(tmp_path / "c.parquet"),
        order="corpus",
        span_fields=("ann.entity",),
    )
    second = make_plan(tmp_path / "p.zarr", options)
    for i in range(3):
        assert first.document(i).columns == second.document(i).columns


def test_special_tokens_and_cut_documents(tmp_path: Path) -> None:
    store = plan(tmp_path, records(), span_fields=("ann.entity",), keep_special=True, max_length=6)
    windows = store.plan.windows
    assert windows.long == "window"
    for i in range(3):
        document = store.document(i)
        labels = np.array(document.columns["entity"], dtype=object)
        assert (labels[document.special] == None).all()  # noqa: E711 - of every element
        assert (labels[~document.special] != None).any()  # noqa: E711


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([[0, 99]], "beyond the text"),
        ([[2, 2]], "is empty"),
        ([[-1, 2]], "beyond the text"),
        ([[0.5, 2]], "no integers"),
        ([[True, 2]], "no integers"),
        ([{"begin": 0}], "no integers"),
        ("PER", "no list of spans"),
        ([{"start": 0, "stop": 1, "label": [1]}], "no string"),
    ],
)
def test_bad_spans_are_skipped_and_counted(tmp_path: Path, spans: Any, why: str) -> None:
    said: list[str] = []
    corpus = tmp_path / "c.jsonl"
    lines = [*records(), {"text": "Bad one", "ann": {"entity": spans}}]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = PlanOptions(
        model="builtin:actlas-6m", corpus=str(corpus), span_fields=("ann.entity",)
    )
    store = make_plan(tmp_path / "s.zarr", options, said.append)
    assert store.plan.corpus.n_records_skipped == 1 and store.plan.n_documents == 3
    assert any(why in line and "record 3" in line for line in said)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="none of 3 records has a field 'entities'"):
        plan(tmp_path, records(), span_fields=("entities",))
    for name in ("text", "a.label", "bad name"):
        with pytest.raises(ConfigError, match="cannot name a column"):
            plan(tmp_path, records(), span_fields=(name,))
    with pytest.raises(ConfigError, match="two columns would have it"):
        plan(tmp_path, records(), span_fields=("ann.entity", "entity"))
    with pytest.raises(ConfigError, match="span_fields: for records with fields"):
        plan(tmp_path, records(), corpus="builtin:language", span_fields=("entity",))


def test_lower_case_that_shifts_characters_is_skipped(tmp_path: Path) -> None:
    lines = [*records(), {"text": "İstanbul is large", "ann": {"entity": [[0, 8]]}}]
    store = plan(tmp_path, lines, span_fields=("ann.entity",), lowercase=True)
    assert store.plan.corpus.n_records_skipped == 1
    assert store.document(0).columns["entity"][0] == "PER"


def test_forms_of_spans() -> None:
    text = "  Ada Lovelace "
    assert spans_of([{"start": 0, "end": 15}], "who", text) == (Span(2, 14, "who"),)
    assert spans_of([(2, 5, "PER"), [0, 2]], "who", text) == (Span(2, 5, "PER"), Span(0, 2, "who"))
    assert spans_of(None, "who", text) == ()
    assert isinstance(spans_of([[0, 16]], "who", text), Unreadable)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_codes_are_those_of_every_character(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 3), max_size=12))
    n_chars = sum(lengths)
    starts = np.cumsum([0, *lengths])[: len(lengths)].astype(np.int32)
    edge = st.integers(0, max(n_chars, 1))
    parts = data.draw(st.lists(st.tuples(edge, edge, st.integers(0, 4)), max_size=5))
    parts = [(a, b, c) for a, b, c in parts if a < b]
    tokens = Tokens(np.zeros(len(lengths), np.int32), starts, n_chars)
    found = token_codes(tokens, np.array(parts, np.int32).reshape(-1, 3))
    before = -1
    for i, length in enumerate(lengths):
        inside = set(range(starts[i], starts[i] + length))
        codes = [c for a, b, c in parts if inside & set(range(a, b))]
        expected = (codes[0] if codes else -1) if length else before
        assert found[i] == expected
        before = expected
