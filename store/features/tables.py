"""The tables of a set of feature activations, and the groups of arrays that they list."""

from __future__ import annotations

import bisect
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import CorruptDataError, FeatureError, FormatError
from actlas.store.features.codes import index_dtype, token_dtype
from actlas.store.features.contexts import Peak
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.recorded import SWAPPED
from actlas.store.format.validation import CHANGED, check_edges, check_span
from actlas.store.ledger.derived import flat, group_named, group_of
from actlas.store.ledger.finished import lost_error
from actlas.store.ledger.guards import UnitGuard
from actlas.store.ledger.job_kind import JobKind
from actlas.store.ledger.job_kinds import ENCODE, ENCODED, INDEX, INDEXED
from actlas.store.ledger.lost import was_finished
from actlas.store.ledger.receipts import receipt_key
from actlas.store.shards.lazy_array import LazyArray

if TYPE_CHECKING:
    from typing import Any

    from actlas.store.format.schema import Receipt
    from actlas.store.read.reader import StoreReader


class Group(NamedTuple):
    """The arrays of one CSR group: a shard's activations by token, or a block's by feature.

    Attributes
    ----------
    indptr : LazyArray, shape [tokens or features, plus 1]
        Where the entries of each token or feature begin.
    indices : LazyArray, shape [entries]
        The feature, or the token, of each entry.
    data : LazyArray, shape [entries]
        The activation of each entry.
    """

    indptr: LazyArray
    indices: LazyArray
    data: LazyArray


class TokenTable(NamedTuple):
    """The table by token.

    Attributes
    ----------
    nnz_start : ndarray of int64, shape [shards + 1]
        The number of entries before each shard.
    groups : list of str
        The folder of each shard's group.
    """

    nnz_start: NDArray[np.int64]
    groups: list[str]


class FeatureTable(NamedTuple):
    """The table by feature.

    Attributes
    ----------
    block_start : ndarray of int64, shape [blocks + 1]
        The first feature of each block.
    groups : list of str
        The folder of each block's group.
    n_active : ndarray of int64, shape [features]
        The number of tokens on which each feature fires.
    sum, max : ndarray, shape [features]
        The sum and the maximum of each feature's activations.
    """

    block_start: NDArray[np.int64]
    groups: list[str]
    n_active: NDArray[np.int64]
    sum: NDArray[np.float64]
    max: NDArray[np.float32]


class FeatureTables:
    """Reads the tables of one set of feature activations when they are first needed.

    Parameters
    ----------
    store : StoreReader
        The store.
    name : str
        The set's name.
    n_features : int
        The number of features.
    """

    def __init__(self, store: StoreReader, name: str, n_features: int) -> None:
        self.store, self.name, self.n_features = store, name, n_features
        self._group = lru_cache(maxsize=64)(self._open_group)

    def written(self, table: JobKind) -> bool:
        """Return whether the table over all shards, or over all blocks, has its receipt."""
        return table.receipts(self.store, self.name).exists(0)

    def require_encoded(self) -> None:
        """Raise ``FeatureError`` unless every token is encoded."""
        _ = self.tokens

    @cached_property
    def tokens(self) -> TokenTable:
        """The table by token: the group of each shard.

        Raises
        ------
        FeatureError
            Not every token is encoded.
        """
        receipt = self._table(ENCODED, "encode")
        groups = _groups(receipt)
        if len(groups) != self.store.plan.n_shards:
            raise _malformed(
                receipt,
                f"names {len(groups)} groups, expected {self.store.plan.n_shards}, one per shard",
            )
        nnz_start = self._read(receipt, flat("nnz_start", len(groups) + 1, "int64", "edge"))
        check_edges(nnz_start, int(nnz_start[-1]), f"{receipt.job}: nnz_start")
        return TokenTable(nnz_start, groups)

    @cached_property
    def features(self) -> FeatureTable:
        """The table by feature: the group of each block, and totals of each feature.

        Raises
        ------
        FeatureError
            The set is not indexed.
        """
        receipt = self._table(INDEXED, "index")
        groups = _groups(receipt)
        n = self.n_features
        block_start = self._read(receipt, flat("block_start", len(groups) + 1, "int64", "edge"))
        check_edges(block_start, n, f"{receipt.job}: block_start")
        count = self._read(receipt, flat("count", n, "int64", "feature"))
        if count.min() < 0 or count.max() > self.store.plan.n_tokens:
            raise _malformed(receipt, f"counts {count.min()} to {count.max()} tokens of a feature")
        return FeatureTable(
            block_start,
            groups,
            count,
            self._read(receipt, flat("sum", n, "float64", "feature")),
            self._read(receipt, flat("max", n, "float32", "feature")),
        )

    def shard(self, shard: int) -> Group:
        """Return the group of a shard: the activations of its tokens."""
        table = self.tokens
        start, stop = self.store.shard_range(shard)
        nnz = int(table.nnz_start[shard + 1] - table.nnz_start[shard])
        dtype = index_dtype(self.n_features)
        return self._group(ENCODE, shard, table.groups[shard], stop - start + 1, nnz, dtype)

    def block(self, block: int) -> Group:
        """Return the group of a block of features."""
        table = self.features
        first, last = int(table.block_start[block]), int(table.block_start[block + 1])
        nnz = int(table.n_active[first:last].sum())
        dtype = token_dtype(self.store.plan.n_tokens)
        return self._group(INDEX, first, table.groups[block], last - first + 1, nnz, dtype)

    def ranked(self, feature: int, start: int, stop: int) -> Peak:
        """Return the tokens of ranks [start, stop) of a feature, by descending activation.

        Parameters
        ----------
        feature : int
            The feature.
        start, stop : int
            Ranks within the tokens on which the feature fires, half-open.
        """
        table, n_tokens = self.features, self.store.plan.n_tokens
        block = int(np.searchsorted(table.block_start, feature, side="right")) - 1
        group, row = self.block(block), feature - int(table.block_start[block])
        at = int(group.indptr.read(row, row + 1)[0])
        n = int(table.n_active[feature])
        check_span(at, at + n, len(group.indices), group.indptr.spec.path)
        t = group.indices.read(at + start, at + stop).astype(np.int64)
        lowest, highest = int(t.min(initial=0)), int(t.max(initial=0))
        check_span(lowest, highest + 1, n_tokens, group.indices.spec.path)
        return Peak(t, group.data.read(at + start, at + stop))

    def value(self, feature: int, rank: int) -> float:
        """Return the activation at one rank of a feature, by descending activation."""
        return float(self.ranked(feature, rank, rank + 1).value[0])

    def smallest(self, feature: int, k: int) -> Peak:
        """Return a feature's ``k`` smallest activations above zero, ascending, ties by token."""
        if k == 0:
            return self.ranked(feature, 0, 0)
        n = int(self.features.n_active[feature])

        def falling(rank: int) -> float:
            return -self.value(feature, rank)

        # Equal values are stored by ascending token. The result has everything below the value at
        # the cut, and the first tokens of the run of that value.
        cut = falling(n - k)
        run = bisect.bisect_left(range(n), cut, key=falling)
        below = bisect.bisect_right(range(n), cut, key=falling)
        smaller = self.ranked(feature, below, n)
        equal = self.ranked(feature, run, run + k - len(smaller.t))
        order = np.lexsort((smaller.t, smaller.value))
        return Peak(
            np.concatenate([smaller.t[order], equal.t]),
            np.concatenate([smaller.value[order], equal.value]),
        )

    def _table(self, table: JobKind, verb: str) -> Receipt:
        try:
            return table.receipts(self.store, self.name).read(0)
        except FileNotFoundError as error:
            if was_finished(self.store, table, self.name):
                what = f"the table over all {verb}ed features of {self.name!r}"
                raise lost_error(self.store.path, table.job(self.name), [0], what) from error
            raise FeatureError(
                f"{self.store.path}: features {self.name!r} are not {table.name} yet: "
                f"`actlas sae {verb} {self.store.path} --sae {self.name}`.",
                name=self.name,
            ) from error

    def _read(self, receipt: Receipt, spec: ArraySpec) -> NDArray[Any]:
        guard = UnitGuard(f"{receipt.job} of {self.store.path}", receipt.objects)
        array = self._lazy(guard, group_of(receipt), spec.path, spec.n_rows, spec.dtype)
        return array.read(0, spec.n_rows)

    def _open_group(
        self, kind: JobKind, unit: int, folder: str, n_pointers: int, nnz: int, dtype: str
    ) -> Group:
        guard = self._guard(kind, unit, folder)
        return Group(
            self._lazy(guard, folder, "indptr", n_pointers, "int64"),
            self._lazy(guard, folder, "indices", nnz, dtype),
            self._lazy(guard, folder, "data", nnz, "float32"),
        )

    def _guard(self, kind: JobKind, unit: int, folder: str) -> UnitGuard:
        """Return the guard of a unit's group, after checking that its receipt names that group."""
        job = kind.job(self.name)
        try:
            receipt = kind.receipts(self.store, self.name).read(unit)
        except FileNotFoundError as error:
            what = f"{kind.unit} {unit} of features {self.name!r}"
            raise lost_error(self.store.path, job, [unit], what) from error
        if group_of(receipt) != folder:
            raise CorruptDataError(
                f"{self.store.path}/{receipt_key(job, unit)}: got the group {group_of(receipt)}, "
                f"expected {folder}, which the table over all {kind.unit}s names. {SWAPPED}",
                path=receipt_key(job, unit),
            )
        return UnitGuard(f"{job} of {self.store.path}, {kind.unit} {unit}", receipt.objects)

    def _lazy(self, guard: UnitGuard, folder: str, name: str, n: int, dtype: str) -> LazyArray:
        spec = flat(f"{folder}/{name}", n, dtype, name)
        return LazyArray(self.store.objects, spec, guard)


def _groups(receipt: Receipt) -> list[str]:
    """Return the folders of the groups that a table lists, each a folder of derived data."""
    groups = receipt.run.get("groups")
    if not isinstance(groups, list) or not groups:
        raise _malformed(receipt, "names no groups")
    return [group_named(group, receipt) for group in groups]


def _malformed(receipt: Receipt, what: str) -> FormatError:
    return FormatError(f"the receipt of {receipt.job} {what}. {CHANGED}", job=receipt.job)
