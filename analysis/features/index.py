"""The index by feature: each feature's tokens by falling activation.

It is an out-of-core transposition of the feature activations (codes) by token. Features are cut
into blocks by their number of codes. As many blocks as fit the memory are filled in one pass over
the codes by token: the counts are known before, so each code is written to its final place. The
codes of a feature are then sorted by the sixteen bits of their bfloat16 values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.features.index_plan import (
    BLOCK_CODES,
    MEMORY_BYTES,
    IndexPlan,
    Progress,
    Totals,
    codes_by_shard,
    index_inputs,
    plan_index,
    silent,
    totals_of,
)
from actlas.store.features.codes import token_dtype
from actlas.store.features.features import Features
from actlas.store.ledger.derived import group_of, input_seal
from actlas.store.ledger.job_kinds import ENCODE, INDEX, INDEXED
from actlas.store.ledger.receipts import receipt_key
from actlas.store.write.derived import commit, sweep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float32, Int64, Shaped

    from actlas.store.format.schema import Receipt
    from actlas.store.read.reader import StoreReader


@dataclass(frozen=True, slots=True)
class Indexed:
    """The size of an index, and of what it was made from.

    Attributes
    ----------
    n_codes, n_blocks, n_passes : int
        The numbers of codes, of blocks of features, and of passes over the codes by token.
    n_bytes : int
        The bytes of the index on disk.
    n_bytes_by_token : int
        The bytes of the codes by token on disk.
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
    progress: Progress = silent,
) -> Indexed:
    """Write the index of a set of features, of which every token is encoded. Done blocks are kept.

    Parameters
    ----------
    store : StoreReader
        The store.
    features : Features
        The set of features.
    attempt : str
        The name of this attempt, for the receipts.
    memory_bytes : int
        The memory to use, about; less memory takes more passes.
    block_codes : int
        The number of codes of a block.
    progress : callable
        Called with (the step, shards read, shards in all).

    Raises
    ------
    FeatureError
        Not every token is encoded.
    """
    totals = totals_of(store, features, progress)
    plan = plan_index(
        store, features, totals.count, memory_bytes=memory_bytes, block_codes=block_codes
    )
    indexer = Indexer(store, features, plan, progress)
    receipts = INDEX.receipts(store, features.name)
    for block in plan.blocks:
        if not receipts.exists(block):
            indexer.extract(block, attempt=attempt)
    return finish_index(store, features, plan, totals, attempt)


class Indexer:
    """Writes the blocks of one index, each in the pass over the codes that it is planned in.

    The codes of a pass stay in memory while its blocks are requested in turn. A block that is
    requested out of turn begins a pass for itself and the rest of its planned pass.

    Parameters
    ----------
    store : StoreReader
        The store.
    features : Features
        The set of features.
    plan : IndexPlan
        The blocks, and the passes that make them.
    progress : callable
        Called with (the step, shards read, shards in all).
    """

    def __init__(
        self, store: StoreReader, features: Features, plan: IndexPlan, progress: Progress = silent
    ) -> None:
        self.store, self.features, self.plan = store, features, plan
        self._progress = progress
        self._blocks, self._inputs = plan.blocks, index_inputs(store, features)
        self._held: _Pass | None = None

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Write one block of features.

        Parameters
        ----------
        shard : int
            The first feature of the block.
        attempt : str
            The name of this attempt, for the receipt.
        """
        start, stop = shard, self._blocks[shard]
        store, name = self.store, self.features.name
        held = self._pass_with(start)
        try:
            pointers = held.starts[start - held.lo : stop - held.lo + 1]
            part = slice(int(pointers[0]), int(pointers[-1]))
            indptr = pointers - pointers[0]
            sort_falling(indptr, held.t[part], held.value[part])
            attributes = {
                "encoding-type": "csc_matrix",
                "encoding-version": "0.1.0",
                "shape": [store.plan.n_tokens, stop - start],
                "actlas": {"feature_start": start},
            }
            arrays = {"indptr": indptr, "indices": held.t[part], "data": held.value[part]}
            unit = INDEX.unit_of_work(store, name, start, start, stop)
            return commit(store, unit, attributes, arrays, attempt=attempt, inputs=self._inputs)
        except BaseException:
            self._held = None  # it may be half sorted
            raise

    def _pass_with(self, block: int) -> _Pass:
        """Return the codes of a pass that holds a block; the pass before is freed first."""
        held = self._held
        if held is not None and held.lo <= block < held.hi:
            return held
        self._held = held = None
        number, lo, hi = self.plan.rest_of_pass(block)
        step = f"pass {number + 1}: features [{lo}, {hi})"
        counts = self.plan.counts[lo:hi]
        t, value = _transpose(self.store, self.features, counts, lo, hi, step, self._progress)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._held = _Pass(lo, hi, starts, t, value)
        return self._held


class _Pass(NamedTuple):
    """The codes of features [lo, hi); feature ``lo + i`` has [starts[i], starts[i + 1])."""

    lo: int
    hi: int
    starts: NDArray[np.int64]
    t: NDArray[Any]
    value: NDArray[np.float32]


def finish_index(
    store: StoreReader, features: Features, plan: IndexPlan, totals: Totals, attempt: str
) -> Indexed:
    """Write the table over all blocks of an index, and return its size.

    The groups that killed workers left are removed.

    Parameters
    ----------
    store : StoreReader
        The store.
    features : Features
        The set of features.
    plan : IndexPlan
        The blocks, of which every one has a receipt.
    totals : Totals
        The count, sum and maximum of each feature.
    attempt : str
        The name of this attempt, for the receipt.

    Raises
    ------
    FileNotFoundError
        A block has no receipt.
    """
    name = features.name
    receipts, groups, inputs, n_bytes = INDEX.receipts(store, name), [], {}, 0
    for first, last in plan.blocks.items():
        receipt = receipts.read(first)
        if (receipt.start, receipt.stop) != (first, last):
            raise AssertionError(
                f"block {first} holds [{receipt.start}, {receipt.stop}), expected [{first}, {last})"
            )
        key = receipt_key(receipts.job, first)
        inputs[key] = input_seal(store.objects, key)
        groups.append(group_of(receipt))
        n_bytes += _n_bytes([receipt])
    table = commit(
        store,
        INDEXED.unit_of_work(store, name, 0, 0, features.n_features),
        {"groups": [group.rsplit("/", 1)[1] for group in groups]},
        {
            "block_start": plan.edges,
            "count": totals.count,
            "sum": totals.sum,
            "max": totals.max,
        },
        attempt=attempt,
        inputs=inputs,
        run={"groups": groups},
    )
    sweep(store, INDEX, name)
    sweep(store, INDEXED, name)
    by_token = ENCODE.receipts(store, name)
    return Indexed(
        n_codes=int(totals.count.sum()),
        n_blocks=len(plan.edges) - 1,
        n_passes=len(plan.passes),
        n_bytes=n_bytes + _n_bytes([table]),
        n_bytes_by_token=_n_bytes(by_token.read(s) for s in range(store.plan.n_shards)),
    )


def sort_falling(
    indptr: Int64[NDArray[np.int64], " edges"],
    t: Shaped[NDArray[Any], " codes"],
    value: Float32[NDArray[np.float32], " codes"],
) -> None:
    """Sort each column of a compressed matrix by falling value, in place.

    Equal values keep their order. Positive bfloat16 values in float32 are ordered by their upper
    sixteen bits, which numpy sorts by radix.

    Parameters
    ----------
    indptr : ndarray of int64, shape [columns + 1]
        The offset of each column.
    t : ndarray of int32 or int64, shape [codes]
        The tokens.
    value : ndarray of float32, shape [codes]
        Their activations, above zero and rounded to bfloat16.
    """
    key = ~(value.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        if b - a > 1:
            order = np.argsort(key[a:b], kind="stable")
            t[a:b], value[a:b] = t[a:b][order], value[a:b][order]


def _transpose(
    store: StoreReader,
    features: Features,
    counts: NDArray[np.int64],
    lo: int,
    hi: int,
    step: str,
    progress: Progress,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the codes of features [lo, hi), feature by feature, tokens ascending in each.

    ``counts`` [hi - lo] are the codes of each.
    """
    cursor = np.cumsum(counts) - counts
    n = int(counts.sum())
    t = np.empty(n, token_dtype(store.plan.n_tokens))
    value = np.empty(n, np.float32)
    for codes in codes_by_shard(store, features, step, progress):
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


def _n_bytes(receipts: Iterable[Receipt]) -> int:
    return sum(record.n_bytes for receipt in receipts for record in receipt.objects)
