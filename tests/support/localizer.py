"""Labelled stores of made-up activations, and their pooled samples worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.store import Store
from actlas.store.write.commit import commit_shard
from support.stores import Columns, create, plan_for, truth

LABELS = ("S", "N", "other")


def labelled(
    lengths: Sequence[int], codes: Sequence[int] | NDArray[Any], names: Sequence[str] = LABELS
) -> Columns:
    """Documents of these many tokens and labels; -1 for none."""
    tokens = [[(5, i) for i in range(n)] for n in lengths]
    texts = ["x" * n for n in lengths]
    return Columns(texts, tokens, label=np.asarray(codes, np.int32), label_names=tuple(names))


def stored(
    path: Path, columns: Columns, by_t: Mapping[str, NDArray[Any]] | None = None, **plan: Any
) -> tuple[Store, dict[str, NDArray[Any]]]:
    """A store of these activations by ``t`` (random ones where none are given), and them."""
    store = create(path, plan_for(columns, **{"dtype": "float32", **plan}), columns)
    values = {name: truth(store, name) for name in store.activations} | dict(by_t or {})
    for shard in range(store.plan.n_shards):
        start, stop = store.shard_range(shard)
        t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
        commit_shard(store, shard, {n: v[t] for n, v in values.items()}, attempt="test")
    return store, values


def samples_by_hand(
    store: Store, by_t: NDArray[Any], group: int, pool: str, signed: bool
) -> NDArray[np.float64]:
    """One condition's pooled samples, document by document; shape [documents, units]."""
    start, codes = store.documents.start, store.documents.label_codes
    found = []
    for doc, code in enumerate(codes if codes is not None else ()):
        rows = by_t[start[doc] : start[doc + 1]].astype(np.float64)
        if code == group and len(rows):
            sample = rows[-1] if pool == "last" else np.mean(rows, axis=0)
            found.append(sample if signed else np.abs(sample))
    return np.array(found).reshape(len(found), by_t.shape[1])
