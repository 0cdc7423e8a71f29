"""Welch's t-test from moments, for every unit at once; pure arithmetic in float64.

Source: Welch 1947, "The generalization of 'Student's' problem when several different population
variances are involved"; degrees of freedom by Satterthwaite 1946. Selection as in AlKhamissi et al.
2025 (arXiv 2411.02280): the largest t over all units of all layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.text import counted
from actlas.store.errors import ConfigError
from actlas.store.statistics.moments import Moments

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64


class Welch(NamedTuple):
    """The results of Welch's t-test for every unit.

    Attributes
    ----------
    t : ndarray of float64, shape [units]
        (mean of the positive condition - mean of the negative) / its standard error. NaN where both
        conditions are constant and equal, infinite where they are constant and differ.
    df : ndarray of float64, shape [units]
        Welch-Satterthwaite degrees of freedom; 1 where both conditions are constant, as in scipy.
    p : ndarray of float64, shape [units]
        Two-sided p-value.
    cohen_d : ndarray of float64, shape [units]
        Difference of the means in pooled standard deviations: the effect size, which does not grow
        with the number of documents.
    """

    t: NDArray[np.float64]
    df: NDArray[np.float64]
    p: NDArray[np.float64]
    cohen_d: NDArray[np.float64]


def welch(positive: Moments, negative: Moments) -> Welch:
    """Test every unit, as ``scipy.stats.ttest_ind(positive, negative, equal_var=False)`` does.

    Units with fewer than two values in a condition have NaN in all results, without a warning.

    Parameters
    ----------
    positive, negative : Moments, shape [units]
        The moments of the two conditions.

    Examples
    --------
    >>> a = Moments.of(np.array([[1.0], [2.0], [3.0]]))
    >>> b = Moments.of(np.array([[0.0], [0.0], [1.5]]))
    >>> [round(float(x[0]), 4) for x in welch(a, b)]
    [1.964, 3.92, 0.1224, 1.6036]
    """
    from scipy import stats

    n_a, n_b = positive.n, negative.n
    enough = (n_a >= 2) & (n_b >= 2)
    with np.errstate(all="ignore"):
        difference = positive.mean - negative.mean
        a = positive.m2 / (n_a - 1) / n_a
        b = negative.m2 / (n_b - 1) / n_b
        t = difference / np.sqrt(a + b)
        # Relative to the squared standard error, whose square could underflow.
        share = a / (a + b)
        df = 1 / (share**2 / (n_a - 1) + (1 - share) ** 2 / (n_b - 1))
        df = np.where(a + b == 0, 1.0, df)
        p = 2 * stats.t.sf(np.abs(t), df)
        cohen_d = difference / np.sqrt((positive.m2 + negative.m2) / (n_a + n_b - 2))
    return Welch(*(np.where(enough, x, np.nan) for x in (t, df, p, cohen_d)))


def benjamini_hochberg(
    p: Float64[NDArray[np.float64], " units"],
) -> Float64[NDArray[np.float64], " units"]:
    """Return q-values: p adjusted for the false discovery rate over all finite p; NaN stays NaN.

    Parameters
    ----------
    p : ndarray of float64, shape [units]
        p-values; NaN for units that were not tested.

    Notes
    -----
    Source: Benjamini and Hochberg 1995; ``scipy.stats.false_discovery_control``, which does not
    accept NaN.
    """
    from scipy import stats

    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested])
    return q


def count_of(top: str | int, n_units: int) -> int:
    """Return the number of units that a share or a count stands for.

    A share is ``int(percent / 100 * n_units)``, as in the published code, and at least 1.

    Parameters
    ----------
    top : str or int
        ``"1%"`` or ``128``.
    n_units : int
        Number of tested units.

    Raises
    ------
    ConfigError
        ``top`` is neither a share in (0, 100] % nor a count in [1, n_units].

    Examples
    --------
    >>> count_of("1%", 1536), count_of("0.001%", 1536), count_of(128, 1536)
    (15, 1, 128)
    """
    text = str(top).strip()
    try:
        if text.endswith("%"):
            percent = float(text[:-1])
            if math.isfinite(percent) and 0 < percent <= 100:
                return max(1, int(percent / 100 * n_units))
        elif 1 <= int(text) <= n_units:
            return int(text)
    except ValueError:
        pass
    hint = ""
    try:
        if 0 < float(text) < 1:
            hint = f". The share {text} is {100 * float(text):g}%"
    except ValueError:
        pass
    raise ConfigError(
        f"top: got {text!r}, expected a share such as 1% (above 0%, at most 100%) or a count such "
        f"as 128 (from 1 to the {counted(n_units, 'unit')} that are tested){hint}",
        top=text,
    )


def select(
    t: Float64[NDArray[np.float64], " units"], k: int
) -> Int64[NDArray[np.int64], " selected"]:
    """Return the indices of the largest t, largest first. NaN is never selected.

    Of equal t, the one with the lower index comes first.

    Parameters
    ----------
    t : ndarray of float64, shape [units]
        Statistics; NaN for units that were not tested.
    k : int
        Largest number of indices.

    Examples
    --------
    >>> select(np.array([1.0, np.nan, 3.0, 1.0, 3.0]), 3).tolist()
    [2, 4, 0]
    """
    order = np.argsort(-t, kind="stable")  # NaN is last
    return order[: min(k, int((~np.isnan(t)).sum()))]
