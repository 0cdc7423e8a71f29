"""Which shards follow on from their left neighbour: a sequence crosses the border between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actlas.store.store import Store


def follows(store: Store, shards: Sequence[int]) -> frozenset[int]:
    """Return those of the shards whose first tokens continue a sequence of the shard before.

    Whoever computed that one has the sequence's cache. A sequence of a model that is not causal is
    computed whole for either, so there is nothing to keep.
    """
    from actlas.pipeline.feeding import window_tokens

    plan = store.plan
    if not plan.model.causal or not shards:
        return frozenset()
    numbers = np.array([shard for shard in shards if shard], dtype=np.int64)
    borders = numbers * plan.shard_rows
    starts = store.documents.start[store.documents.find(borders)]
    return frozenset(numbers[(borders - starts) % window_tokens(plan) > 0].tolist())
