"""Rules that compare an array that exists already with the one that this attempt would write.

Each rule returns a function of the stored rows: it says why they do not match, or returns None.
The row columns follow from the plan and must be equal. What a model gave may differ by rounding:
another kernel or another processor sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Shaped

Rule = Callable[[NDArray[Any]], str | None]
"""Says why stored rows do not match, or returns None."""

ADOPT_TOLERANCE = {"float32": 1e-2, "float16": 1e-1, "bfloat16": 1e-1}
"""The largest difference between a stored row and ours, as a share of the row's L2 norm.

Kernels that round differently stay far below it; another model, or damage, is far above.
"""

ROWS_PER_BLOCK = 1024
"""Rows that are compared at once, in float32."""


def equal_rows(rows: Shaped[NDArray[Any], "*shape"]) -> Rule:
    """Require what follows from the plan: the stored rows must be equal to these."""

    def rule(stored: NDArray[Any]) -> str | None:
        if np.array_equal(stored, rows):
            return None
        return (
            "exists already with other rows than this plan gives. Remove that file if no "
            "run of another version is writing here."
        )

    return rule


def close_rows(rows: Shaped[NDArray[Any], "rows units"], tolerance: float) -> Rule:
    """Require activations that are the same up to rounding.

    Parameters
    ----------
    rows : ndarray, shape [rows, units]
        What this attempt's model gave.
    tolerance : float
        The largest difference of a row, as a share of its L2 norm.
    """

    def rule(stored: NDArray[Any]) -> str | None:
        bad = first_mismatch(stored, rows, tolerance)
        if bad is None:
            return None
        return (
            f"exists already, and its row {bad} differs from what this model gives by "
            f"more than {tolerance:g} of its norm. It is damaged, or of another model. "
            "Remove that file and the shard's statistics, then run the same command again with "
            "--retry-quarantined."
        )

    return rule


def close_losses(losses: Float32[NDArray[np.float32], " rows"], tolerance: float) -> Rule:
    """Require losses that are the same up to rounding.

    Parameters
    ----------
    losses : ndarray of float32, shape [rows]
        What this attempt's model gave, in nats; NaN where a token has no next one.
    tolerance : float
        Relative and absolute.
    """

    def rule(stored: NDArray[Any]) -> str | None:
        if np.allclose(stored, losses, tolerance, tolerance, equal_nan=True):
            return None
        return (
            "exists already, and differs from the losses that this model gives. It is "
            "damaged, or of another model. Remove that file, then run the same command again "
            "with --retry-quarantined."
        )

    return rule


def close_statistics(table: Float64[NDArray[np.float64], "1 statistics units"]) -> Rule:
    """Require statistics that are the same up to 1e-9 of each unit's largest number."""

    def rule(stored: NDArray[Any]) -> str | None:
        rounding = 1e-9 * np.nanmax(np.abs(table), axis=1, keepdims=True)
        if np.allclose(stored, table, 0, rounding, equal_nan=True):
            return None
        return (
            "exists already and is not the statistics of its rows. Remove that file, then "
            "run the same command again with --retry-quarantined."
        )

    return rule


def first_mismatch(
    stored: Shaped[NDArray[Any], "rows units"],
    rows: Shaped[NDArray[Any], "rows units"],
    tolerance: float,
) -> int | None:
    """Return the first row whose difference exceeds ``tolerance`` of its norm, or None.

    NaN and infinity are compared by their places: a row that has them where the other has not does
    not match it.

    Parameters
    ----------
    stored, rows : ndarray, shape [rows, units]
        What is there, and what should be.
    tolerance : float
        The largest difference, as a share of the row's L2 norm.
    """
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        a = stored[start : start + ROWS_PER_BLOCK].astype(np.float32)
        b = rows[start : start + ROWS_PER_BLOCK].astype(np.float32)
        finite = np.isfinite(b)
        bad = (np.isfinite(a) != finite).any(axis=1)
        a, b = np.where(finite, a, 0), np.where(finite, b, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.linalg.norm(a - b, axis=1)
            bad |= distance > tolerance * np.linalg.norm(b, axis=1) + 1e-30
        if bad.any():
            return start + int(np.argmax(bad))
    return None
