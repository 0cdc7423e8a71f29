"""Stores made of made-up documents and activations."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.format.schema import Plan
from actlas.store.objects.local import LocalObjects
from actlas.store.store import Store, open_store
from actlas.store.write import create as writing
from actlas.store.write.commit import commit_shard
from actlas.store.write.document_columns import DocumentColumns, ImageColumns


@dataclass
class Columns:
    """Documents made in memory, by the protocol that a planner follows."""

    texts: list[str]
    tokens: list[list[tuple[int, int]]]  # (token id, first character)
    label: NDArray[np.int32] | None = None
    label_names: tuple[str, ...] = ()
    source_names: tuple[str, ...] = ("one.jsonl", "two.jsonl")
    token_column_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    codes: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        raw = [text.encode() for text in self.texts]
        flat = [pair for document in self.tokens for pair in document]
        self.n_documents = len(self.texts)
        self.n_tokens = len(flat)
        self.start = np.cumsum([0, *map(len, self.tokens)]).astype(np.int64)
        self.text_start = np.cumsum([0, *map(len, raw)]).astype(np.int64)
        self.n_text_bytes = int(self.text_start[-1])
        self.char_stop = np.array([len(t) for t in self.texts], dtype=np.int32)
        self.source = (np.arange(self.n_documents) % 2).astype(np.int32)
        self.record = np.arange(self.n_documents, dtype=np.int64) // 2
        self._ids = np.array([a for a, _ in flat], dtype=np.int32)
        self._chars = np.array([b for _, b in flat], dtype=np.int32)
        self._bytes = np.frombuffer(b"".join(raw), dtype=np.uint8)

    def token_ids(self, start: int, stop: int) -> NDArray[np.int32]:
        return self._ids[start:stop]

    def char_starts(self, start: int, stop: int) -> NDArray[np.int32]:
        return self._chars[start:stop]

    def special(self, start: int, stop: int) -> NDArray[np.bool_]:
        return self._ids[start:stop] == 0

    def token_column(self, name: str, start: int, stop: int) -> NDArray[np.int32]:
        return self.codes[name][start:stop]

    def text(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._bytes[start:stop]


def words_columns(seed: int, n_documents: int, mean_tokens: int, **more: Any) -> Columns:
    """Documents of made-up words, one token a word, some of them empty, some not Latin."""
    rng = np.random.default_rng(seed)
    texts, tokens = [], []
    for i in range(n_documents):
        n = 0 if i % 11 == 5 else int(rng.integers(1, 2 * mean_tokens))
        words = [("язык", "word", "<b>", "x" * int(rng.integers(1, 9)))[j % 4] for j in range(n)]
        edges, at = [], 0
        for word in words:
            edges.append((int(rng.integers(1, 30_000)), at))
            at += len(word) + 1
        texts.append(" ".join(words))
        tokens.append(edges)
    return Columns(texts, tokens, **more)


def plan_for(columns: Columns, **changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "format_version": 1,
        "actlas_version": "0.0.0",
        "model": {
            "id": "made-up",
            "revision": None,
            "architecture": "LlamaForCausalLM",
            "weights_sha256": "0" * 64,
            "config_sha256": "1" * 64,
            "d_model": 24,
            "n_layers": 2,
            "context_length": 512,
            "causal": True,
            "compute_dtype": "float32",
        },
        "tokenizer": {
            "id": "made-up",
            "sha256": "2" * 64,
            "vocab_size": 30_000,
            "prefix_ids": (1,),
            "suffix_ids": (),
        },
        "corpus": {
            "uri": "made-up",
            "fingerprint": "3" * 64,
            "text_field": "text",
            "label_field": None,
            "lowercase": False,
            "sample": "all",
            "n_records_read": columns.n_documents,
            "n_records_skipped": 0,
        },
        "windows": {"max_length": 64, "long": "window"},
        "hookpoints": (
            {"name": "resid_post.0", "module": "layers.0", "side": "output", "width": 24},
            {"name": "mlp.1", "module": "layers.1.mlp", "side": "output", "width": 40},
        ),
        "order": "shuffled",
        "seed": 7,
        "keep_special": False,
        "dtype": "bfloat16",
        "compression": "fast",
        "n_documents": columns.n_documents,
        "n_tokens": columns.n_tokens,
        "n_text_bytes": columns.n_text_bytes,
        "n_windows": max(1, columns.n_documents),
        "shard_rows": 256,
        "token_columns": tuple(columns.token_column_names),
    }
    return Plan.model_validate({**fields, **changes})


def create(
    path: str | os.PathLike[str],
    plan: Plan,
    columns: DocumentColumns,
    images: ImageColumns | None = None,
) -> Store:
    """Write a new store and open it."""
    writing.create(path, plan, columns, images)
    return open_store(path)


def truth(store: Store, hookpoint: str) -> NDArray[Any]:
    """The activations that :func:`fill` stores, by ``t``: row order is undone by the reader."""
    spec = store.arrays.activations[hookpoint]
    rng = np.random.default_rng(zlib.crc32(hookpoint.encode()))
    return rng.standard_normal(spec.shape).astype(spec.numpy_dtype)


def fill(store: Store, shards: range | None = None, **options: Any) -> dict[str, NDArray[Any]]:
    """Extract made-up activations; return them in row order."""
    by_t = {name: truth(store, name) for name in store.activations}
    rows = {name: np.empty_like(values) for name, values in by_t.items()}
    for shard in range(store.plan.n_shards):
        start, stop = store.shard_range(shard)
        t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
        for name, values in by_t.items():
            rows[name][start:stop] = values[t]
        if shards is None or shard in shards:
            part = {name: values[start:stop] for name, values in rows.items()}
            commit_shard(store, shard, part, **{"attempt": "test", **options})
    return rows


def race(path: str, value: int, start: Any, out: Any) -> None:
    start.wait()
    out.put((value, LocalObjects(path).create("a/b", [bytes([value]) * 100_000])))
