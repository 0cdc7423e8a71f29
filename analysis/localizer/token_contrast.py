"""Contrasts of tokens: the two sides of a contrast, by the values of a token column.

Every pair (document, side) that has tokens gives one sample, pooled from these tokens: the tokens
of a document depend on each other, so single tokens would not be independent samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.mask_key import Pool
from actlas.analysis.localizer.pooling_shard import ShardSamples
from actlas.store.format import layout
from actlas.store.read.reader import StoreReader
from actlas.store.shards.lazy_array import LazyArray

BLOCK_TOKENS = 1 << 22

N_SIDES = 2


@dataclass(frozen=True, slots=True)
class SideReader:
    """A reader of the side of tokens: 0, 1, or -1 for neither.

    Attributes
    ----------
    codes : LazyArray, shape [tokens]
        The token column.
    positive : int
        The value of the column on side 0.
    negative : int or None
        The value of the column on side 1; None for all other tokens.
    special : LazyArray or None
        1 for special tokens of the tokenizer, which do not count as other tokens.
    """

    codes: LazyArray
    positive: int
    negative: int | None
    special: LazyArray | None

    def read(self, start: int, stop: int) -> NDArray[np.int8]:
        """Return the sides of tokens [start, stop); shape [stop - start]."""
        codes = self.codes.read(start, stop)
        sides = np.full(len(codes), -1, np.int8)
        if self.negative is not None:
            sides[codes == self.negative] = 1
        else:
            sides[:] = 1
            if self.special is not None:
                sides[self.special.read(start, stop) == 1] = -1
        sides[codes == self.positive] = 0
        return sides


@dataclass(frozen=True, slots=True)
class TokenSides:
    """The two sides of a contrast of tokens.

    Attributes
    ----------
    reader : SideReader
        Reads the side of each token.
    n, first, last : ndarray of int64, shape [documents, 2]
        Number of tokens of each document on each side, and the first and the last of these tokens;
        0, 0 and -1 for none.
    """

    reader: SideReader
    n: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def read_sides(store: StoreReader, column: str, positive: int, negative: int | None) -> TokenSides:
    """Find the sides of a contrast, in one pass over a token column.

    Parameters
    ----------
    store : StoreReader
        The store.
    column : str
        One of ``store.plan.token_columns``.
    positive : int
        The value of the column on side 0.
    negative : int or None
        The value of the column on side 1; None for every other token, also those without a value.
    """
    columns, start = store.documents.columns, store.documents.start
    reader = SideReader(columns[column], positive, negative, columns.get("special"))
    shape = (store.plan.n_documents, N_SIDES)
    n, first = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    last = np.full(shape, -1, np.int64)
    for begin in range(0, store.plan.n_tokens, BLOCK_TOKENS):
        end = min(begin + BLOCK_TOKENS, store.plan.n_tokens)
        sides = reader.read(begin, end)
        t = np.flatnonzero(sides >= 0)
        doc = np.searchsorted(start, t + begin, side="right") - 1
        keys, at, counts = np.unique(
            doc * N_SIDES + sides[t], return_index=True, return_counts=True
        )
        backwards = np.unique((doc * N_SIDES + sides[t])[::-1], return_index=True)[1]
        new = n.flat[keys] == 0
        first.flat[keys[new]] = t[at[new]] + begin
        last.flat[keys] = t[len(t) - 1 - backwards] + begin
        n.flat[keys] += counts
    return TokenSides(reader, n, first, last)


def side_samples(
    start: int,
    stop: int,
    first_doc: int,
    doc_start: NDArray[np.int64],
    extent: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    reader: SideReader,
    seed: int,
    order: str,
    pool: Pool,
) -> ShardSamples:
    """Return the rows of a shard that are pooled, with their pairs (document, side).

    The counterpart of :func:`actlas.analysis.localizer.pooling_shard.shard_samples`; ``doc_idx`` of
    the result is ``2 * document + side``.

    Parameters
    ----------
    start, stop : int
        The tokens of the shard.
    first_doc : int
        The first document with tokens in the shard.
    doc_start : ndarray of int64, shape [n + 1]
        The edges of the documents with tokens in the shard.
    extent : tuple of ndarray of int64, shape [n, 2]
        ``n``, ``first`` and ``last`` of :class:`TokenSides` for these documents.
    reader : SideReader
        Reads the side of each token.
    seed, order
        The seed and the row order of the store's plan.
    pool : {"last", "mean"}
        The kind of pooling.
    """
    n, first, last = (part.ravel() for part in extent)
    group = np.tile(np.arange(N_SIDES, dtype=np.int8), len(n) // N_SIDES)
    begin, end = (first if pool == "mean" else last), last + 1
    n_pooled = n if pool == "mean" else np.minimum(n, 1)
    used = (n > 0) & (begin < stop) & (end > start)
    whole = used & (begin >= start) & (end <= stop)
    rank = np.where(whole, group, N_SIDES)
    inside = np.flatnonzero(used)
    slots = inside[np.argsort(rank[inside], kind="stable")]
    slot_of = np.full(len(n), -1, dtype=np.int32)
    slot_of[slots] = np.arange(len(slots), dtype=np.int32)
    t = layout.shard_tokens(order, seed, start, stop)
    side = reader.read(start, stop)[t - start]
    key = (np.searchsorted(doc_start, t, side="right") - 1) * N_SIDES + np.maximum(side, 0)
    pooled = (side >= 0) & (t >= begin[key])
    return ShardSamples(
        start=start,
        stop=stop,
        doc_idx=first_doc * N_SIDES + slots,
        group=group[slots],
        doc_start=begin[slots],
        doc_stop=end[slots],
        n_pooled=n_pooled[slots],
        edges=tuple(np.searchsorted(rank[slots], np.arange(N_SIDES + 1)).tolist()),
        slot_of_row=np.where(pooled, slot_of[key], np.int32(-1)).astype(np.int32, copy=False),
    )
