"""Sets of features: every token's codes, by token and by feature. Needs numpy alone.

``features/<name>/tokens`` holds the codes by token, a CSR group per shard, tokens in document
order; ``features/<name>/index`` holds them by feature, each feature's values falling, so that the
top, the bottom, a quantile, the count and the maximum are slices whatever the number of tokens.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import FeatureError
from actlas.store.features.codes import Codes, index_dtype
from actlas.store.features.contexts import Contexts, Peak, contexts_of, one_per_document
from actlas.store.features.tables import FeatureTables
from actlas.store.format import layout
from actlas.store.format.schema import FeaturesSpec
from actlas.store.format.sealing import seal_of, unseal
from actlas.store.format.validation import check_rising, check_span
from actlas.store.ledger.feature_sets import NAME, names, spec_key
from actlas.store.ledger.job_kinds import ENCODED, INDEXED

if TYPE_CHECKING:
    import pandas as pd

    from actlas.store.read.reader import StoreReader

STREAM_FEATURES = 7


class Features:
    """One set of features of a store. Get it with ``store.features(name)``.

    Attributes
    ----------
    name, hookpoint : str
    n_features : int
    spec : FeaturesSpec
        Which sparse autoencoder made it.

    Examples
    --------
    >>> features = store.features("sae")                     # doctest: +SKIP
    >>> features.top(17, k=5).t                              # doctest: +SKIP
    >>> features.contexts(17, k=5)                           # doctest: +SKIP
    """

    def __init__(self, store: StoreReader, spec: FeaturesSpec, seal: str) -> None:
        self.store, self.spec, self.seal = store, spec, seal
        self.name, self.hookpoint, self.n_features = spec.name, spec.hookpoint, spec.n_features
        self._tables = FeatureTables(store, spec.name, spec.n_features)

    @property
    def encoded(self) -> bool:
        """Whether every token is encoded."""
        return self._tables.written(ENCODED)

    @property
    def indexed(self) -> bool:
        """Whether the index by feature is there."""
        return self._tables.written(INDEXED)

    def __len__(self) -> int:
        return self.n_features

    def __repr__(self) -> str:
        state = "indexed" if self.indexed else "encoded" if self.encoded else "not encoded whole"
        return (
            f"<{self.n_features:,} features {self.name!r} of {self.hookpoint} "
            f"({self.spec.sae_kind}), {state}>"
        )

    # By token

    def codes(self, start: int, stop: int) -> Codes:
        """Return the codes of tokens [start, stop) of the corpus, in document order.

        Raises
        ------
        FeatureError
            Not every token is encoded.
        IndexError
            Tokens out of range.
        """
        plan = self.store.plan
        if not 0 <= start <= stop <= plan.n_tokens:
            raise IndexError(f"tokens [{start}, {stop}): this store has [0, {plan.n_tokens})")
        self._tables.require_encoded()
        parts: list[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]] = []
        for shard in range(start // plan.shard_rows, -(-stop // plan.shard_rows)):
            first, last = self.store.shard_range(shard)
            lo, hi = max(start, first) - first, min(stop, last) - first
            group = self._tables.shard(shard)
            indptr = group.indptr.read(lo, hi + 1)
            check_rising(indptr, len(group.indices), group.indptr.spec.path)
            a, b = int(indptr[0]), int(indptr[-1])
            indices = group.indices.read(a, b)
            largest = int(indices.max(initial=0))
            check_span(0, largest + 1, self.n_features, group.indices.spec.path)
            parts.append((indptr - a, indices, group.data.read(a, b)))
        if not parts:
            empty = np.zeros(0, index_dtype(self.n_features))
            return Codes(start, np.zeros(1, np.int64), empty, np.zeros(0, np.float32))
        offsets = np.cumsum([0, *(len(p[2]) for p in parts)])
        pointers = [p[0][:-1] + o for p, o in zip(parts, offsets, strict=False)]
        indptr = np.concatenate([*pointers, offsets[-1:]]).astype(np.int64)
        indices, data = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
        return Codes(start, indptr, indices, data)

    def largest_shard(self) -> int:
        """Return the codes of the shard that has most."""
        return int(np.diff(self._tables.tokens.nnz_start).max(initial=0))

    def activations(self, feature: int, start: int, stop: int) -> NDArray[np.float32]:
        """Return one feature's activation of tokens [start, stop); shape [stop - start]."""
        self.check(feature)
        return self.codes(start, stop).dense(feature)

    # By feature

    @property
    def count(self) -> NDArray[np.int64]:
        """The tokens on which each feature is above zero; shape [features]."""
        return self._tables.features.n_active

    @property
    def density(self) -> NDArray[np.float64]:
        """Each feature's share of tokens on which it is above zero; shape [features]."""
        density: NDArray[np.float64] = self._tables.features.n_active / self.store.plan.n_tokens
        return density

    @property
    def max(self) -> NDArray[np.float32]:
        """Each feature's largest activation, 0 where it never fires; shape [features]."""
        return self._tables.features.max

    @property
    def mean(self) -> NDArray[np.float64]:
        """Each feature's mean activation over the tokens on which it fires, NaN where on none."""
        count = self._tables.features.n_active
        mean = np.full(len(count), np.nan)
        np.divide(self._tables.features.sum, count, out=mean, where=count > 0)
        return mean

    def top(self, feature: int, k: int = 20) -> Peak:
        """Return the tokens with the largest activations, falling; ties: the lower token first."""
        n = self._count(feature)
        return self.ranked(feature, 0, min(k, n))

    def bottom(self, feature: int, k: int = 20) -> Peak:
        """Return the smallest activations above zero, rising; ties: the lower token first."""
        n = self._count(feature)
        k = min(k, n)
        if k == 0:
            return self.ranked(feature, 0, 0)
        # Equal values lie with their lower tokens first: of the run of them at the cut, the first
        # are wanted, and all that is smaller.
        edge = self._value(feature, n - k)
        run = bisect.bisect_left(range(n), -edge, key=lambda rank: -self._value(feature, rank))
        below = bisect.bisect_right(range(n), -edge, key=lambda rank: -self._value(feature, rank))
        smaller = self.ranked(feature, below, n)
        equal = self.ranked(feature, run, run + k - len(smaller.t))
        order = np.lexsort((smaller.t, smaller.value))
        return Peak(
            np.concatenate([smaller.t[order], equal.t]),
            np.concatenate([smaller.value[order], equal.value]),
        )

    def _value(self, feature: int, rank: int) -> float:
        return float(self.ranked(feature, rank, rank + 1).value[0])

    def ranked(self, feature: int, start: int, stop: int) -> Peak:
        """Return ranks [start, stop) of a feature's tokens by falling activation."""
        n = self._count(feature)
        if not 0 <= start <= stop <= n:
            raise IndexError(f"ranks [{start}, {stop}): feature {feature} has {n} tokens")
        edges = self._tables.features.block_start
        block = int(np.searchsorted(edges, feature, side="right")) - 1
        group, place = self._tables.block(block), feature - int(edges[block])
        at = int(group.indptr.read(place, place + 1)[0])
        check_span(at, at + n, len(group.indices), group.indptr.spec.path)
        t = group.indices.read(at + start, at + stop).astype(np.int64)
        lowest, highest = int(t.min(initial=0)), int(t.max(initial=0))
        check_span(lowest, highest + 1, self.store.plan.n_tokens, group.indices.spec.path)
        return Peak(t, group.data.read(at + start, at + stop))

    def quantile(self, feature: int, q: float) -> float:
        """Return the quantile of a feature's activations above zero: the value at rank ``q``.

        The smallest stored value with at least a share ``q`` of the values at or below it
        (numpy's ``method="inverted_cdf"``).
        """
        n = self._count(feature)
        if not 0 <= q <= 1 or n == 0:
            raise FeatureError(
                f"quantile {q} of feature {feature}: expected a share of 0 to 1, and a feature "
                f"that fires; it fires on {n} tokens.",
                feature=feature,
            )
        rank = n - max(1, int(np.ceil(q * n)))
        return float(self.ranked(feature, rank, rank + 1).value[0])

    def some(self, n: int = 3, seed: int = 0) -> list[int]:
        """Return features to look at first, in a random order that the seed fixes.

        Of those that fire on 0.1 % to 5 % of the tokens, where there are enough, else of all that
        ever fire: what fires on most tokens, or on a handful, says little of the rest.
        """
        telling = np.flatnonzero((self.density >= 1e-3) & (self.density <= 0.05))
        if len(telling) < n:
            telling = np.flatnonzero(self.count)
        order = np.argsort(layout.hash64(seed, STREAM_FEATURES, telling), kind="stable")
        return [int(feature) for feature in telling[order[:n]]]

    def contexts(
        self,
        feature: int,
        k: int = 20,
        *,
        bottom: bool = False,
        words: int = 20,
        distinct: bool = False,
    ) -> Contexts:
        """Return the tokens where a feature fires most (or least), each among its words.

        Parameters
        ----------
        feature : int
        k : int
            How many.
        bottom : bool
            The smallest activations above zero instead.
        words : int
            On each side.
        distinct : bool
            At most one token of each document.

        Raises
        ------
        FeatureError
            There is no such feature, or the set is not indexed.
        """
        find = self.bottom if bottom else self.top
        peaks = self._distinct(find, feature, k) if distinct else find(feature, k)
        count = self._count(feature)
        return contexts_of(
            self.store,
            peaks,
            words,
            title=f"{self.name}, feature {feature}",
            facts={
                "hookpoint": self.hookpoint,
                "tokens active": f"{count:,} of {self.store.plan.n_tokens:,}",
                "density": f"{count / self.store.plan.n_tokens:.3g}",
                "max": f"{self.max[feature]:.4g}",
                "shown": "smallest above zero" if bottom else "largest",
            },
            scale=float(self.max[feature]),
            shade=lambda start, stop: self.activations(feature, start, stop),
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per feature: count, density, mean, max."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("count", "density", "mean", "max")}
        return pd.DataFrame(columns, index=pd.RangeIndex(self.n_features, name="feature"))

    def check(self, feature: int) -> None:
        """Raise ``FeatureError`` where there is no such feature."""
        if not 0 <= feature < self.n_features:
            raise FeatureError(
                f"feature {feature}: {self.name!r} has features 0 to {self.n_features - 1}.",
                feature=feature,
            )

    def _distinct(self, find: Callable[[int, int], Peak], feature: int, k: int) -> Peak:
        n, wanted = self._count(feature), 4 * k
        while True:
            peaks = one_per_document(self.store, find(feature, wanted), k)
            if len(peaks.t) == k or wanted >= n:
                return peaks
            wanted *= 4

    def _count(self, feature: int) -> int:
        self.check(feature)
        return int(self._tables.features.n_active[feature])


def open_features(store: StoreReader, name: str) -> Features:
    """Open a set of features.

    Raises
    ------
    FeatureError
        There is no such set. The message says which there are.
    """
    try:
        if not re.fullmatch(NAME, name):
            raise FileNotFoundError(name)
        data = store.objects.read(spec_key(name))
    except FileNotFoundError as error:
        have = names(store)
        there = f"it has {', '.join(have)}" if have else "it has none"
        raise FeatureError(
            f"{store.path}: no features {name!r}; {there}. `actlas sae encode {store.path} --sae "
            "DIR` makes some.",
            name=name,
        ) from error
    spec = unseal(data, FeaturesSpec, f"{store.objects.url}/{spec_key(name)}")
    if spec.plan_sha256 != store.plan_sha256:
        raise FeatureError(
            f"{store.path}: features {name!r} were made for another plan "
            f"({spec.plan_sha256[:16]}…, this store's is {store.plan_sha256[:16]}…).",
            name=name,
        )
    return Features(store, spec, seal_of(data))
