"""The geometry of a store: which token lies in which shard and row. Pure functions, no I/O.

``t`` is a token's index in the planned corpus, in document order. A shard is a range of tokens::

    documents   |---- 0 ----|-- 1 --|-------- 2 --------|- 3 -|
    t           0           12      20                  40    46
    shards      |------- 0 -------|------- 1 -------|-- 2 --|
                0                 16                32      46

and the rows inside a shard are ordered by a 64-bit hash of (seed, t).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.text import counted

if TYPE_CHECKING:
    from jaxtyping import Int64, Integer, UInt64

MIB = 1 << 20

SHARD_ROWS_MAX = 65_536

SHARD_ROWS_FLOOR = 1_024

SHARDS_WANTED = 16
"""A store has at least so many shards if its shards need not be smaller than the floor."""

SHARD_ROWS_SMALL = 16_384
"""Rows of a shard that are enough for full batches of any model."""

SHARD_WORK = 100_000_000_000
"""Rows of a shard times parameters of the model that are enough: some seconds of a CPU's work."""

POOLED_SHARD_ROWS_FLOOR = 8_192

SHARD_BYTES_MAX = 512 * MIB
"""The maximum size of one array's shard."""

SHARD_MEMORY_BYTES = 4096 * MIB
"""The maximum size of all arrays of one shard together."""

CHUNK_BYTES = MIB
"""The desired size of an inner chunk of activations."""

COLUMN_CHUNK_ROWS = 4_096
"""The rows of an inner chunk of a column."""

_GOLDEN = 0x9E3779B97F4A7C15

_MASK = (1 << 64) - 1

STREAM_ROWS = 1
"""The hash stream that orders rows inside a shard."""

STREAM_DOCUMENTS = 2
"""The hash stream that orders documents in a corpus."""


def mix64(value: UInt64[NDArray[np.uint64], " n"]) -> UInt64[NDArray[np.uint64], " n"]:
    """Return splitmix64's finalizer of every value, a bijection on 64-bit integers; same shape.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014),
    with Stafford's constants (variant 13).
    """
    z = value.astype(np.uint64, copy=True)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _scalar_mix64(value: int) -> int:
    return int(mix64(np.array([value & _MASK], dtype=np.uint64))[0])


def hash64(
    seed: int, stream: int, index: Integer[NDArray[np.integer], " n"]
) -> UInt64[NDArray[np.uint64], " n"]:
    """Return a 64-bit hash of (seed, stream, index) for every index; shape [n].

    ``mix64(mix64(mix64(seed + G) + stream * G) + (index + 1) * G)`` in arithmetic modulo 2**64,
    with G = 0x9E3779B97F4A7C15. For one seed and stream it is a bijection, so there are no ties.

    Parameters
    ----------
    seed : int
        The plan's seed.
    stream : int
        What the hash orders: 1 for rows in a shard, 2 for documents in a corpus.
    index : ndarray of int, shape [n]
        Values of ``t``, or record numbers of the corpus.

    Examples
    --------
    >>> [int(h) for h in hash64(0, 1, np.arange(2))]
    [2558736989570252433, 17913671590881668180]
    """
    key = _scalar_mix64(_scalar_mix64(seed + _GOLDEN) + stream * _GOLDEN)
    steps = index.astype(np.uint64) + np.uint64(1)
    return mix64(steps * np.uint64(_GOLDEN) + np.uint64(key))


def permutation(
    seed: int, stream: int, start: int, stop: int
) -> Int64[NDArray[np.int64], " {stop-start}"]:
    """Return the integers [start, stop) ordered by their hash; shape [stop - start]."""
    index = np.arange(start, stop, dtype=np.int64)
    return index[np.argsort(hash64(seed, stream, index), kind="stable")]


def shard_tokens(
    order: str, seed: int, start: int, stop: int
) -> Int64[NDArray[np.int64], " {stop-start}"]:
    """Return ``t`` for every row of a shard: ``result[i]`` is the token in row i.

    Parameters
    ----------
    order : {"shuffled", "corpus"}
        The plan's order.
    seed : int
        The plan's seed.
    start, stop : int
        The shard's tokens, half-open.

    Returns
    -------
    ndarray of int64, shape [stop - start]
    """
    if order == "corpus":
        return np.arange(start, stop, dtype=np.int64)
    return permutation(seed, STREAM_ROWS, start, stop)


def shard_rows_of(
    order: str, seed: int, start: int, stop: int
) -> Int64[NDArray[np.int64], " {stop-start}"]:
    """Return the row in its shard of each token ``start + i``: the inverse of `shard_tokens`.

    The result is an ndarray of int64 of shape [stop - start].
    """
    tokens = shard_tokens(order, seed, start, stop)
    rows = np.empty(stop - start, dtype=np.int64)
    rows[tokens - start] = np.arange(stop - start, dtype=np.int64)
    return rows


def n_shards(n_tokens: int, shard_rows: int) -> int:
    """Return the number of shards for ``n_tokens`` rows; the last one may be shorter."""
    return -(-n_tokens // shard_rows)


def shard_range(shard: int, shard_rows: int, n_tokens: int) -> tuple[int, int]:
    """Return the tokens [start, stop) of a shard."""
    start = shard * shard_rows
    return start, min(start + shard_rows, n_tokens)


def choose_shard_rows(n_tokens: int, row_bytes: Iterable[int], n_parameters: int = 0) -> int:
    """Return the number of rows per shard: a power of two from 1,024 to 65,536.

    It is halved until the widest array's shard has at most 512 MiB, all arrays of a shard together
    have at most 4 GiB, and there are at least 16 shards. To get 16 shards it is not halved below
    the rows of SHARD_WORK, which are at most 16,384: batches are sorted by length within a shard,
    so small shards mean small batches and padding, and each has its files.

    Parameters
    ----------
    n_tokens : int
        The number of rows of the store.
    row_bytes : iterable of int
        The size in bytes of one row of each array of activations.
    n_parameters : int
        The parameters of the model; 0 where they do not matter.
    """
    widths = list(row_bytes)
    rows = SHARD_ROWS_MAX
    enough = min(SHARD_ROWS_SMALL, SHARD_WORK // n_parameters) if n_parameters else 0
    while rows > SHARD_ROWS_FLOOR and (
        rows * max(widths) > SHARD_BYTES_MAX
        or rows * sum(widths) > SHARD_MEMORY_BYTES
        or (n_shards(n_tokens, rows) < SHARDS_WANTED and rows > min(enough, n_tokens))
    ):
        rows //= 2
    return rows


def choose_pooled_shard_rows(n_tokens: int) -> int:
    """Return the number of rows per shard of a store that has only pooled rows.

    It is 65,536, halved (at most to 8,192) until there are at least 16 shards. Memory sets no limit
    here, since no dense rows are kept.
    """
    rows = SHARD_ROWS_MAX
    while rows > POOLED_SHARD_ROWS_FLOOR and n_shards(n_tokens, rows) < SHARDS_WANTED:
        rows //= 2
    return rows


def pooled_shard_documents(
    n_documents: int, n_tokens: int, shard_rows: int, document_bytes: int
) -> int:
    """Return the number of documents per shard of pooled rows: a power of two, at least 1.

    A shard of pooled rows covers about as many tokens as a shard of dense rows, rounded up, but
    all its pooled arrays together have at most 512 MiB.

    Parameters
    ----------
    n_documents, n_tokens : int
        The number of documents and tokens of the store.
    shard_rows : int
        The number of rows per shard of dense activations.
    document_bytes : int
        The size in bytes of one document's rows in all pooled arrays.

    Examples
    --------
    >>> pooled_shard_documents(480, 5_000, 1_024, 4_096)
    128
    """
    documents = 1
    while (
        documents * n_tokens < shard_rows * n_documents
        and documents < n_documents
        and 2 * documents * document_bytes <= SHARD_BYTES_MAX
    ):
        documents *= 2
    return documents


def chunk_rows(row_bytes: int, shard_rows: int) -> int:
    """Return the number of rows per inner chunk: a power of two, nearest to 1 MiB.

    Parameters
    ----------
    row_bytes : int
        The size of one row in bytes.
    shard_rows : int
        The number of rows per shard, which the result never exceeds.
    """
    ideal = max(1.0, CHUNK_BYTES / row_bytes)
    return min(shard_rows, 1 << max(0, round(float(np.log2(ideal)))))


class Sequence(NamedTuple):
    """One model input: the tokens of one window of a document, and the rows to keep.

    Attributes
    ----------
    doc_idx : int
        The document.
    start, stop : int
        The tokens of the corpus that are fed to the model, between the tokenizer's prefix and
        suffix; half-open.
    keep_start, keep_stop : int
        The tokens whose rows are stored; half-open.
    """

    doc_idx: int
    start: int
    stop: int
    keep_start: int
    keep_stop: int


def content_length(max_length: int, n_special: int) -> int:
    """Return the number of corpus tokens in a full window, without its special tokens.

    Parameters
    ----------
    max_length : int
        The number of positions of a window.
    n_special : int
        The number of special tokens that the tokenizer adds to each window.
    """
    length = max_length - n_special
    if length < 1:
        raise ValueError(
            f"max_length {max_length} leaves no room beside {counted(n_special, 'special token')}: "
            f"give at least {n_special + 1}"
        )
    return length


def n_windows(lengths: Integer[NDArray[np.integer], " documents"], content: int) -> int:
    """Return the number of windows of documents with these lengths.

    Parameters
    ----------
    lengths : ndarray of int, shape [documents]
        The number of kept tokens of each document.
    content : int
        The number of corpus tokens in a full window.
    """
    return int((-(-lengths.astype(np.int64) // content)).sum())


def ceil_div(value: int, step: int) -> int:
    """Return ``value / step`` rounded up."""
    return -(-value // step)


def sequences(
    starts: Int64[NDArray[np.int64], " edges"],
    first_doc: int,
    shard_start: int,
    shard_stop: int,
    content: int,
    *,
    causal: bool,
) -> Iterator[Sequence]:
    """Yield the sequences that touch a shard, in document order.

    A sequence of a causal model stops at the shard's right border. One that crosses the left border
    is fed from its own beginning, and only the rows inside the shard are kept. A sequence of a
    model that is not causal is always fed completely.

    Parameters
    ----------
    starts : ndarray of int64, shape [n + 1]
        The first token of each of the n documents that touch the shard, and the end of the last.
    first_doc : int
        The ``doc_idx`` of the first of them.
    shard_start, shard_stop : int
        The shard's tokens, half-open.
    content : int
        The number of corpus tokens in a full window.
    causal : bool
        Whether a position attends only to earlier ones.
    """
    for i in range(len(starts) - 1):
        doc_start, doc_stop = int(starts[i]), int(starts[i + 1])
        if doc_stop <= shard_start or doc_start >= shard_stop:
            continue
        skipped = max(0, (shard_start - doc_start) // content)
        for start in range(doc_start + skipped * content, min(doc_stop, shard_stop), content):
            stop = min(start + content, doc_stop)
            keep_stop = min(stop, shard_stop)
            yield Sequence(
                doc_idx=first_doc + i,
                start=start,
                stop=keep_stop if causal else stop,
                keep_start=max(start, shard_start),
                keep_stop=keep_stop,
            )
