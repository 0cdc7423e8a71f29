"""Pure geometry: which token lies where. Integers in, integers out; nothing is read or written.

``t`` is a token's place in the planned corpus, in document order. A shard is a range of tokens::

    documents   |---- 0 ----|-- 1 --|-------- 2 --------|- 3 -|
    t           0           12      20                  40    46
    shards      |------- 0 -------|------- 1 -------|-- 2 --|
                0                 16                32      46

and inside a shard the rows lie in the order of a 64-bit hash of (seed, t).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20

SHARD_ROWS_MAX = 65_536

SHARD_ROWS_FLOOR = 1_024

SHARDS_WANTED = 16

POOLED_SHARD_ROWS_FLOOR = 8_192

SHARD_BYTES_MAX = 512 * MIB

SHARD_MEMORY_BYTES = 4096 * MIB

CHUNK_BYTES = MIB

COLUMN_CHUNK_ROWS = 4_096

_GOLDEN = 0x9E3779B97F4A7C15

_MASK = (1 << 64) - 1

STREAM_ROWS = 1

STREAM_DOCUMENTS = 2


def mix64(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's finalizer of every value: a bijection on 64-bit integers.

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


def hash64(seed: int, stream: int, index: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of (seed, stream, index) for every index.

    ``mix64(mix64(mix64(seed + G) + stream * G) + (index + 1) * G)`` in arithmetic modulo 2**64,
    with G = 0x9E3779B97F4A7C15. For one seed and stream it is a bijection, so there are no ties.

    Parameters
    ----------
    seed : int
        The plan's seed.
    stream : int
        What is being ordered: 1 for rows in a shard, 2 for documents in a corpus.
    index : ndarray of int, shape [n]
        What is hashed: ``t``, or a record's place in the corpus.

    Examples
    --------
    >>> [int(h) for h in hash64(0, 1, np.arange(2))]
    [2558736989570252433, 17913671590881668180]
    """
    key = _scalar_mix64(_scalar_mix64(seed + _GOLDEN) + stream * _GOLDEN)
    steps = index.astype(np.uint64) + np.uint64(1)
    return mix64(steps * np.uint64(_GOLDEN) + np.uint64(key))


def permutation(seed: int, stream: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return the indexes [start, stop) in the order of their hash; shape [stop - start]."""
    index = np.arange(start, stop, dtype=np.int64)
    return index[np.argsort(hash64(seed, stream, index), kind="stable")]


def shard_tokens(order: str, seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return ``t`` for every row of a shard: ``result[i]`` is the token that lies in row i.

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


def shard_rows_of(order: str, seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return the inverse of :func:`shard_tokens`: the row inside the shard of token start + i."""
    tokens = shard_tokens(order, seed, start, stop)
    rows = np.empty(stop - start, dtype=np.int64)
    rows[tokens - start] = np.arange(stop - start, dtype=np.int64)
    return rows


def n_shards(n_tokens: int, shard_rows: int) -> int:
    """Return how many shards hold ``n_tokens`` rows; the last may be short."""
    return -(-n_tokens // shard_rows)


def shard_range(shard: int, shard_rows: int, n_tokens: int) -> tuple[int, int]:
    """Return the tokens [start, stop) of a shard."""
    start = shard * shard_rows
    return start, min(start + shard_rows, n_tokens)


def choose_shard_rows(n_tokens: int, row_bytes: Iterable[int]) -> int:
    """Return the rows of a shard: a power of two from 1,024 to 65,536.

    Halved until the widest array's shard is at most 512 MiB, until all arrays of a shard together
    fit 4 GiB, and until there are at least 16 shards.

    Parameters
    ----------
    n_tokens : int
        Rows of the whole store.
    row_bytes : iterable of int
        Bytes of one row, for each array of activations.
    """
    widths = list(row_bytes)
    rows = SHARD_ROWS_MAX
    while rows > SHARD_ROWS_FLOOR and (
        rows * max(widths) > SHARD_BYTES_MAX
        or rows * sum(widths) > SHARD_MEMORY_BYTES
        or n_shards(n_tokens, rows) < SHARDS_WANTED
    ):
        rows //= 2
    return rows


def choose_pooled_shard_rows(n_tokens: int) -> int:
    """Return ``shard_rows`` of a store without dense rows: 65,536, halved as far as 8,192.

    Until there are at least 16 shards; no memory is held for rows.
    """
    rows = SHARD_ROWS_MAX
    while rows > POOLED_SHARD_ROWS_FLOOR and n_shards(n_tokens, rows) < SHARDS_WANTED:
        rows //= 2
    return rows


def pooled_shard_documents(
    n_documents: int, n_tokens: int, shard_rows: int, document_bytes: int
) -> int:
    """Return the documents of a shard of pooled rows: a power of two, at least 1.

    About as many tokens as a shard of rows has, rounded up; but all pooled arrays of a shard
    together have at most 512 MiB.

    Parameters
    ----------
    n_documents, n_tokens : int
        Of the whole store.
    shard_rows : int
        Rows of a shard of activations.
    document_bytes : int
        Bytes of one document's rows in all pooled arrays.

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
    """Return the rows of an inner chunk: the power of two nearest 1 MiB, within the shard."""
    ideal = max(1.0, CHUNK_BYTES / row_bytes)
    return min(shard_rows, 1 << max(0, round(float(np.log2(ideal)))))


class Sequence(NamedTuple):
    """What the model sees in one forward pass, and which of its rows are kept.

    ``[start, stop)`` are kept tokens fed to the model (between the tokenizer's own prefix and
    suffix); the rows of ``[keep_start, keep_stop)`` are stored.
    """

    doc_idx: int
    start: int
    stop: int
    keep_start: int
    keep_stop: int


def content_length(max_length: int, n_special: int) -> int:
    """Return the kept tokens of a full window: its length less the special tokens around it."""
    length = max_length - n_special
    if length < 1:
        raise ValueError(
            f"max_length {max_length} leaves no room beside {n_special} special tokens: "
            f"give at least {n_special + 1}"
        )
    return length


def n_windows(lengths: NDArray[np.integer], content: int) -> int:
    """Return how many windows documents of these lengths (in kept tokens) make."""
    return int((-(-lengths.astype(np.int64) // content)).sum())


def ceil_div(value: int, step: int) -> int:
    """Return ``value / step`` rounded up."""
    return -(-value // step)


def sequences(
    starts: NDArray[np.int64],
    first_doc: int,
    shard_start: int,
    shard_stop: int,
    content: int,
    *,
    causal: bool,
) -> Iterator[Sequence]:
    """Yield the sequences that touch a shard, in document order.

    A causal sequence that crosses the shard's right border stops there; one that crosses the left
    border is fed from its own beginning, and only the rows inside the shard are kept. One that is
    not causal is always fed whole.

    Parameters
    ----------
    starts : ndarray of int64, shape [n + 1]
        ``documents/start`` for documents first_doc .. first_doc + n: all that touch the shard.
    first_doc : int
        The ``doc_idx`` of the first.
    shard_start, shard_stop : int
        The shard's tokens.
    content : int
        Kept tokens of a full window.
    causal : bool
        Whether a position sees only earlier ones.
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
