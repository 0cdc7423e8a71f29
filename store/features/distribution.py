"""The distribution of a feature's, or a unit's, activations as a histogram."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from actlas.store.display.histogram import Histogram, histogram_of
from actlas.store.features.contexts import Peak

if TYPE_CHECKING:
    from actlas.store.read.reader import StoreReader

COUNTED, COUNTED_PARTS = 1 << 18, 64
"""Activations of a histogram, and runs of ranks that they come from where there are more."""

SAMPLED_ROWS = 1 << 12
"""Rows of the first shard that the histogram of a unit counts."""


def of_feature(
    ranked: Callable[[int, int, int], Peak], feature: int, n_active: int
) -> Histogram | None:
    """Return the histogram of a feature's activations above zero; None if it never fires.

    Parameters
    ----------
    ranked : callable of (feature, start, stop)
        Returns the tokens of ranks [start, stop) by falling activation.
    feature : int
        The feature.
    n_active : int
        The number of its activations. Of more than 262,144, evenly spaced runs are counted.
    """
    if n_active <= COUNTED:
        return histogram_of(ranked(feature, 0, n_active).value, "activations above zero")
    size = COUNTED // COUNTED_PARTS
    starts = np.linspace(0, n_active - size, COUNTED_PARTS).astype(int).tolist()
    values = [ranked(feature, start, start + size).value for start in starts]
    return histogram_of(np.concatenate(values), f"of {n_active:,} activations above zero")


def of_unit(store: StoreReader, hookpoint: str, unit: int) -> Histogram | None:
    """Return the histogram of a unit's activations over the first rows of a store.

    Parameters
    ----------
    store : StoreReader
        The store.
    hookpoint : str
        The hookpoint.
    unit : int
        The unit.
    """
    start, stop = store.shard_range(0)
    rows = store.activations[hookpoint][start : min(stop, start + SAMPLED_ROWS)]
    return histogram_of(rows[:, unit].astype(np.float32), "activations of the first rows")
