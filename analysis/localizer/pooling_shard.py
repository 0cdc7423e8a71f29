"""The steps of pooling: samples of one shard, and the merge of adjacent parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.mask_key import Pool
from actlas.store.format import layout
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.statistics.moments import Moments

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

SUM_BYTES = 256 << 20
"""Largest memory of the sums of one task; beyond it, a shard is read once per block of units."""

ByGroup = tuple[Moments | None, ...]
"""The moments of each condition's samples; None where a condition has no sample."""


class Border(NamedTuple):
    """A document that crosses the border of a part.

    Attributes
    ----------
    group : int
        Its condition.
    start, stop : int
        Its pooled tokens lie in [start, stop) of the corpus.
    n_pooled : int
        Number of its pooled tokens.
    total : ndarray of float64, shape [units]
        Sum of its rows in the part.
    """

    group: int
    start: int
    stop: int
    n_pooled: int
    total: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """The pooled result of a range of tokens.

    Attributes
    ----------
    start, stop : int
        Tokens [start, stop) of the corpus.
    moments : tuple of (Moments or None)
        The moments of the samples that lie wholly in the range, by condition.
    borders : dict of int to Border
        The documents that cross a border of the range, by document.
    """

    start: int
    stop: int
    moments: ByGroup
    borders: dict[int, Border]


class ShardSamples(NamedTuple):
    """The pooled documents of a shard, in slots: whole documents by condition, then the others.

    Attributes
    ----------
    start, stop : int
        The tokens of the shard.
    doc_idx, group, doc_start, doc_stop, n_pooled : ndarray, shape [slots]
        The document, its condition, its range of tokens, and the number of them that are pooled.
    edges : tuple of int
        Slots [edges[g], edges[g + 1]) are whole documents of condition g; slots after the last edge
        are documents that cross a border.
    slot_of_row : ndarray of int32, shape [rows of the shard]
        The slot of each row; -1 for rows that are not pooled.
    """

    start: int
    stop: int
    doc_idx: NDArray[np.int64]
    group: NDArray[np.int8]
    doc_start: NDArray[np.int64]
    doc_stop: NDArray[np.int64]
    n_pooled: NDArray[np.int64]
    edges: tuple[int, ...]
    slot_of_row: NDArray[np.int32]


def shard_samples(
    start: int,
    stop: int,
    first_doc: int,
    doc_start: NDArray[np.int64],
    group: NDArray[np.int8],
    seed: int,
    order: str,
    pool: Pool,
    n_groups: int,
) -> ShardSamples:
    """Return the rows of a shard that are pooled, with their documents. Integers only.

    Parameters
    ----------
    start, stop : int
        The tokens of the shard.
    first_doc : int
        The first document with tokens in the shard.
    doc_start : ndarray of int64, shape [n + 1]
        The edges of the documents with tokens in the shard.
    group : ndarray of int8, shape [n]
        The conditions of these documents.
    seed, order
        The seed and the row order of the store's plan.
    pool : {"last", "mean"}
        The kind of pooling.
    n_groups : int
        Number of conditions.
    """
    begin, end = doc_start[:-1], doc_start[1:]
    # The pooled tokens of each document: all of them, or the last one.
    pool_start = begin if pool == "mean" else np.maximum(begin, end - 1)
    used = (group >= 0) & (pool_start < end) & (pool_start < stop) & (end > start)
    whole = used & (pool_start >= start) & (end <= stop)
    rank = np.where(whole, group, n_groups)
    inside = np.flatnonzero(used)
    slots = inside[np.argsort(rank[inside], kind="stable")]
    slot_of_doc = np.full(len(group), -1, dtype=np.int32)
    slot_of_doc[slots] = np.arange(len(slots), dtype=np.int32)
    t = layout.shard_tokens(order, seed, start, stop)
    doc_of_row = np.searchsorted(doc_start, t, side="right") - 1
    slot_of_row = np.where(t >= pool_start[doc_of_row], slot_of_doc[doc_of_row], np.int32(-1))
    edges = np.searchsorted(rank[slots], np.arange(n_groups + 1))
    return ShardSamples(
        start=start,
        stop=stop,
        doc_idx=first_doc + slots,
        group=group[slots],
        doc_start=pool_start[slots],
        doc_stop=end[slots],
        n_pooled=(end - pool_start)[slots],
        edges=tuple(edges.tolist()),
        slot_of_row=slot_of_row.astype(np.int32, copy=False),
    )


def pool_shard(array: LazyArray, shard: int, samples: ShardSamples, signed: bool) -> Part:
    """Read one shard of one hookpoint and pool it; chunks without a pooled row are not read.

    Parameters
    ----------
    array : LazyArray, shape [rows, units]
        The activations of the hookpoint.
    shard : int
        The shard, from 0.
    samples : ShardSamples
        The pooled rows and their documents.
    signed : bool
        Whether samples keep their sign.
    """
    n_slots, width = len(samples.doc_idx), array.shape[1]
    step = width if n_slots == 0 else max(1, min(width, SUM_BYTES // (8 * n_slots)))
    blocks: list[ByGroup] = []
    totals: list[NDArray[np.float64]] = []
    n_whole = samples.edges[-1]
    for lo in range(0, width, step):
        sums = _sums(array, shard, samples, slice(lo, min(lo + step, width)))
        totals.append(sums[n_whole:].copy())
        values = finish(sums[:n_whole], samples.n_pooled[:n_whole], signed)
        spans = zip(samples.edges[:-1], samples.edges[1:], strict=True)
        blocks.append(tuple(Moments.of(values[a:b]) if b > a else None for a, b in spans))
    total = np.concatenate(totals, axis=1)
    borders = {
        int(samples.doc_idx[slot]): Border(
            group=int(samples.group[slot]),
            start=int(samples.doc_start[slot]),
            stop=int(samples.doc_stop[slot]),
            n_pooled=int(samples.n_pooled[slot]),
            total=total[slot - n_whole],
        )
        for slot in range(n_whole, n_slots)
    }
    return Part(samples.start, samples.stop, _beside(blocks), borders)


def _sums(array: LazyArray, shard: int, samples: ShardSamples, units: slice) -> NDArray[np.float64]:
    """Return the float64 sum of every slot's rows in this shard; shape [slots, units]."""
    from scipy.sparse import csr_array

    chunk_rows = array.spec.chunk_rows
    sums = np.zeros((len(samples.doc_idx), units.stop - units.start))
    pooled = np.flatnonzero(samples.slot_of_row >= 0)
    chunk_of = pooled // chunk_rows
    chunks = np.unique(chunk_of)
    with np.errstate(
        invalid="ignore"
    ):  # infinities of both signs give NaN, which is reported later
        for chunk, values in zip(
            chunks, array.reader(shard).read_chunks(chunks.tolist()), strict=True
        ):
            a, b = np.searchsorted(chunk_of, [chunk, chunk + 1])
            rows = pooled[a:b]
            slots, place = np.unique(samples.slot_of_row[rows], return_inverse=True)
            wide = values[rows - chunk * chunk_rows, units].astype(np.float64)
            # A sum per document as a sparse product: many times faster than np.add.reduceat.
            ones = (np.ones(len(rows)), (place, np.arange(len(rows))))
            sums[slots] += csr_array(ones, shape=(len(slots), len(rows))) @ wide
    return sums


def finish(
    sums: Float64[NDArray[np.float64], "samples units"],
    n_pooled: Int64[NDArray[np.int64], " samples"],
    signed: bool,
) -> Float64[NDArray[np.float64], "samples units"]:
    """Turn sums into samples, in place: divide by the tokens, then take absolute values.

    Parameters
    ----------
    sums : ndarray of float64, shape [samples, units]
        Sums of rows; overwritten.
    n_pooled : ndarray of int64, shape [samples]
        Number of rows of each sum.
    signed : bool
        Whether samples keep their sign.
    """
    sums /= n_pooled[:, None]
    return sums if signed else np.abs(sums, out=sums)


def merge(parts: Sequence[Part], signed: bool) -> Part:
    """Merge adjacent parts; documents that are complete now become samples.

    Parameters
    ----------
    parts : sequence of Part
        Adjacent parts, in order.
    signed : bool
        Whether samples keep their sign.
    """
    start, stop = parts[0].start, parts[-1].stop
    by_doc: dict[int, Border] = {}
    for part in parts:
        for doc, border in part.borders.items():
            before = by_doc.get(doc)
            with np.errstate(invalid="ignore"):
                total = border.total if before is None else before.total + border.total
            by_doc[doc] = border._replace(total=total)
    done = {doc: b for doc, b in by_doc.items() if b.start >= start and b.stop <= stop}
    samples: dict[int, list[NDArray[np.float64]]] = {}
    for border in done.values():
        n_pooled = np.array([border.n_pooled], dtype=np.int64)
        # A copy, since the parts are not to be changed.
        samples.setdefault(border.group, []).append(
            finish(border.total[None].copy(), n_pooled, signed)
        )
    moments = []
    for group in range(len(parts[0].moments)):
        found = [part.moments[group] for part in parts]
        if group in samples:
            found.append(Moments.of(np.concatenate(samples[group])))
        moments.append(_combined(found))
    left = {doc: border for doc, border in by_doc.items() if doc not in done}
    return Part(start, stop, tuple(moments), left)


def _combined(found: Iterable[Moments | None]) -> Moments | None:
    present = [moments for moments in found if moments is not None]
    return Moments.combine(present) if present else None


def _beside(blocks: Sequence[ByGroup]) -> ByGroup:
    """Concatenate the moments of blocks of units."""
    if len(blocks) == 1:
        return blocks[0]
    joined: list[Moments | None] = []
    for parts in zip(*blocks, strict=True):
        present = [part for part in parts if part is not None]
        names = ("n", "mean", "m2", "min", "max")
        joined.append(
            Moments(*(np.concatenate([getattr(p, name) for p in present]) for name in names))
            if present
            else None
        )
    return tuple(joined)
