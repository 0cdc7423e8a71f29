"""What a plan and a dry run print: three lines to decide by, warnings, the rest if asked for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from actlas.jobs.cli.app import cli
from actlas.pipeline.corpus import tokenization
from actlas.pipeline.forward.cost import speed
from actlas.pipeline.forward.cost.lengths import Fit
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.dry_run import estimate
from actlas.pipeline.plan.make import make_plan

MODEL = "builtin:actlas-6m"


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "actlas.pipeline.plan.estimate.forward_speed",
        lambda *_, **__: speed.Speed((Fit(0.001, 0.0), Fit(0.001, 0.0)), "made up"),
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60 documents, sorted by label: 30 of S, then 30 of N."""
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    rows = [{"text": f"sentence {i} of the corpus", "kind": "SN"[i // 30]} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(corpus: Path, **options: Any) -> PlanOptions:
    return PlanOptions(model=MODEL, corpus=str(corpus), label_field="kind", **options)


def test_three_lines_and_all_of_them(corpus: Path) -> None:
    found = estimate(asked(corpus))
    tokens, size, seconds = found.lines(verbose=False)
    assert re.match(r"corpus   [\d,]+ tokens in 60 documents, 60 windows .*; labels: N 30", tokens)
    assert re.match(r"store    [\d.]+ MB on disk; 1 shard of [\d,]+ rows, 6 hookpoints$", size)
    assert re.match(r"time     .* s for one process in \w+ \(made up\)$", seconds)
    whole = found.lines()
    assert {line.split()[0] for line in whole} >= {"labels", "pinned", "objects", "load", "memory"}
    assert "S3" not in "".join(whole), "the store is a folder"
    assert "of them reach the 3,500 that S3 takes" in "".join(found.lines(bucket=True))


@pytest.mark.parametrize("sample", ["uniform", "head"])
def test_labels_of_a_dry_run_are_those_of_the_plan(
    corpus: Path, tmp_path: Path, sample: str
) -> None:
    options = asked(corpus, sample=sample, max_tokens=100)
    guess = estimate(options)
    store = make_plan(tmp_path / "s.zarr", options)
    got = [store.document(i).label for i in range(len(store.documents))]
    assert guess.labels == {label: got.count(label) for label in sorted(set(got))}
    assert guess.plan.n_tokens == store.plan.n_tokens and guess.sampled_documents is None


def test_labels_that_the_plan_leaves_out_are_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tokens of a sorted file have one label; whether the other is known depends on reading."""
    monkeypatch.setattr(tokenization, "BATCH_TEXTS", 2)  # documents that are read at a time
    said: list[str] = []
    options = asked(corpus, sample="head", max_tokens=60)
    make_plan(tmp_path / "head.zarr", options, said.append, verbose=False)
    assert estimate(options).lines(verbose=False)[-1] == said[-1]
    assert said[-1].startswith("warning  all documents read (") and "the label S:" in said[-1]
    one = estimate(asked(corpus, sample="uniform", max_tokens=1)).lines(verbose=False)
    assert " in 1 document, 1 window of at most " in one[0]
    assert re.match(r"warning  no document of the plan has the label [SN], which the cor", one[-1])


def test_documents_without_a_label_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "one", "kind": "a"}, {"text": "two"}, {"text": "three", "kind": "b"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = estimate(asked(tmp_path / "a.jsonl"))
    assert found.lines(verbose=False)[-1] == "warning  1 document without a label"


def test_projected_labels_are_of_the_plan_too(corpus: Path) -> None:
    """A sample of sixty documents stands for six hundred."""
    found = estimate(asked(corpus))
    plan = found.plan.model_copy(update={"n_documents": 600})
    assert replace(found, plan=plan).labels == {"S": 300, "N": 300}


def test_a_dry_run_of_extract(corpus: Path, tmp_path: Path) -> None:
    def call(*words: str) -> list[str]:
        request = ["--model", MODEL, "--corpus", str(corpus), "--max-length", "64"]
        done = CliRunner().invoke(cli, [*words, str(tmp_path / "s.zarr"), *request])
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    dry = call("extract", "--dry-run")
    assert [line.split()[0] for line in dry[:-1]] == ["corpus", "store", "time"]
    assert dry[-1].startswith("dry run: nothing was written -> next: run the command without")
    assert call("plan", "--dry-run") == dry and list(tmp_path.iterdir()) == []
    assert len(call("extract", "--dry-run", "--verbose")) > 9
    [planned] = call("plan")
    said, last = call("extract", "--dry-run")
    assert said.startswith("planned already: 60 documents, ")
    assert said.endswith(" x 6 hookpoints in 1 shard; 1 shard to extract")
    assert planned.startswith("planned: 60 documents, ") and "actlas extract" in last
    assert not list((tmp_path / "s.zarr").glob("**/c/0/0")), "nothing was extracted"
