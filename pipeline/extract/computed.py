"""What an extractor has computed of a shard and not yet written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.write.outputs import PooledRows


@dataclass(frozen=True, slots=True)
class ComputedShard:
    """The activations of one shard, computed and not yet written.

    Attributes
    ----------
    shard : int
        The shard, from 0.
    activations : dict of str to ndarray, shape [rows of the shard, units]
        By hookpoint, in the plan's dtype and in storage order.
    run : dict
        Facts about the computation, for the receipt.
    loss : ndarray of float32, shape [rows of the shard], or None
        The next-token loss of each row in nats, where the plan includes it.
    """

    shard: int
    activations: dict[str, NDArray[Any]]
    run: dict[str, Any]
    loss: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class ComputedPooledShard:
    """The pooled rows of one shard, computed and not yet written.

    Attributes
    ----------
    shard : int
        The shard, from 0.
    pooled : dict of (hookpoint, pool) to ndarray of float32, shape [documents, units]
        The pooled rows.
    run : dict
        Facts about the computation, for the receipt.
    """

    shard: int
    pooled: PooledRows
    run: dict[str, Any]
