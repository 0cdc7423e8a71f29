"""Welch's t-test from moments, for every unit at once; pure arithmetic in float64.

Source: Welch 1947, "The generalization of 'Student's' problem when several different population
variances are involved"; degrees of freedom by Satterthwaite 1946. Selection as in AlKhamissi et al.
2025 (arXiv 2411.02280): the largest t over all units of all layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConfigError
from actlas.store.statistics.moments import Moments

Float = NDArray[np.float64]


class Welch(NamedTuple):
    """The test of every unit; each of shape [units].

    Attributes
    ----------
    t : ndarray
        (mean of the positive - mean of the negative) / its standard error. NaN where both are
        constant and equal, infinite where both are constant and differ.
    df : ndarray
        Welch-Satterthwaite degrees of freedom; 1 where both are constant, as scipy has it.
    p : ndarray
        Two-sided.
    cohen_d : ndarray
        The difference of the means in pooled standard deviations: the size of the effect, which
        does not grow with the number of documents.
    """

    t: Float
    df: Float
    p: Float
    cohen_d: Float


def welch(positive: Moments, negative: Moments) -> Welch:
    """Test every unit: as ``scipy.stats.ttest_ind(positive, negative, equal_var=False)``.

    Units with fewer than two values in a condition are NaN in everything. No warning is raised.

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
        # By shares of the squared standard error: its fourth power would underflow.
        share = a / (a + b)
        df = 1 / (share**2 / (n_a - 1) + (1 - share) ** 2 / (n_b - 1))
        df = np.where(a + b == 0, 1.0, df)
        p = 2 * stats.t.sf(np.abs(t), df)
        cohen_d = difference / np.sqrt((positive.m2 + negative.m2) / (n_a + n_b - 2))
    return Welch(*(np.where(enough, x, np.nan) for x in (t, df, p, cohen_d)))


def benjamini_hochberg(p: Float) -> Float:
    """Return q: p adjusted for the false discovery rate over all finite p; NaN stays NaN.

    Source: Benjamini and Hochberg 1995; ``scipy.stats.false_discovery_control``, which refuses an
    array with one NaN in it.
    """
    from scipy import stats

    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested])
    return q


def count_of(top: str | int, n_units: int) -> int:
    """Return how many units ``"1%"`` or ``128`` of all ``n_units`` are.

    A share is ``int(percent / 100 * n_units)``, as the published code has it, and at least 1.

    Raises
    ------
    ConfigError
        It is neither, or not in (0, 100] % or [1, n_units].

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
    raise ConfigError(
        f"top: got {text!r}, expected a share such as 1% (above 0%, at most 100%) or a count such "
        f"as 128 (from 1 to the {n_units:,} units that are tested)",
        top=text,
    )


def select(t: Float, k: int) -> NDArray[np.int64]:
    """Return the places of the ``k`` largest t, largest first; never more, and never NaN.

    Of equal t the one at the lower place comes first.

    Examples
    --------
    >>> select(np.array([1.0, np.nan, 3.0, 1.0, 3.0]), 3).tolist()
    [2, 4, 0]
    """
    order = np.argsort(-t, kind="stable")  # NaN is last
    return order[: min(k, int((~np.isnan(t)).sum()))]
