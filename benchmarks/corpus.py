"""The benchmarks' text: Python's documentation, in documents with the lengths of The Pile."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEDIAN_TOKENS = 500
SIGMA = 1.6
LONGEST_TOKENS = 8192


def document_lengths(n_tokens: int, seed: int = 0) -> list[int]:
    """Return lengths whose sum is ``n_tokens``: evenly spaced quantiles of a log-normal, shuffled.

    Quantiles instead of draws, so that a few documents already have the distribution of many.

    Examples
    --------
    >>> sorted(document_lengths(10_000))
    [64, 169, 322, 587, 1118, 2492, 5248]
    """
    n = 1
    while sum(_quantiles(n)) < n_tokens:
        n += 1
    lengths = _quantiles(n)
    lengths[-1] -= min(lengths[-1] - 1, sum(lengths) - n_tokens)
    np.random.default_rng(seed).shuffle(lengths)
    return lengths


def _quantiles(n: int) -> list[int]:
    normal = NormalDist(math.log(MEDIAN_TOKENS), SIGMA)
    values = (math.exp(normal.inv_cdf((i + 0.5) / n)) for i in range(n))
    return [max(1, min(LONGEST_TOKENS, round(value))) for value in values]


def python_text() -> str:
    """Return the language reference that comes with every Python, about 0.7 MB."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def documents(tokenizer: Any, n_tokens: int, seed: int = 0) -> list[str]:
    """Return texts of about ``n_tokens`` tokens in total, cut to the lengths of documents."""
    text = python_text()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    edges = [start for start, _ in encoded["offset_mapping"]] + [len(text)]
    texts, at = [], 0
    for length in document_lengths(n_tokens, seed):
        if at + length >= len(edges):
            at = 0
        texts.append(text[edges[at] : edges[at + length]])
        at += length
    return texts


def write_jsonl(path: Path, tokenizer: Any, n_tokens: int, seed: int = 0) -> Path:
    """Write documents as a JSON Lines corpus with the field ``text``."""
    lines = (json.dumps({"text": text}) for text in documents(tokenizer, n_tokens, seed))
    path.write_text("\n".join(lines) + "\n")
    return path


def token_windows(tokenizer: Any, n_windows: int, length: int) -> NDArray[np.int64]:
    """Return consecutive windows of the text's tokens; shape [window, position]."""
    ids = np.array(tokenizer(python_text(), add_special_tokens=False, verbose=False)["input_ids"])
    return np.resize(ids, (n_windows, length))
