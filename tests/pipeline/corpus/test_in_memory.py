"""Documents that are given in Python: any iterable of texts or mappings, pinned by a digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import actlas
from actlas.jobs.cli.app import cli
from actlas.pipeline.corpus.corpus import open_corpus
from actlas.pipeline.corpus.in_memory import GivenDocuments, name_of
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import EXIT_DAMAGE, ConfigError, CorpusError, PlanMismatchError

ROWS = [{"text": f"text {i}", "kind": "SN"[i % 2], "more": i} for i in range(5)]
TEXTS = [row["text"] for row in ROWS]


def options_for(source: object, **fields: Any) -> PlanOptions:
    options = PlanOptions(model="-", corpus="memory:", **fields)
    return options.with_documents(GivenDocuments(source))


def read(source: object, **fields: Any) -> tuple[list[tuple[str, str | None]], str]:
    corpus = open_corpus(options_for(source, **fields))
    records = list(corpus.records())
    assert [record.record for record in records] == list(range(len(records)))
    return [(record.text, record.label) for record in records], corpus.uri


def once(rows: list[Any]) -> Iterator[Any]:
    yield from rows


SOURCES: dict[str, Any] = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": lambda: once(ROWS),
    "Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "formatted Dataset": lambda: datasets.Dataset.from_list(ROWS).with_format("numpy"),
    "IterableDataset": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "DataFrame": lambda: pd.DataFrame(ROWS),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_gives_the_same_documents_and_the_same_digest(name: str) -> None:
    found, uri = read(SOURCES[name](), label_field="kind")
    assert found == [(row["text"], row["kind"]) for row in ROWS]
    assert uri == read(ROWS, label_field="kind")[1], "other fields are not part of it"
    assert uri.startswith("memory:") and len(uri) == len("memory:") + 32


def test_plain_texts_and_missing_values() -> None:
    assert read(TEXTS)[0] == [(text, None) for text in TEXTS]
    assert read(np.array(TEXTS))[0] == [(text, None) for text in TEXTS]
    assert read(pd.Series(TEXTS))[0] == [(text, None) for text in TEXTS]
    plain = [("a", None), ("b", None)]
    frame = pd.DataFrame({"text": ["a", "b"], "kind": ["S", float("nan")]})
    assert read(frame, label_field="kind")[0] == [("a", "S"), ("b", None)]
    for missing in ("string", "Int64", "category", "datetime64[ns]"):
        kinds = pd.Series([None, None]).astype(missing)
        assert read(pd.DataFrame({"text": ["a", "b"], "kind": kinds}))[0] == plain
        with pytest.raises(CorpusError, match="none of 2 records has a label"):
            read(pd.DataFrame({"text": ["a", "b"], "kind": kinds}), label_field="kind")
    corpus = open_corpus(options_for(["a", {"words": "b"}, {"text": 3}, {"text": "c"}]))
    assert [record.text for record in corpus.records()] == ["a", "c"]
    assert sum(corpus.counts.skipped.values()) == 2


def test_the_name_is_that_of_what_a_plan_has_read() -> None:
    options = PlanOptions(model="-", corpus="-")
    _, uri = read(TEXTS)
    same = {"n_read": 5, "whole": True}
    assert name_of(GivenDocuments(TEXTS), options, **same) == uri
    assert name_of(GivenDocuments(once(TEXTS)), options, **same) == uri
    for other in (TEXTS[:-1], [*TEXTS, "more"], [*TEXTS[:-1], "text 5"], TEXTS[::-1]):
        assert name_of(GivenDocuments(other), options, **same) != uri
    _, head = read(TEXTS[:3])
    assert name_of(GivenDocuments(TEXTS), options, n_read=3, whole=False) == head
    assert read(["ab", "c"])[1] != read(["a", "bc"])[1]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"text": ["a"]}, "corpus: got a dict. Expected strings, or mappings"),
        (b"text", "corpus: got a bytes"),
        (7, "corpus: got a int"),
        ({"a", "b"}, "corpus: got a set, whose order .*sorted"),
        ([], "corpus: got an empty list"),
        ([("a", "S")], r"got a list with a tuple in it \(\('a', 'S'\)\)"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), r"dataset\['train'\]"),
        ([__file__], "whose strings are names of files.*a folder or a glob"),
    ],
)
def test_what_is_no_documents_is_refused(source: object, says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        GivenDocuments(source)


@pytest.mark.parametrize("kind", [Decimal, Path, lambda x: MappingProxyType({"is": x})])
def test_labels_of_any_type_are_part_of_the_digest(kind: Callable[[str], Any]) -> None:
    rows = [[{"text": "a", "kind": "S"}, {"text": "b", "kind": kind(x)}] for x in "112"]
    same, again, other = (read(each, label_field="kind")[1] for each in rows)
    assert same == again != other


def test_a_name_of_two_columns_is_refused() -> None:
    frame = pd.DataFrame([["a", "b", 1]], columns=["text", "text", "more"])
    with pytest.raises(CorpusError, match=r"2 columns have the name 'text' \(columns 1, 2\)"):
        read(frame)
    assert read(frame.set_axis(["text", "more", "more"], axis=1))[0] == [("a", None)]


def test_planned_extracted_and_resumed(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    asked: dict[str, Any] = {
        "model": Path("builtin:actlas-6m"),
        "hookpoints": "blocks.0.hook_resid_post",
        "max_length": 16,
    }
    documents = ["The quick brown fox.", "", "It jumps."]
    with pytest.raises(CorpusError, match="whose strings are names of files"):
        actlas.plan(store, corpus=[str(Path(__file__))], **asked)
    planned = actlas.plan(store, corpus=documents, **asked)
    assert planned.hookpoints == ("resid_post.0",)
    assert sorted(d.text for d in planned.documents) == sorted(documents)
    with pytest.raises(PlanMismatchError, match="planned with corpus = 'memory:"):
        actlas.extract(store, corpus=["Another text."])
    done = CliRunner().invoke(cli, ["extract", str(store), "--device", "cpu", "--threads", "1"])
    assert done.exit_code == 0, done.output
    again = actlas.extract(store, corpus=documents, device="cpu", threads=1, **asked)
    assert len(again) == again.plan.n_tokens and actlas.verify(store, full=True).ok
    (store / "documents/text/c/0").write_bytes(b"damaged")
    assert "documents/text/c/0" in str(actlas.verify(store, full=True))
    assert actlas.repair(store, device="cpu").exit_code == EXIT_DAMAGE
    mended = actlas.repair(store, corpus=documents, device="cpu")
    assert mended.exit_code == 0 and actlas.verify(store, full=True).ok
    name = again.plan.corpus.uri
    assert actlas.plan(store, corpus=name).plan == again.plan
    with pytest.raises(CorpusError, match=r"given in Python.*giving them again"):
        actlas.plan(tmp_path / "other.zarr", corpus=name, **asked)


def test_objects_of_other_libraries_are_named() -> None:
    class Model:
        def save_pretrained(self, folder: str) -> None: ...

    with pytest.raises(ConfigError, match=r"got a Model object.*model\.save_pretrained\(DIR\)"):
        actlas.extract("x.zarr", model=Model(), corpus=["a"])
