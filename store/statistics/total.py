"""``Statistics`` over all rows of a store, combined from those of its shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.statistics.moments import Moments
from actlas.store.statistics.shard import Part, ShardStatistics

if TYPE_CHECKING:
    from jaxtyping import Float64

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics(Moments):
    """The moments of every unit, its variance within documents, and the moments of row norms.

    The attributes below are None for stores of earlier versions.

    Attributes
    ----------
    within_m2 : ndarray of float64, shape [units]
        The sum of squared deviations of each value from its document's mean.
    n_documents : ndarray of float64, shape [units]
        The number of documents with a finite value.
    n_norms : float
        The number of rows without NaN and infinity.
    mean_norm, norm_m2 : float
        The mean of the L2 norms of these rows, and the sum of squared deviations from it.
    """

    within_m2: Float64[Array, " units"] | None = None
    n_documents: Float64[Array, " units"] | None = None
    n_norms: float | None = None
    mean_norm: float | None = None
    norm_m2: float | None = None

    def facts(self) -> list[tuple[str, str]]:
        """Return the ranges of the moments over all units and of the norms, as texts."""
        found = super().facts()
        if self.mean_norm is not None:
            found.append(("norm of a row", f"{self.mean_norm:.4g}"))
        return found

    def __repr__(self) -> str:
        return super().__repr__()

    @property
    def within_document_variance(self) -> Float64[Array, " units"] | None:
        """The unbiased variance within documents, ``within_m2 / (n - n_documents)``; [units].

        It is NaN if no document has two values.
        """
        if self.within_m2 is None or self.n_documents is None:
            return None
        freedom = self.n - self.n_documents
        nan = np.full_like(self.within_m2, np.nan)
        return np.divide(self.within_m2, freedom, out=nan, where=freedom > 0)

    @property
    def between_m2(self) -> Float64[Array, " units"] | None:
        """The sum of squares between documents, ``m2 - within_m2``; shape [units]."""
        return None if self.within_m2 is None else np.maximum(self.m2 - self.within_m2, 0)

    @property
    def between_share(self) -> Float64[Array, " units"] | None:
        """The share ``between_m2 / m2``, NaN if m2 is 0; shape [units]."""
        between = self.between_m2
        if between is None:
            return None
        return np.divide(between, self.m2, out=np.full_like(self.m2, np.nan), where=self.m2 > 0)

    @property
    def norm_std(self) -> float | None:
        """The unbiased standard deviation of the rows' norms; NaN for fewer than two rows."""
        if self.norm_m2 is None or self.n_norms is None:
            return None
        return float(np.sqrt(self.norm_m2 / (self.n_norms - 1))) if self.n_norms > 1 else np.nan


class Border(NamedTuple):
    """The documents that cross a shard's borders.

    Attributes
    ----------
    left : int or None
        The document that crosses the left border.
    right : int or None
        The document that crosses only the right border.
    """

    left: int | None
    right: int | None


def combine(shards: Iterable[tuple[Border, ShardStatistics]]) -> Statistics:
    """Return the statistics of all rows of some shards.

    The parts of a document that lies in several shards are combined first. If a shard between them
    is missing, the parts before and after it are combined.

    Parameters
    ----------
    shards : iterable of (Border, ShardStatistics)
        The shards in ascending order.

    Raises
    ------
    ValueError
        There is no shard.
    """
    total: Moments | None = None
    within: Array | None = None
    found: Array | None = None
    norms: Part | None = None
    opened: tuple[int, Part] | None = None
    for border, shard in shards:
        total = shard.moments if total is None else Moments.combine([total, shard.moments])
        if shard.left is None or shard.right is None or shard.norms is None:
            continue
        within, found = _sum(within, shard.within_m2), _sum(found, shard.n_documents)
        norms = shard.norms if norms is None else norms.plus(shard.norms)
        for document, part in ((border.left, shard.left), (border.right, shard.right)):
            if document is None:
                continue
            if opened is not None and opened[0] == document:
                opened = document, opened[1].plus(part)
                continue
            if opened is not None:
                within, found = _sum(within, opened[1].m2), _sum(found, opened[1].n > 0)
            opened = document, part
    if total is None:
        raise ValueError("expected statistics of at least one shard, got none")
    if opened is not None:
        within, found = _sum(within, opened[1].m2), _sum(found, opened[1].n > 0)
    moments = {name: getattr(total, name) for name in ("n", "mean", "m2", "min", "max")}
    if norms is None:
        return Statistics(**moments)
    n_norms, mean_norm, norm_m2 = (float(field[0]) for field in norms)
    if not n_norms:
        mean_norm = float("nan")
    return Statistics(
        **moments,
        within_m2=within,
        n_documents=found,
        n_norms=n_norms,
        mean_norm=mean_norm,
        norm_m2=norm_m2,
    )


def _sum(a: Array | None, b: NDArray[Any] | None) -> Array | None:
    return a if b is None else b.astype(np.float64) if a is None else a + b
