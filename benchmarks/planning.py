"""Planning a corpus of a billion synthetic tokens, with everything but a real tokenizer."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import actlas
from actlas.pipeline.corpus.records import ReadCounts, Record
from actlas.pipeline.corpus.tokenization import Tokens
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.make import plan_settings
from actlas.pipeline.plan.settings import resolve_settings
from actlas.store.format.schema import TokenizerSpec
from benchmarks import harness

MEDIAN_TOKENS, SIGMA = 60, 1.0
"""Sigma of the log-normal lengths: the mean is 99 tokens, so that 10 million make a billion."""
CHARACTERS = 4
"""Characters of each token, as in English text."""
BLOCK = 1 << 16


def lengths(seed: int, n: int, median: int) -> Iterator[NDArray[np.int64]]:
    """Yield the lengths of ``n`` documents in blocks, determined by the seed."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, BLOCK):
        drawn = rng.lognormal(np.log(median), SIGMA, min(BLOCK, n - start))
        yield np.maximum(1, drawn).astype(np.int64)


class SyntheticCorpus:
    """A synthetic corpus of records with the lengths of the documents."""

    uri, finite, drawn, labelled, text_field = "made-up", True, False, False, "text"

    def __init__(self, n_documents: int, median: int) -> None:
        self.n_documents, self.median = n_documents, median
        self.counts = ReadCounts()

    def records(self) -> Iterator[Record]:
        self.counts = ReadCounts()
        letters = "abcdefghijklmnopqrstuvwxyz    " * (1 << 17)
        for block in lengths(0, self.n_documents, self.median):
            for n in block.tolist():
                self.counts.n_read += 1
                yield Record(letters[: n * CHARACTERS], None, self.uri, self.counts.n_read - 1)

    def describe(self) -> str:
        return f"{self.n_documents:,} made-up documents"

    def fraction(self) -> float | None:
        return None


class SyntheticTokenizer:
    """A synthetic tokenizer: every four characters are a token."""

    columns: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - as the real one has it

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        rng = np.random.default_rng(1)
        self.ids = rng.zipf(1.3, BLOCK).clip(3, spec.vocab_size - 1).astype(np.int32)
        self.starts = np.arange(1 << 18, dtype=np.int32) * CHARACTERS

    def tokenize(self, texts: Sequence[str]) -> Iterator[Tokens]:
        for i, text in enumerate(texts):
            n = len(text) // CHARACTERS
            at = (i * 7919) % (BLOCK // 2)
            ids = np.resize(self.ids[at : at + n], n) if n > BLOCK // 2 else self.ids[at : at + n]
            yield Tokens(ids, self.starts[:n], len(text))


def plan(path: str, n_documents: int, median: int, shard_rows: int) -> dict[str, float]:
    """Plan a store and return time and memory, for a new process.

    Memory is the peak in bytes above the size after a small plan.
    """
    options = PlanOptions(
        model="builtin:actlas-6m",
        corpus="builtin:python-docs",
        hookpoints=("resid_post.middle",),
        shard_rows=shard_rows,
    )
    real = resolve_settings(options)
    assert isinstance(real.tokenizer.spec, TokenizerSpec)
    made_up: Any = {"tokenizer": SyntheticTokenizer(real.tokenizer.spec)}
    settings = dataclasses.replace(real, **made_up)

    def planned(where: str, n: int) -> None:
        corpus = SyntheticCorpus(n, median)
        plan_settings(where, dataclasses.replace(settings, corpus=corpus), lambda _: None)

    first = path + ".first"
    planned(first, 1_000)
    shutil.rmtree(first)
    began = time.perf_counter()
    memory = harness.peak_of(lambda: planned(path, n_documents))
    seconds = time.perf_counter() - began
    found = actlas.open(path).plan
    assert found.n_documents == n_documents
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    return {
        "seconds": seconds,
        "n_documents": n_documents,
        "n_tokens": found.n_tokens,
        "memory_bytes": memory,
        "disk_bytes": sum(file.stat().st_size for file in files),
        "raw_bytes": 8 * found.n_tokens + found.n_text_bytes + 40 * n_documents,
    }


def raw_write(path: str, n_bytes: int) -> float:
    """Return the seconds of writing ``n_bytes`` random bytes to one file and syncing it."""
    block = np.random.default_rng(0).bytes(1 << 24)
    began = time.perf_counter()
    with Path(path).open("xb") as file:
        for start in range(0, n_bytes, len(block)):
            file.write(block[: n_bytes - start])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    Path(path).unlink()
    return seconds
