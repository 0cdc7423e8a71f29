"""What a store and a document hold, as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from actlas.store.errors import ConfigError, NotExtractedError
from actlas.store.ledger.feature_sets import names
from actlas.store.ledger.receipts import POOLED
from actlas.store.read.document import Document
from actlas.store.statistics.total import Statistics
from actlas.store.store import Store


def info_of(store: Store) -> dict[str, Any]:
    """Return a store's plan and statistics as plain values."""
    plan = store.plan
    done = store.done()
    return {
        "store": store.path,
        "plan": plan.model_dump(mode="json"),
        "n_shards": store.n_shards(),
        "n_shards_done": len(done),
        "n_pooled_shards": store.n_shards(POOLED),
        "n_pooled_shards_done": len(store.done(POOLED)) if plan.pools else 0,
        "token_columns": {n: list(v) for n, v in store.documents.token_column_names.items()},
        "n_stored_bytes": store.n_stored_bytes(),
        "features": [_features(store, name) for name in names(store)],
        "statistics": {h.name: _summary(store, h.name) for h in plan.hookpoints} if done else {},
    }


def _features(store: Store, name: str) -> dict[str, Any]:
    """Return what is said of a set of features, and how far it is."""
    features = store.features(name)
    state = "indexed" if features.indexed else "encoded" if features.encoded else "begun"
    return {**features.spec.model_dump(mode="json"), "state": state}


def _summary(store: Store, hookpoint: str) -> dict[str, float | None]:
    """Return a hookpoint's moments over all its units, in a few numbers.

    ``rms_norm`` is the root mean square L2 norm of a row, from the units' second moments;
    ``within_share`` the share of all units' sums of squares that lies within documents. None is
    what an earlier version did not gather.
    """
    moments = store.statistics(hookpoint)
    n = np.maximum(moments.n, 1)
    second = moments.m2 / n + moments.mean**2
    return {
        "n_rows": float(moments.n.max()),
        "mean_norm": moments.mean_norm,
        "rms_norm": float(np.sqrt(second.sum())),
        "norm_of_mean": float(np.linalg.norm(moments.mean)),
        "mean_std": float(np.mean(np.sqrt(moments.m2 / n))),
        "max_std": float(np.max(np.sqrt(moments.m2 / n))),
        "within_share": _within_share(moments),
        "min": float(np.nanmin(moments.min)) if moments.n.any() else float("nan"),
        "max": float(np.nanmax(moments.max)) if moments.n.any() else float("nan"),
    }


def _within_share(statistics: Statistics) -> float | None:
    total = float(statistics.m2.sum())
    if statistics.within_m2 is None or not total:
        return None
    return float(statistics.within_m2.sum()) / total


def show_of(store: Store, doc_idx: int, pos_idx: int | None) -> dict[str, Any]:
    """Return a document as plain values, with the L2 norm of every row.

    Raises
    ------
    ConfigError
        There is no such document, or no such token.
    """
    try:
        document = store.document(doc_idx)
        context = None if pos_idx is None else store.context(doc_idx, pos_idx)
    except IndexError as error:
        raise ConfigError(f"{store.path}: {error}", doc_idx=doc_idx, pos_idx=pos_idx) from error
    shown: dict[str, Any] = {
        "store": store.path,
        "doc_idx": doc_idx,
        "text": document.text,
        "label": document.label,
        "source": document.source.name,
        "record": document.source.record,
        "token_id": document.token_id.tolist(),
        "tokens": document.tokens,
        "columns": {name: list(values) for name, values in document.columns.items()},
        "norms": _norms(document),
        "pooled_norms": _pooled_norms(store, doc_idx),
    }
    if context is not None:
        shown["pos_idx"] = pos_idx
        shown["context"] = [context.before, context.token, context.after]
    return shown


def _norms(document: Document) -> dict[str, list[float]]:
    return {
        name: np.linalg.norm(document.activations[name].astype(np.float32), axis=1).tolist()
        for name in document.activations
    }


def _pooled_norms(store: Store, doc_idx: int) -> dict[str, dict[str, float]]:
    """Return, by hookpoint and pool, the L2 norm of the document's pooled row."""
    try:
        return {
            name: {pool: float(np.linalg.norm(array[doc_idx])) for pool, array in pools.items()}
            for name, pools in store.pooled.items()
        }
    except NotExtractedError:  # which `actlas status` tells; its tokens may have their rows
        return {}
