"""``Moments``: per-unit n, mean, m2, min and max that combine exactly.

The moments of two sets of rows combine into those of their union (Chan, Golub and LeVeque 1979,
"Updating formulae and a pairwise algorithm for computing sample variances"), so no sum of squares
of large means is ever formed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import table_html
from actlas.store.extras import explains_missing

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Float64

BLOCK_VALUES = 1 << 18
"""The number of values of a block: 2 MiB in float64."""


@dataclass(frozen=True)
class Moments:
    """The moments of every unit over some rows, in float64; each of shape [units].

    Attributes
    ----------
    n : ndarray
        The number of finite values. NaN and infinity are excluded from the other moments too.
    mean, m2 : ndarray
        The mean, and the sum of squared deviations from it.
    min, max : ndarray
        The smallest and the largest value; NaN if n is 0.
    """

    n: Float64[NDArray[np.float64], " units"]
    mean: Float64[NDArray[np.float64], " units"]
    m2: Float64[NDArray[np.float64], " units"]
    min: Float64[NDArray[np.float64], " units"]
    max: Float64[NDArray[np.float64], " units"]

    @property
    def variance(self) -> Float64[NDArray[np.float64], " units"]:
        """The unbiased variance, m2 / (n - 1), shape [units]; NaN for fewer than two values."""
        return np.divide(self.m2, self.n - 1, out=np.full_like(self.m2, np.nan), where=self.n > 1)

    @property
    def std(self) -> Float64[NDArray[np.float64], " units"]:
        """The square root of the unbiased variance; shape [units]."""
        return np.sqrt(self.variance)

    def facts(self) -> list[tuple[str, str]]:
        """Return the ranges of the moments over all units, as names and texts."""
        ranges = {"mean": self.mean, "std": self.std, "min": self.min, "max": self.max}
        found = [("units", f"{len(self.n):,}"), ("rows", f"{self.n.max(initial=0):,.0f}")]
        for name, values in ranges.items():
            finite = values[np.isfinite(values)]
            text = f"{finite.min():.4g} to {finite.max():.4g}" if len(finite) else "none"
            found.append((name, text))
        return found

    @explains_missing
    def to_pandas(self) -> pd.DataFrame:
        """Return one row per unit: n, mean, std, min and max."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("n", "mean", "std", "min", "max")}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self.n), name="unit"))

    def __repr__(self) -> str:
        (_, units), (_, rows), *ranges = self.facts()
        shown = ", ".join(f"{name} {text}" for name, text in ranges)
        return f"<{type(self).__name__.lower()} of {units} units over {rows} rows: {shown}>"

    def _repr_html_(self) -> str:
        return table_html(self.facts())

    @classmethod
    def of(cls, rows: Float[NDArray[Any], "rows units"]) -> Moments:
        """Return the moments of rows, computed block by block in float64.

        Each block and the two buffers, which are reused, stay in the CPU's cache.

        Parameters
        ----------
        rows : ndarray, shape [n, units]
            Activations in any floating-point dtype.
        """
        n_units = rows.shape[1]
        block_rows = max(16, BLOCK_VALUES // max(1, n_units))
        wide = np.float32 if rows.dtype.itemsize < 8 else np.float64
        values = np.empty((min(block_rows, len(rows)), n_units), wide)
        deviation = np.empty(values.shape, np.float64)
        blocks = (rows[i : i + block_rows] for i in range(0, len(rows), block_rows))
        parts = []
        for block in blocks:
            values[: len(block)] = block
            parts.append(cls.of_block(values[: len(block)], deviation[: len(block)]))
        return cls.combine(parts)

    @classmethod
    def of_block(
        cls,
        values: Float[NDArray[Any], "rows units"],
        deviation: Float64[NDArray[np.float64], "rows units"],
    ) -> Moments:
        """Return the moments of one block of rows.

        Parameters
        ----------
        values : ndarray of float, shape [n, units]
            The rows.
        deviation : ndarray of float64, shape [n, units]
            A buffer that is overwritten.
        """
        lowest, highest = values.min(axis=0), values.max(axis=0)  # both are NaN if a value is NaN
        if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
            return cls._of_the_finite(values)
        n = len(values)
        # Deviations are taken from the first row, not from zero, so that no large mean is squared.
        # The first row's own deviation is part of m2: the subtrahend is at most n times the rest.
        np.subtract(values, values[0], out=deviation, dtype=np.float64)
        mean = deviation.sum(axis=0) / n
        np.multiply(deviation, deviation, out=deviation)
        m2 = np.maximum(deviation.sum(axis=0) - n * mean * mean, 0)
        mean += values[0]
        n_units = values.shape[1]
        return cls(
            np.full(n_units, n, np.float64),
            mean,
            m2,
            lowest.astype(np.float64),
            highest.astype(np.float64),
        )

    @classmethod
    def _of_the_finite(cls, values: NDArray[Any]) -> Moments:
        finite = np.isfinite(values)
        n = finite.sum(axis=0).astype(np.float64)
        total = values.sum(axis=0, dtype=np.float64, where=finite)
        lowest = np.where(finite, values, np.inf).min(axis=0)
        highest = np.where(finite, values, -np.inf).max(axis=0)
        mean = np.divide(total, n, out=np.zeros_like(total), where=n > 0)
        deviation = np.where(finite, values, mean) - mean  # float64
        m2 = np.einsum("ij,ij->j", deviation, deviation)
        empty = n == 0
        return cls(
            n,
            mean,
            m2,
            np.where(empty, np.nan, lowest.astype(np.float64)),
            np.where(empty, np.nan, highest.astype(np.float64)),
        )

    @classmethod
    def combine(cls, parts: Iterable[Moments]) -> Moments:
        """Return the moments of the rows of all parts together."""
        total: Moments | None = None
        for part in parts:
            total = part if total is None else total._plus(part)
        if total is None:
            raise ValueError("expected moments of at least one row, got none")
        return total

    def _plus(self, other: Moments) -> Moments:
        n = self.n + other.n
        share = np.divide(other.n, n, out=np.zeros_like(n), where=n > 0)
        delta = other.mean - self.mean
        return Moments(
            n,
            self.mean + delta * share,
            self.m2 + other.m2 + delta * delta * self.n * share,
            np.fmin(self.min, other.min),
            np.fmax(self.max, other.max),
        )
