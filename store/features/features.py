"""``Features``: a set of feature activations of all tokens, read by token and by feature.

``features/<name>/tokens`` holds the activations by token: a CSR group per shard, with the tokens in
document order. ``features/<name>/index`` holds them by feature, each feature's activations in
descending order, so that the top, the bottom, a quantile, the count and the maximum of a feature
are slices, whatever the number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import table_html
from actlas.store.display.text import counted, did_you_mean
from actlas.store.errors import FeatureError
from actlas.store.extras import explains_missing
from actlas.store.features.codes import Codes
from actlas.store.features.contexts import Contexts, Peak, contexts_of, one_per_document
from actlas.store.features.distribution import of_feature
from actlas.store.features.tables import FeatureTables
from actlas.store.format import layout
from actlas.store.format.schema import FeaturesSpec
from actlas.store.format.sealing import seal_of
from actlas.store.format.validation import check_rising, check_span
from actlas.store.ledger.feature_sets import NAME, names, read_description, spec_key
from actlas.store.ledger.job_kinds import ENCODED, INDEXED

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float32, Float64, Int64

    from actlas.store.read.reader import StoreReader

STREAM_FEATURES = 7
"""The hash stream that orders features for :meth:`Features.some`."""


class Features:
    """A set of feature activations of a store. Get one with ``store.features(name)``.

    Attributes
    ----------
    name : str
        The set's name.
    hookpoint : str
        The hookpoint whose activations were encoded.
    n_features : int
        The number of features.
    spec : FeaturesSpec
        The set's record, with the sparse autoencoder that encoded it.

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
        """Whether the index by feature is complete."""
        return self._tables.written(INDEXED)

    def __len__(self) -> int:
        return self.n_features

    def __repr__(self) -> str:
        state = "indexed" if self.indexed else "encoded" if self.encoded else "not encoded whole"
        return (
            f"<{counted(self.n_features, 'feature')} {self.name!r} of {self.hookpoint} "
            f"({self.spec.sae_kind}), {state}>"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("features", f"{self.n_features:,} ({self.name})"),
            ("hookpoint", self.hookpoint),
            ("autoencoder", f"{self.spec.sae_kind}, {self.spec.sae_path}"),
            ("encoded, indexed", f"{_yes(self.encoded)}, {_yes(self.indexed)}"),
        ]
        if self.indexed:
            dead = int((self.count == 0).sum())
            rows.append(("never active", f"{dead:,}"))
        return table_html(rows)

    # By token

    def codes(self, start: int, stop: int) -> Codes:
        """Return the feature activations of tokens [start, stop) of the corpus.

        Raises
        ------
        FeatureError
            Not every token is encoded.
        IndexError
            The tokens are out of range.
        """
        plan = self.store.plan
        if not 0 <= start <= stop <= plan.n_tokens:
            raise IndexError(f"tokens [{start}, {stop}): this store has [0, {plan.n_tokens})")
        self._tables.require_encoded()
        parts: list[Codes] = []
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
            parts.append(Codes(first + lo, indptr - a, indices, group.data.read(a, b)))
        return Codes.joined(start, parts, self.n_features)

    def largest_shard(self) -> int:
        """Return the largest number of non-zero feature activations in one shard."""
        return int(np.diff(self._tables.tokens.nnz_start).max(initial=0))

    def activations(
        self, feature: int, start: int, stop: int
    ) -> Float32[NDArray[np.float32], " {stop-start}"]:
        """Return one feature's activation on tokens [start, stop); shape [stop - start]."""
        self.check(feature)
        return self.codes(start, stop).dense(feature)

    # By feature

    @property
    def count(self) -> Int64[NDArray[np.int64], " features"]:
        """The number of tokens on which each feature is above zero; shape [features]."""
        return self._tables.features.n_active

    @property
    def density(self) -> Float64[NDArray[np.float64], " features"]:
        """The share of tokens on which each feature is above zero; shape [features]."""
        density: NDArray[np.float64] = self._tables.features.n_active / self.store.plan.n_tokens
        return density

    @property
    def max(self) -> Float32[NDArray[np.float32], " features"]:
        """Each feature's largest activation; 0 if it never fires; shape [features]."""
        return self._tables.features.max

    @property
    def mean(self) -> Float64[NDArray[np.float64], " features"]:
        """Each feature's mean over the tokens on which it fires, NaN if none; shape [features]."""
        count = self._tables.features.n_active
        mean = np.full(len(count), np.nan)
        np.divide(self._tables.features.sum, count, out=mean, where=count > 0)
        return mean

    def top(self, feature: int, k: int = 20) -> Peak:
        """Return the tokens with the largest activations, descending; ties by ascending token.

        Parameters
        ----------
        feature : int
            The feature.
        k : int
            The maximum number of tokens.
        """
        n = self._count(feature)
        return self.ranked(feature, 0, min(k, n))

    def bottom(self, feature: int, k: int = 20) -> Peak:
        """Return the smallest activations above zero, ascending; ties by ascending token.

        Parameters
        ----------
        feature : int
            The feature.
        k : int
            The maximum number of tokens.
        """
        return self._tables.smallest(feature, min(k, self._count(feature)))

    def ranked(self, feature: int, start: int, stop: int) -> Peak:
        """Return the tokens of ranks [start, stop) of a feature, by descending activation.

        Raises
        ------
        IndexError
            The ranks are out of range.
        """
        n = self._count(feature)
        if not 0 <= start <= stop <= n:
            raise IndexError(
                f"ranks [{start}, {stop}): feature {feature} has {counted(n, 'token')}"
            )
        return self._tables.ranked(feature, start, stop)

    def quantile(self, feature: int, q: float) -> float:
        """Return a quantile of a feature's activations above zero.

        It is the smallest stored value with at least a share ``q`` of the values at or below it
        (numpy's ``method="inverted_cdf"``).

        Parameters
        ----------
        feature : int
            The feature.
        q : float
            The share, from 0 to 1.

        Raises
        ------
        FeatureError
            ``q`` is out of range, or the feature never fires.
        """
        n = self._count(feature)
        if not 0 <= q <= 1 or n == 0:
            raise FeatureError(
                f"quantile {q} of feature {feature}, which fires on {counted(n, 'token')}: "
                "expected a share from 0 to 1, and a feature that fires.",
                feature=feature,
            )
        rank = n - max(1, int(np.ceil(q * n)))
        return self._tables.value(feature, rank)

    def some(self, n: int = 3, seed: int = 0) -> list[int]:
        """Return some features to look at first, in a pseudorandom order given by the seed.

        They are drawn from the features that fire on 0.1 % to 5 % of the tokens if there are
        enough, else from all that ever fire: a feature that fires on most tokens, or on very few,
        is not typical.

        Parameters
        ----------
        n : int
            The maximum number of features.
        seed : int
            Determines the order.
        """
        typical = np.flatnonzero((self.density >= 1e-3) & (self.density <= 0.05))
        if len(typical) < n:
            typical = np.flatnonzero(self.count)
        order = np.argsort(layout.hash64(seed, STREAM_FEATURES, typical), kind="stable")
        return [int(feature) for feature in typical[order[:n]]]

    def contexts(
        self,
        feature: int,
        k: int = 20,
        *,
        bottom: bool = False,
        words: int = 20,
        distinct: bool = False,
    ) -> Contexts:
        """Return the tokens with a feature's largest activations, with words around them.

        Parameters
        ----------
        feature : int
            The feature.
        k : int
            The maximum number of tokens.
        bottom : bool
            Whether to return the smallest activations above zero instead.
        words : int
            The number of words on each side.
        distinct : bool
            Whether to return at most one token of each document.

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
            histogram=lambda: of_feature(self.ranked, feature, count),
        )

    @explains_missing
    def to_pandas(self) -> pd.DataFrame:
        """Return one row per feature: count, density, mean, max."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("count", "density", "mean", "max")}
        return pd.DataFrame(columns, index=pd.RangeIndex(self.n_features, name="feature"))

    def check(self, feature: int) -> None:
        """Raise ``FeatureError`` if there is no feature of this number."""
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


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def open_features(store: StoreReader, name: str) -> Features:
    """Open a set of feature activations.

    Parameters
    ----------
    store : StoreReader
        The store.
    name : str
        The set's name.

    Raises
    ------
    FeatureError
        The store has no such set. The message lists those that it has.
    CorruptDataError, FormatError
        Its description is not the one that was written, or that of another set.
    """
    try:
        if not re.fullmatch(NAME, str(name)):
            raise FileNotFoundError(name)
        data = store.objects.read(spec_key(name))
    except FileNotFoundError as error:
        have = names(store)
        known = f"it has {', '.join(have)}" if have else "it has none"
        near = did_you_mean(str(name), have)
        raise FeatureError(
            f"{store.path}: this store has no features {name!r}; {known}.{near} `actlas sae encode "
            f"{store.path} --sae DIR` encodes some.",
            name=name,
        ) from error
    spec = read_description(data, name, f"{store.objects.url}/{spec_key(name)}")
    if spec.plan_sha256 != store.plan_sha256:
        raise FeatureError(
            f"{store.path}: features {name!r} belong to another plan (got "
            f"{spec.plan_sha256[:16]}…, expected {store.plan_sha256[:16]}…). Encode them again.",
            name=name,
        )
    return Features(store, spec, seal_of(data))
