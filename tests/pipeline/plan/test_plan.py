"""Whole plans. The oracle is transformers' own tokenizer over records the test reads itself."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from actlas.jobs.cli.app import cli
from actlas.jobs.run.describe import info_of
from actlas.pipeline.forward.cost import speed
from actlas.pipeline.model.describe import load_tokenizer
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.dry_run import estimate
from actlas.pipeline.plan.make import make_plan
from actlas.pipeline.plan.spool import SpoolFile
from actlas.store.errors import (
    ConfigError,
    CorpusError,
    HookpointError,
    ModelError,
    RunFaultError,
    StoreExistsError,
)
from actlas.store.format import layout
from actlas.store.store import Store, open_store
from actlas.store.verify.repair_plan import repair_metadata
from actlas.store.verify.verify import verify

BOS = 1


@pytest.fixture(scope="session")
def stories(shared: Path) -> str:
    return str(shared / "models" / "stories260K")


@pytest.fixture(scope="session")
def tokenizer(stories: str) -> Any:
    return load_tokenizer(stories)


@pytest.fixture(autouse=True)
def _no_timing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time a forward pass only where a test is about it."""
    if "speed" not in request.node.name:
        monkeypatch.setattr(
            "actlas.pipeline.plan.estimate.forward_speed",
            lambda *_, **__: speed.Speed(None, "not here"),
        )


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    ids: list[int] = encoded["input_ids"]
    return ids


def write(path: Path, texts: list[str], **more: list[Any]) -> list[str]:
    rows = [{"text": t, **{key: v[i] for key, v in more.items()}} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts


def made_up(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["cat", "the", "</s>", "<s>", "язык", "🎉", "\n", "sat", "你好", "x" * 30]
    texts = [" ".join(rng.choice(words, int(rng.integers(1, 60)))) for _ in range(n)]
    for i in range(3, n, 7):
        texts[i] = ""
    texts[1] = "a"
    return texts


def plan(tmp_path: Path, stories: str, **options: Any) -> Store:
    options = {"corpus": str(tmp_path / "a.jsonl"), **options}
    return make_plan(tmp_path / "s.zarr", PlanOptions(model=stories, **options))


def check_documents(store: Store, texts: list[str], tokenizer: Any) -> list[int]:
    """Every document of the store is the record that it says it is; return the records."""
    records = []
    for i in range(len(store.documents)):
        document = store.document(i)
        text = texts[document.source.record]
        assert document.text == text
        assert document.token_id.tolist() == tokens_of(tokenizer, text)
        assert "".join(document.tokens) == (text if len(document) else "")
        records.append(document.source.record)
    return records


def test_a_plan_holds_every_document_in_its_seeded_order(
    tmp_path: Path, stories: str, tokenizer: Any
) -> None:
    texts = write(tmp_path / "a.jsonl", made_up(100))
    store = plan(tmp_path, stories, seed=5, max_length=32)
    records = check_documents(store, texts, tokenizer)
    assert sorted(records) == list(range(100)) and records != sorted(records)
    got = store.plan
    assert (got.order, got.windows.long, got.corpus.sample) == ("shuffled", "window", "all")
    assert got.tokenizer.prefix_ids == (BOS,) and got.tokenizer.suffix_ids == ()
    lengths = [len(tokens_of(tokenizer, text)) for text in texts]
    assert got.n_tokens == sum(lengths) and got.n_documents == 100
    assert got.n_windows == sum(-(-n // 31) for n in lengths)
    assert got.n_text_bytes == sum(len(text.encode()) for text in texts)
    assert got.request["seed"] == 5 and got.request["corpus"] == str(tmp_path / "a.jsonl")
    assert store.documents.source_names == ("a.jsonl",) and store.documents.label_codes is None
    raw = [texts[record].encode() for record in records]
    header = struct.pack("<q", 100) + b"".join(struct.pack("<q", len(t)) for t in raw)
    assert got.corpus.fingerprint == hashlib.sha256(header + b"".join(raw)).hexdigest()


def test_what_a_folder_leaves_out_is_recorded(tmp_path: Path, stories: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    texts = write(folder / "a.jsonl", ["one two", "three"])
    for name in ("b\x1b[2J.pdf", *(f"{i}.zip" for i in range(9)), "n" * 250 + ".bin", ".hidden"):
        (folder / name).write_text("x")
    store = plan(tmp_path, stories, corpus=str(folder))
    (folder / "later.pdf").write_text("x")
    kept = info_of(open_store(store.path)).corpus_left_out
    assert kept == ("1 hidden: .hidden", kept[1]) and kept[1].startswith("11 of a kind that is not")
    assert "0.zip, 1.zip" in kept[1] and kept[1].endswith("and 7 more")
    shown = CliRunner().invoke(cli, ["info", store.path]).stdout
    assert kept[1] in shown and "left out" in shown and "\x1b" not in shown
    assert verify(store, full=True).ok and len(store.documents) == len(texts)
    (Path(store.path) / "ledger/model_files.json").unlink()  # it has a copy
    assert repair_metadata(store, ["ledger/model_files.json"]) and verify(store, full=True).ok
    assert info_of(store).corpus_left_out == kept


@pytest.mark.slow
def test_the_same_options_give_the_same_plan_and_another_seed_another(
    tmp_path: Path, stories: str
) -> None:
    write(tmp_path / "a.jsonl", made_up(60))
    prints = {}
    for seed in (0, 0, 1):
        options = PlanOptions(model=stories, corpus=str(tmp_path / "a.jsonl"), seed=seed)
        store = make_plan(tmp_path / f"{seed}{len(prints)}.zarr", options)
        print_ = store.plan.corpus.fingerprint
        assert prints.setdefault(seed, print_) == print_
    assert prints[0] != prints[1]


def test_without_crowded_borders_the_order_is_that_of_the_hash(
    tmp_path: Path, stories: str, tokenizer: Any
) -> None:
    texts = write(tmp_path / "a.jsonl", made_up(30))
    store = plan(tmp_path, stories, seed=3, shard_rows=1 << 20)
    expected = layout.permutation(3, layout.STREAM_DOCUMENTS, 0, 30).tolist()
    found = check_documents(store, texts, tokenizer)
    assert [r for r in found if texts[r]] == [r for r in expected if texts[r]]


@pytest.mark.parametrize("order", ["shuffled", "corpus"])
@pytest.mark.parametrize("sample", ["uniform", "head"])
def test_max_tokens(tmp_path: Path, stories: str, tokenizer: Any, order: Any, sample: Any) -> None:
    texts = write(tmp_path / "a.jsonl", made_up(200))
    store = plan(tmp_path, stories, max_tokens=900, order=order, sample=sample, seed=2)
    records = check_documents(store, texts, tokenizer)
    assert store.plan.corpus.sample == sample
    lengths = {r: len(tokens_of(tokenizer, texts[r])) for r in range(200)}
    # It ends after the whole document that reaches the limit, in the order of taking.
    taking = list(range(200))
    if sample == "uniform":
        taking = layout.permutation(2, layout.STREAM_DOCUMENTS, 0, 200).tolist()
    total, expected = 0, []
    for record in taking:
        if total >= 900:
            break
        expected.append(record)
        total += lengths[record]
    assert sorted(records) == sorted(expected) and store.plan.n_tokens == total
    assert (records == sorted(records)) == (order == "corpus")


def test_a_limit_beyond_the_corpus_takes_all(tmp_path: Path, stories: str, tokenizer: Any) -> None:
    texts = write(tmp_path / "a.jsonl", [text or "not empty" for text in made_up(40)])
    n_tokens = sum(len(tokens_of(tokenizer, text)) for text in texts)
    prints = set()
    for i, limit in enumerate([None, 10**9, n_tokens]):
        options = PlanOptions(model=stories, corpus=str(tmp_path / "a.jsonl"), max_tokens=limit)
        got = make_plan(tmp_path / f"{i}.zarr", options).plan
        assert got.corpus.sample == "all" and got.n_tokens == n_tokens
        prints.add(got.corpus.fingerprint)
    assert len(prints) == 1


def test_labels_bring_corpus_order_and_truncation(
    tmp_path: Path, stories: str, tokenizer: Any
) -> None:
    kinds = [None, "b", "a", 7]
    texts = write(tmp_path / "a.jsonl", made_up(20), kind=[kinds[i % 4] for i in range(20)])
    store = plan(tmp_path, stories, label_field="kind", max_length=12)
    assert (store.plan.order, store.plan.windows.long) == ("corpus", "truncate")
    for i, text in enumerate(texts):
        document = store.document(i)
        ids = tokens_of(tokenizer, text)[:11]  # And the beginning of the sequence: 12.
        assert document.source.record == i and document.text == text
        assert document.token_id.tolist() == ids
        assert document.label == (None if i % 4 == 0 else str(kinds[i % 4]))
        assert text.startswith("".join(document.tokens))
    assert store.documents.label_names == ("7", "a", "b")
    assert store.plan.n_windows == sum(bool(text) for text in texts)


def test_special_tokens_get_rows_where_asked(tmp_path: Path, stories: str, tokenizer: Any) -> None:
    texts = write(tmp_path / "a.jsonl", made_up(30))
    store = plan(tmp_path, stories, keep_special=True, max_length=16, order="corpus")
    for i, text in enumerate(texts):
        ids = tokens_of(tokenizer, text)
        expected = [t for a in range(0, len(ids), 15) for t in [BOS, *ids[a : a + 15]]]
        document = store.document(i)
        assert document.token_id.tolist() == expected
        assert document.special.tolist() == [k % 16 == 0 for k in range(len(expected))]
        assert "".join(document.tokens) == text
    assert store.plan.n_windows == sum(-(-len(tokens_of(tokenizer, t)) // 15) for t in texts)


@pytest.mark.slow
def test_real_stimuli(tmp_path: Path, stories: str, shared: Path, tokenizer: Any) -> None:
    options = {"text_field": "stim2:stim13", "label_field": "stim14", "lowercase": True}
    corpus = str(shared / "data" / "langloc_stimuli")
    store = plan(tmp_path, stories, corpus=corpus, max_length=12, **options)
    assert len(store.documents) == 480
    labels = [store.document(i).label for i in range(480)]
    assert labels.count("S") == labels.count("N") == 240
    document = store.document(0)
    assert document.text == "just the barest suggestion of a heel is found on teenage pumps"
    assert document.token_id.tolist() == tokens_of(tokenizer, document.text)[:11]


@pytest.mark.slow
def test_real_pile_in_long_windows(
    tmp_path: Path, stories: str, shared: Path, tokenizer: Any
) -> None:
    source = shared / "data" / "pile_sample" / "pile_100.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    said: list[str] = []
    options = PlanOptions(model=stories, corpus=str(source))
    store = make_plan(tmp_path / "s.zarr", options, said.append)
    records = check_documents(store, texts, tokenizer)
    assert sorted(records) == list(range(len(texts)))
    assert store.plan.windows.max_length == 512  # The model's context.
    everything = "\n".join(said)
    assert f"{store.plan.n_tokens:,} tokens in {len(texts):,} documents" in everything
    assert "% of the tokens computed twice" in everything


def test_other_tokenizers(tmp_path: Path, stories: str, shared: Path) -> None:
    (tmp_path / "tok").mkdir()
    neox = shared / "data" / "neox20b_tokenizer" / "20B_tokenizer.json"
    (tmp_path / "tok" / "tokenizer.json").write_bytes(neox.read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tok" / "tokenizer_config.json").write_text(json.dumps(config))
    write(tmp_path / "a.jsonl", ["Supercalifragilistic"])
    with pytest.raises(ModelError, match=r"produces token [\d,]+, and .* for 512 tokens"):
        plan(tmp_path, stories, tokenizer=str(tmp_path / "tok"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_length": 513}, (ConfigError, ModelError), r"513.*512"),
        ({"max_length": 1}, ConfigError, r"leaves no room"),
        ({"shard_rows": 1000}, ConfigError, r"power of two, such as 512 or 1024"),
        ({"hookpoints": ("resid_post.9",)}, HookpointError, r"resid_post"),
        ({"text_field": "story"}, CorpusError, r"Its fields are text"),
        ({"corpus": "nowhere"}, CorpusError, r"no such path"),
        ({"model": "./nowhere"}, ModelError, r"nowhere"),
    ],
)
def test_bad_options_leave_nothing_behind(
    tmp_path: Path, stories: str, options: dict[str, Any], error: Any, message: str
) -> None:
    write(tmp_path / "a.jsonl", ["one", "two"])
    asked = {"model": stories, "corpus": str(tmp_path / "a.jsonl"), **options}
    with pytest.raises(error, match=message):
        make_plan(tmp_path / "s.zarr", PlanOptions(**asked))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_only_empty_texts(tmp_path: Path, stories: str) -> None:
    write(tmp_path / "a.jsonl", ["", ""])
    with pytest.raises(CorpusError, match=r"2 documents, and not one token"):
        plan(tmp_path, stories)
    with pytest.raises(CorpusError, match=r"not one token"):
        estimate(PlanOptions(model=stories, corpus=str(tmp_path / "a.jsonl")))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_what_is_there_already_is_left_alone(tmp_path: Path, stories: str) -> None:
    write(tmp_path / "a.jsonl", ["one", "two"])
    plan(tmp_path, stories)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(StoreExistsError):
        plan(tmp_path, stories)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_a_full_disk(tmp_path: Path, stories: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", ["one", "two"])

    def full(self: SpoolFile, items: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SpoolFile, "append", full)
    with pytest.raises(RunFaultError, match=r"No space left.*free some space") as caught:
        plan(tmp_path, stories)
    assert caught.value.exit_code == 75
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_skipped_records_are_counted_and_said(tmp_path: Path, stories: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one cat"}\n\xff\n{}\n{"text": "two"}\n')
    said: list[str] = []
    options = PlanOptions(model=stories, corpus=str(tmp_path / "a.jsonl"))
    store = make_plan(tmp_path / "s.zarr", options, said.append)
    assert (store.plan.corpus.n_records_read, store.plan.corpus.n_records_skipped) == (4, 2)
    assert any("1 record skipped: not UTF-8 (the first: a.jsonl record 1)" in s for s in said)


def test_a_dry_run_of_a_small_corpus_is_exact(tmp_path: Path, stories: str) -> None:
    write(tmp_path / "a.jsonl", made_up(50), kind=["u", "v"] * 25)
    options = PlanOptions(model=stories, corpus=str(tmp_path / "a.jsonl"), label_field="kind")
    guess = estimate(options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    got = make_plan(tmp_path / "s.zarr", options).plan
    assert guess.sampled_documents is None and "about" not in guess.lines()[0]
    found = guess.plan
    assert (found.n_tokens, found.n_documents, found.n_windows, found.n_shards) == (
        got.n_tokens,
        got.n_documents,
        got.n_windows,
        got.n_shards,
    )
    assert guess.labels == {"u": 25, "v": 25}
    raw = {part.name: part.raw_bytes for part in guess.stored.parts if "resid" in part.name}
    assert raw == {f"activations/resid_post.{i}": got.n_tokens * 128 for i in range(5)}
    assert guess.stored.raw_bytes_of("rows") and guess.stored.raw_bytes_of("documents")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "gz"])
def test_a_dry_run_projects_from_a_sample(tmp_path: Path, stories: str, kind: str) -> None:
    import gzip

    rng = np.random.default_rng(0)
    words = ["cat", "the", "sat", "on", "mat", "little", "girl", "ran"]
    texts = [" ".join(rng.choice(words, int(rng.integers(50, 900)))) for _ in range(2500)]
    path = tmp_path / "a.jsonl"
    write(path, texts)
    if kind == "gz":
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    sampled = estimate(PlanOptions(model=stories, corpus=str(path)))
    assert sampled.sampled_documents is not None and sampled.sampled_documents < 2500
    assert abs(sampled.plan.n_documents - 2500) < 500
    assert "about" in str(sampled) and "projected" in str(sampled)
    limited = estimate(PlanOptions(model=stories, corpus=str(path), max_tokens=100_000))
    assert 100_000 <= limited.plan.n_tokens < 101_000  # whole documents


def test_an_estimate_reads_well(tmp_path: Path, stories: str) -> None:
    write(tmp_path / "a.jsonl", made_up(50))
    lines = estimate(PlanOptions(model=stories, corpus=str(tmp_path / "a.jsonl"))).lines()
    assert [line.split()[0] for line in lines] == [
        *("corpus", "warning", "pinned", "ignored", "rows", "store", "ratio"),
        *("objects", "shards", "compute", "time", "memory"),
    ]
    assert re.search(r"resid_post\.0 to resid_post\.4, 5 hookpoints each", lines[4])
    assert all(len(line) < 200 for line in lines)


@pytest.mark.slow
def test_speed_is_measured_or_reckoned(
    tmp_path: Path, stories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jsonl", ["one", "two"])
    options = PlanOptions(model=stories, corpus=str(tmp_path / "a.jsonl"))
    guess = estimate(options)
    assert guess.seconds is not None and 0 < guess.seconds[0] <= guess.seconds[1]
    assert "(the model timed here on cpu with empty weights" in str(guess)
    monkeypatch.setattr(speed, "TIMED_PARAMETERS", 1000)
    assert "(1 of 5 blocks timed here on cpu with empty weights" in str(estimate(options))

    def broken(*_: object) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(speed, "_passes", broken)
    assert "time     unknown: a forward pass" in str(estimate(options))


MEASURE = """
import resource, sys
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.make import make_plan
options = PlanOptions(model=sys.argv[1], corpus=sys.argv[2])
make_plan(sys.argv[4], options.model_copy(update={"corpus": sys.argv[3]}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
make_plan(sys.argv[5], options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, stories: str) -> None:
    import subprocess

    line = json.dumps({"text": "Once upon a time there was a little girl. " * 100}) + "\n"
    (tmp_path / "big.jsonl").write_text(line * 2_000)
    (tmp_path / "small.jsonl").write_text(line * 300)  # More than a batch.
    paths = [str(tmp_path / name) for name in ("big.jsonl", "small.jsonl", "0.zarr", "1.zarr")]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, stories, *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) < 64_000  # KiB
