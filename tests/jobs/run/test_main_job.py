"""The main job on real input, from raw files to stored rows, against transformers alone.

The oracle below reads the raw files, tokenizes, cuts windows and runs the model by itself; it
shares nothing with actlas but the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import actlas
from actlas.store.store import Store
from actlas.store.verify.verify import verify

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.slow

CONTEXT = 512
ODD_TEXTS = [
    "",
    "a",
    " ",
    "Once <s> upon </s> a <unk> time <|endoftext|>",
    "Ωραία 老人 🦉\n\n\tстарик",
]


class Expected(NamedTuple):
    """One document by transformers alone."""

    token_id: list[int]
    hidden: list[np.ndarray]
    """After each block: transformers' hidden_states, and for the last block, which transformers
    gives after the final norm only, what goes into that norm."""


def raw_texts(shared: Path) -> list[str]:
    with (shared / "data/pile_sample/pile_100.jsonl").open() as file:
        pile = [json.loads(line)["text"] for line in file]
    wikitext = (shared / "data/wikitext2/valid.txt").read_text().splitlines()
    return [*ODD_TEXTS, *wikitext[:30], *[text[:4000] for text in pile[:8]]]


@pytest.fixture(scope="module")
def oracle(shared: Path) -> list[Expected]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models/stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [_document(tokenizer, model, text) for text in raw_texts(shared)]


def _document(tokenizer: Any, model: Any, text: str) -> Expected:
    kept = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    bos = tokenizer.bos_token_id
    parts: list[list[np.ndarray]] = []
    for start in range(0, len(kept), CONTEXT - 1):
        window = [bos, *kept[start : start + CONTEXT - 1]]
        before_norm: list[Any] = []
        handle = model.model.norm.register_forward_pre_hook(
            lambda _, args, into=before_norm: into.append(args[0])
        )
        with torch.inference_mode():
            states = model(torch.tensor([window]), output_hidden_states=True).hidden_states
        handle.remove()
        parts.append([state[0, 1:].numpy() for state in [*states[1:-1], *before_norm]])
    width = model.config.hidden_size
    hidden = [
        np.concatenate([part[layer] for part in parts]) if parts else np.empty((0, width), "f4")
        for layer in range(model.config.num_hidden_layers)
    ]
    return Expected(kept, hidden)


def by_document(store: Store) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Bring rows back into order by what the row columns say, with numpy alone."""
    doc_idx, pos_idx = store.rows.doc_idx[:], store.rows.pos_idx[:]
    token_id = store.rows.token_id[:]
    dense = {name: array[:] for name, array in store.activations.items()}
    for doc in range(len(store.documents)):
        rows = np.flatnonzero(doc_idx == doc)
        rows = rows[np.argsort(pos_idx[rows])]
        assert pos_idx[rows].tolist() == list(range(len(rows)))
        yield doc, {"token_id": token_id[rows], **{n: a[rows] for n, a in dense.items()}}


@pytest.mark.parametrize(
    ("order", "executor", "tokens_per_batch"),
    [("shuffled", "inline", 2000), ("corpus", "inline", 9000), ("shuffled", "ray", 4000)],
)
def test_every_row_of_every_block_is_transformers_own(
    shared: Path,
    oracle: list[Expected],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    order: str,
    executor: str,
    tokens_per_batch: int,
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_started")
    texts = raw_texts(shared)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    store = actlas.extract(
        tmp_path / "run.zarr",
        model=str(shared / "models/stories260K"),
        corpus=str(corpus),
        dtype="float32",
        shard_rows=1024,  # so that documents cross borders
        order=order,
        executor=executor,
        workers=2 if executor == "ray" else 1,
        tokens_per_batch=tokens_per_batch,
        max_length=CONTEXT,
    )
    assert len(store.documents) == len(texts)
    assert len(store.rows) == sum(len(document.token_id) for document in oracle)
    seen = set()
    for doc, found in by_document(store):
        record = store.documents.source(doc).record
        seen.add(record)
        truth = oracle[record]
        assert store.documents.text(doc) == texts[record]
        assert found["token_id"].tolist() == truth.token_id
        for layer, states in enumerate(truth.hidden):
            rows = found[f"resid_post.{layer}"]
            scale = max(1e-6, np.abs(states).max(initial=0))
            assert np.abs(rows - states).max(initial=0) <= 1e-4 * scale, (record, layer)
    assert seen == set(range(len(texts)))
    assert verify(store, full=True).ok


def test_the_published_stimuli_by_the_published_rule(shared: Path, tmp_path: Path) -> None:
    """Twelve words a row, one a column; lower case; 12 tokens, BOS among them; S and N."""
    import csv

    folder = shared / "data/langloc_stimuli"
    store = actlas.extract(
        tmp_path / "loc.zarr",
        model=str(shared / "models/stories260K"),
        corpus=str(folder / "langloc_*.csv"),
        text_field="stim2:stim13",
        label_field="stim14",
        lowercase=True,
        max_length=12,
        hookpoints=["resid_post.last"],
    )
    files = sorted(folder.glob("langloc_*.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    assert len(store.documents) == len(rows) == 480
    for doc, row in enumerate(rows):
        words = [row[f"stim{i}"] for i in range(2, 14)]
        assert store.documents.text(doc) == " ".join(words).lower()
        assert store.documents.label(doc) == row["stim14"]
    assert set(np.diff(store.documents.start)) == {11}, "twelve tokens, BOS has no row"
    assert store.plan.order == "corpus"
    assert list(store.activations) == ["resid_post.4"]
