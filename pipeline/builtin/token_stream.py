"""Token streams for training: passages of many lengths, packed without gaps.

Pure integer work on NumPy arrays, and a function of (seed, epoch) alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from actlas.pipeline.builtin.tokenizer import BOS_ID, EOS_ID
from actlas.pipeline.builtin.training_text import pieces


class EncodedDocument(NamedTuple):
    """A document's pieces, each as it reads inside a passage and at a passage's start."""

    inside: list[NDArray[np.uint16]]
    leading: list[NDArray[np.uint16]]

    @property
    def n_tokens(self) -> int:
        """The tokens of the whole document, without special ones."""
        return sum(len(piece) for piece in self.inside)


def encode_documents(documents: list[str], tokenizer: Tokenizer) -> list[EncodedDocument]:
    """Encode every piece of every document, in batches of documents."""
    encoded = []
    for start in range(0, len(documents), 500):
        cut = [pieces(document) for document in documents[start : start + 500]]
        flat = [piece for document in cut for piece in document]
        stripped = [piece.lstrip() for piece in flat]
        inside = _encode(flat, tokenizer)
        leading = _encode(stripped, tokenizer)
        at = 0
        for document in cut:
            end = at + len(document)
            encoded.append(EncodedDocument(inside[at:end], leading[at:end]))
            at = end
    return encoded


def _encode(texts: list[str], tokenizer: Tokenizer) -> list[NDArray[np.uint16]]:
    batch = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.asarray(encoding.ids, dtype=np.uint16) for encoding in batch]


def _passages(
    document: EncodedDocument, rng: np.random.Generator
) -> list[list[NDArray[np.uint16]]]:
    """Cut one document into passages: 30 % short, 40 % middling, 30 % up to the context."""
    bos, eos = (np.array([token], dtype=np.uint16) for token in (BOS_ID, EOS_ID))
    passages: list[list[NDArray[np.uint16]]] = []
    at, n_pieces = 0, len(document.inside)
    while at < n_pieces:
        low, high = ((8, 64), (64, 256), (256, 500))[rng.choice(3, p=(0.3, 0.4, 0.3))]
        target = int(rng.integers(low, high))
        passage = [bos, document.leading[at]]
        n_tokens = len(document.leading[at])
        at += 1
        while at < n_pieces and n_tokens < target:
            passage.append(document.inside[at])
            n_tokens += len(document.inside[at])
            at += 1
        if at == n_pieces:
            passage.append(eos)
        passages.append(passage)
    return passages


def epoch_tokens(
    english: list[EncodedDocument],
    documentation: list[EncodedDocument],
    *,
    docs_share: float,
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """Lay out one epoch: all of ``english`` and the next part of ``documentation``.

    Parameters
    ----------
    docs_share
        The share of the tokens that documentation makes up, in [0, 1).
    seed, epoch
        Name the random generator; the same pair gives the same tokens.

    Returns
    -------
    Token ids, shape (tokens,), passages shuffled and joined without padding.
    """
    n_english = sum(document.n_tokens for document in english)
    quota = int(n_english * docs_share / (1.0 - docs_share))
    order = np.random.default_rng(seed).permutation(len(documentation))
    lengths = np.array([documentation[i].n_tokens for i in order], dtype=np.int64)
    ends = np.cumsum(lengths)
    first = int(np.searchsorted(ends, (epoch * quota) % int(ends[-1])))
    chosen: list[EncodedDocument] = []
    n_chosen = 0
    while n_chosen < quota:
        document = documentation[order[first % len(order)]]
        chosen.append(document)
        n_chosen += document.n_tokens
        first += 1
    rng = np.random.default_rng((seed, epoch))
    passages = [p for document in [*english, *chosen] for p in _passages(document, rng)]
    shuffled = (passages[i] for i in rng.permutation(len(passages)))
    return np.concatenate([part for passage in shuffled for part in passage]).astype(np.int64)
