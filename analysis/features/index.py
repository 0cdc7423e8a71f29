"""The index by feature: from codes by token to each feature's tokens, falling by activation.

A transposition out of core. The features are cut into blocks by their number of codes; as many
blocks as fit the memory are filled in one pass over the codes by token, each code straight to its
place, since the counts are known before. A feature's codes are then sorted by their sixteen bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.features.codes import Codes, token_dtype
from actlas.store.features.features import Features
from actlas.store.ledger.derived import Unit, group_of, input_seal, receipts_of, same_inputs
from actlas.store.ledger.feature_sets import spec_key
from actlas.store.ledger.receipts import receipt_key
from actlas.store.write.derived import commit, sweep, sweep_unit

if TYPE_CHECKING:
    from actlas.store.format.schema import Receipt
    from actlas.store.read.reader import StoreReader

BLOCK_CODES = 1 << 22
"""Codes of a block of features; one feature alone may have more."""

BLOCK_BYTES_PER_CODE = 40
"""Of memory beside the codes themselves, while a block is sorted and written."""

SHARD_BYTES_PER_CODE = 56
"""Of memory while a shard's codes are put in their places."""

MEMORY_BYTES = 1 << 30

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, of how much."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What was made.

    Attributes
    ----------
    n_codes, n_blocks, n_passes : int
        Codes, blocks of features, passes over the codes by token.
    n_bytes : int
        Of the index on disk.
    n_bytes_by_token : int
        Of the codes by token.
    """

    n_codes: int
    n_blocks: int
    n_passes: int
    n_bytes: int
    n_bytes_by_token: int


def index_features(
    store: StoreReader,
    features: Features,
    *,
    attempt: str,
    memory_bytes: int = MEMORY_BYTES,
    block_codes: int = BLOCK_CODES,
    progress: Progress = lambda _what, _done, _of: None,
) -> Indexed:
    """Write the index by feature of a set whose tokens are all encoded. Done blocks are kept.

    Parameters
    ----------
    store : StoreReader
    features : Features
    attempt : str
        Names this try, for the receipts.
    memory_bytes : int
        About as much is used; less memory makes more passes.
    block_codes : int
        Codes of a block.
    progress : callable

    Raises
    ------
    FeatureError
        Not every token is encoded.
    """
    source = receipt_key(f"encoded.{features.name}", 0)
    features.codes(0, 0)  # raises where not every token is encoded
    inputs = {spec_key(features.name): features.seal, source: input_seal(store.objects, source)}
    counts, sums, largest = _totals(store, features, progress)
    job, n = f"index.{features.name}", features.n_features
    receipts = receipts_of(store, job, n)
    done = {unit: same_inputs(store, receipts.read(unit), inputs).stop for unit in receipts.done()}
    edges = cut_blocks(counts, block_codes, done)
    room = codes_that_fit(store, features, counts, edges, memory_bytes)
    n_passes = 0
    for first, last in _passes(counts, edges, frozenset(done), room):
        n_passes += 1
        lo, hi = int(edges[first]), int(edges[last])
        what = f"pass {n_passes}: features [{lo}, {hi})"
        t, value = _transpose(store, features, counts, lo, hi, what, progress)
        starts = np.concatenate([[0], np.cumsum(counts[lo:hi])]).astype(np.int64)
        for block in range(first, last):
            a, b = int(edges[block]), int(edges[block + 1])
            pointers = starts[a - lo : b - lo + 1]
            part = slice(int(pointers[0]), int(pointers[-1]))
            indptr = pointers - pointers[0]
            sort_falling(indptr, t[part], value[part])
            unit = Unit(job, a, n, f"features/{features.name}/index/{a:08d}", a, b)
            attributes = {
                "encoding-type": "csc_matrix",
                "encoding-version": "0.1.0",
                "shape": [store.plan.n_tokens, b - a],
                "actlas": {"feature_start": a},
            }
            arrays = {"indptr": indptr, "indices": t[part], "data": value[part]}
            commit(store, unit, attributes, arrays, attempt=attempt, inputs=inputs)
    table = _finish(store, features, edges, (counts, sums, largest), attempt)
    by_token = receipts_of(store, f"encode.{features.name}", store.plan.n_shards)
    return Indexed(
        n_codes=int(counts.sum()),
        n_blocks=len(edges) - 1,
        n_passes=n_passes,
        n_bytes=_n_bytes(receipts.read(int(a)) for a in edges[:-1]) + _n_bytes([table]),
        n_bytes_by_token=_n_bytes(by_token.read(s) for s in range(store.plan.n_shards)),
    )


def cut_blocks(
    counts: NDArray[np.int64], block_codes: int, done: Mapping[int, int] | None = None
) -> NDArray[np.int64]:
    """Return the first feature of every block, and at the end the number of features.

    A block takes features until one more would exceed ``block_codes``; a larger one is alone.
    Blocks that are there already keep their borders, whatever they were cut by.

    Parameters
    ----------
    counts : ndarray of int64, shape [features]
    block_codes : int
    done : mapping of int to int, optional
        The features [start, stop) of the blocks that are there.

    >>> cut_blocks(np.array([3, 3, 9, 1, 1]), 6).tolist()
    [0, 2, 3, 5]
    >>> cut_blocks(np.array([3, 3, 9, 1, 1]), 6, {1: 3}).tolist()
    [0, 1, 3, 5]
    """
    there = dict(done or {})
    edges, held = [0], 0
    for feature, count in enumerate(counts.tolist()):
        inside = feature < there.get(edges[-1], 0)
        if feature > edges[-1] and not inside:
            full = held + count > block_codes
            if full or feature in there or edges[-1] in there:
                edges.append(feature)
                held = 0
        held += count
    return np.array([*edges, len(counts)], np.int64)


def sort_falling(indptr: NDArray[np.int64], t: NDArray[Any], value: NDArray[np.float32]) -> None:
    """Sort each column by falling value, in place; equal values keep their order.

    Values are bfloat16 in float32: their upper sixteen bits order them, and numpy sorts sixteen
    bits by radix.
    """
    key = ~(value.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        if b - a > 1:
            order = np.argsort(key[a:b], kind="stable")
            t[a:b], value[a:b] = t[a:b][order], value[a:b][order]


def codes_that_fit(
    store: StoreReader,
    features: Features,
    counts: NDArray[np.int64],
    edges: NDArray[np.int64],
    memory_bytes: int,
) -> int:
    """Return how many codes a pass may hold: what is left beside a shard's and a block's work."""
    largest_block = max((int(counts[a:b].sum()) for a, b in pairwise(edges)), default=0)
    largest_shard = features.largest_shard()
    left = (
        memory_bytes - BLOCK_BYTES_PER_CODE * largest_block - SHARD_BYTES_PER_CODE * largest_shard
    )
    return max(0, left) // (np.dtype(token_dtype(store.plan.n_tokens)).itemsize + 4)


def _passes(
    counts: NDArray[np.int64], edges: NDArray[np.int64], done: frozenset[int], n_codes: int
) -> Iterator[tuple[int, int]]:
    """Yield ranges of blocks that are not done and fit the memory together, at least one each.

    ``done`` holds the first features of the blocks that are.
    """
    sizes = np.add.reduceat(counts, edges[:-1]) if len(counts) else np.zeros(0, np.int64)
    first, held = 0, 0
    for block in range(len(edges) - 1):
        there = int(edges[block]) in done
        if there or (block > first and held + sizes[block] > n_codes):
            if block > first:
                yield first, block
            first, held = block, 0
        if there:
            first = block + 1
        else:
            held += int(sizes[block])
    if first < len(edges) - 1:
        yield first, len(edges) - 1


def _shards(
    store: StoreReader, features: Features, what: str, progress: Progress
) -> Iterator[Codes]:
    n_shards = store.plan.n_shards
    for shard in range(n_shards):
        yield features.codes(*store.shard_range(shard))
        progress(what, shard + 1, n_shards)


def _totals(
    store: StoreReader, features: Features, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """Return each feature's number of codes, their sum and the largest."""
    n = features.n_features
    counts, sums = np.zeros(n, np.int64), np.zeros(n, np.float64)
    largest = np.zeros(n, np.float32)
    for codes in _shards(store, features, "counting", progress):
        counts += np.bincount(codes.indices, minlength=n)
        sums += np.bincount(codes.indices, weights=codes.data, minlength=n)
        np.maximum.at(largest, codes.indices, codes.data)
    return counts, sums, largest


def _transpose(
    store: StoreReader,
    features: Features,
    counts: NDArray[np.int64],
    lo: int,
    hi: int,
    what: str,
    progress: Progress,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the codes of features [lo, hi), feature by feature, tokens ascending in each."""
    cursor = np.cumsum(counts[lo:hi]) - counts[lo:hi]
    n = int(counts[lo:hi].sum())
    t = np.empty(n, token_dtype(store.plan.n_tokens))
    value = np.empty(n, np.float32)
    for codes in _shards(store, features, what, progress):
        token = np.repeat(
            np.arange(codes.start, codes.start + len(codes.indptr) - 1), np.diff(codes.indptr)
        )
        inside = (codes.indices >= lo) & (codes.indices < hi)
        feature = codes.indices[inside].astype(np.int64) - lo
        order = np.argsort(feature.astype(codes.indices.dtype), kind="stable")
        here = np.bincount(feature, minlength=hi - lo)
        first = np.cumsum(here) - here
        to = np.repeat(cursor - first, here) + np.arange(len(feature))
        t[to] = token[inside][order]
        value[to] = codes.data[inside][order]
        cursor += here
    return t, value


def _finish(
    store: StoreReader,
    features: Features,
    edges: NDArray[np.int64],
    totals: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]],
    attempt: str,
) -> Receipt:
    name = features.name
    receipts = receipts_of(store, f"index.{name}", features.n_features)
    groups, inputs = [], {}
    for first, last in pairwise(edges.tolist()):
        receipt = receipts.read(first)
        if (receipt.start, receipt.stop) != (first, last):
            raise AssertionError(f"block {first} holds [{receipt.start}, {receipt.stop}): {edges}")
        key = receipt_key(receipts.job, first)
        inputs[key] = input_seal(store.objects, key)
        groups.append(group_of(receipt))
    counts, sums, largest = totals
    done = commit(
        store,
        Unit(f"indexed.{name}", 0, 1, f"features/{name}/indexed", 0, features.n_features),
        {"groups": [group.rsplit("/", 1)[1] for group in groups]},
        {"block_start": edges, "count": counts, "sum": sums, "max": largest},
        attempt=attempt,
        inputs=inputs,
        run={"groups": groups},
    )
    sweep(store, receipts, f"features/{name}/index")
    sweep_unit(store, done)
    return done


def _n_bytes(receipts: Any) -> int:
    return sum(record.n_bytes for receipt in receipts for record in receipt.objects)
