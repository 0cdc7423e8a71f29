"""A store of given rows with synthetic documents, for benchmarks of reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.schema import Plan
from actlas.store.store import Store, open_store
from actlas.store.write.commit import commit_shard
from actlas.store.write.create import create

HOOKPOINT = "resid_post.0"


class SyntheticDocuments:
    """Synthetic documents of given lengths, whose tokens are one letter each."""

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        self.n_documents = len(lengths)
        self.n_tokens = self.n_text_bytes = int(lengths.sum())
        self.start = self.text_start = np.concatenate([[0], np.cumsum(lengths)])
        self.char_stop = lengths.astype(np.int32)
        self.source = np.zeros(len(lengths), np.int32)
        self.source_names = ("made-up",)
        self.record = np.arange(len(lengths), dtype=np.int64)
        self.label: NDArray[np.int32] | None = None
        self.label_names: tuple[str, ...] = ()
        self.token_column_names: dict[str, tuple[str, ...]] = {}

    def token_ids(self, start: int, stop: int) -> NDArray[np.int32]:
        return np.full(stop - start, 5, np.int32)

    def char_starts(self, start: int, stop: int) -> NDArray[np.int32]:
        t = np.arange(start, stop)
        document = np.searchsorted(self.start, t, side="right") - 1
        return (t - self.start[document]).astype(np.int32)

    def special(self, start: int, stop: int) -> None:
        return None

    def token_column(self, name: str, start: int, stop: int) -> NDArray[np.int32]:
        raise KeyError(name)

    def text(self, start: int, stop: int) -> NDArray[np.uint8]:
        return np.full(stop - start, ord("a"), np.uint8)


def store_of(path: Path, rows: NDArray[Any], compression: str, shard_rows: int) -> Store:
    """Write a store of one hookpoint that holds ``rows``, bfloat16 [n, width]."""
    n_rows, width = rows.shape
    columns = SyntheticDocuments(np.diff(np.append(np.arange(0, n_rows, 512), n_rows)))
    plan = plan_of(columns, width, compression, shard_rows)
    create(path, plan, columns)
    store = open_store(path)
    for shard in range(plan.n_shards):
        start, stop = store.shard_range(shard)
        commit_shard(store, shard, {HOOKPOINT: np.array(rows[start:stop])}, attempt="benchmark")
    return store


def plan_of(columns: SyntheticDocuments, width: int, compression: str, shard_rows: int) -> Plan:
    return Plan.model_validate(
        {
            "format_version": 1,
            "actlas_version": "0",
            "model": {
                "id": "made-up",
                "revision": None,
                "architecture": "LlamaForCausalLM",
                "weights_sha256": "0" * 64,
                "config_sha256": "1" * 64,
                "d_model": width,
                "n_layers": 1,
                "context_length": 512,
                "causal": True,
                "compute_dtype": "float32",
            },
            "tokenizer": {
                "id": "made-up",
                "sha256": "2" * 64,
                "vocab_size": 100,
                "prefix_ids": (),
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
            "windows": {"max_length": 512, "long": "window"},
            "hookpoints": (
                {"name": HOOKPOINT, "module": "layers.0", "side": "output", "width": width},
            ),
            "order": "shuffled",
            "seed": 0,
            "keep_special": False,
            "dtype": "bfloat16",
            "compression": compression,
            "n_documents": columns.n_documents,
            "n_tokens": columns.n_tokens,
            "n_text_bytes": columns.n_text_bytes,
            "n_windows": columns.n_documents,
            "shard_rows": shard_rows,
        }
    )
