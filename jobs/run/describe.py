"""Contents of a store and of a document."""

from __future__ import annotations

import numpy as np

from actlas.jobs.run.reports.contents import (
    FeaturesEntry,
    HookpointStatistics,
    InfoReport,
    ShowReport,
)
from actlas.store.errors import ConfigError, NotExtractedError
from actlas.store.ledger.feature_sets import names
from actlas.store.ledger.model_files import read_model_files
from actlas.store.ledger.receipts import POOLED
from actlas.store.read.document import Document
from actlas.store.statistics.total import Statistics
from actlas.store.store import Store


def info_of(store: Store) -> InfoReport:
    """Return a store's plan, progress, features and statistics.

    Parameters
    ----------
    store : Store
        The store.
    """
    plan = store.plan
    done = store.done()
    files = read_model_files(store.objects, store.plan_file)
    return InfoReport(
        store=store.path,
        plan=plan,
        n_shards=store.n_shards(),
        n_shards_done=len(done),
        n_pooled_shards=store.n_shards(POOLED),
        n_pooled_shards_done=len(store.done(POOLED)) if plan.pools else 0,
        corpus_left_out=files.corpus_left_out if files else (),
        token_columns={n: list(v) for n, v in store.documents.token_column_names.items()},
        n_stored_bytes=store.n_stored_bytes(),
        features=[_features(store, name) for name in names(store)],
        statistics={h.name: _summary(store, h.name) for h in plan.hookpoints} if done else {},
    )


def _features(store: Store, name: str) -> FeaturesEntry:
    """Return a set of features with its progress."""
    features = store.features(name)
    state = "indexed" if features.indexed else "encoded" if features.encoded else "begun"
    return FeaturesEntry(**features.spec.model_dump(), state=state)


def _summary(store: Store, hookpoint: str) -> HookpointStatistics:
    """Return a hookpoint's moments over all units, summarized in a few numbers.

    ``rms_norm`` is the root mean square L2 norm of a row, from the units' second moments;
    ``within_share`` is the share of all units' sums of squares that lies within documents. None
    marks numbers that stores of an early version did not record.
    """
    moments = store.statistics(hookpoint)
    n = np.maximum(moments.n, 1)
    second = moments.m2 / n + moments.mean**2
    return HookpointStatistics(
        n_rows=float(moments.n.max()),
        mean_norm=moments.mean_norm,
        rms_norm=float(np.sqrt(second.sum())),
        norm_of_mean=float(np.linalg.norm(moments.mean)),
        mean_std=float(np.mean(np.sqrt(moments.m2 / n))),
        max_std=float(np.max(np.sqrt(moments.m2 / n))),
        within_share=_within_share(moments),
        min=float(np.nanmin(moments.min)) if moments.n.any() else float("nan"),
        max=float(np.nanmax(moments.max)) if moments.n.any() else float("nan"),
    )


def _within_share(statistics: Statistics) -> float | None:
    total = float(statistics.m2.sum())
    if statistics.within_m2 is None or not total:
        return None
    return float(statistics.within_m2.sum()) / total


def show_of(store: Store, doc_idx: int, pos_idx: int | None) -> ShowReport:
    """Return a document with its text and tokens, and the L2 norm of every row.

    Parameters
    ----------
    store : Store
        The store.
    doc_idx : int
        Index of the document.
    pos_idx : int or None
        Position of a token to return with its context; None for no token.

    Raises
    ------
    ConfigError
        The store has no such document, or the document has no such token.
    """
    try:
        document = store.document(doc_idx)
        context = None if pos_idx is None else store.context(doc_idx, pos_idx)
    except IndexError as error:
        raise ConfigError(f"{store.path}: {error}", doc_idx=doc_idx, pos_idx=pos_idx) from error
    return ShowReport(
        store=store.path,
        doc_idx=doc_idx,
        text=document.text,
        label=document.label,
        source=document.source.name,
        record=document.source.record,
        token_id=document.token_id.tolist(),
        tokens=document.tokens,
        columns={name: list(values) for name, values in document.columns.items()},
        norms=_norms(document),
        pooled_norms=_pooled_norms(store, doc_idx),
        pos_idx=pos_idx,
        context=None if context is None else (context.before, context.token, context.after),
    )


def _norms(document: Document) -> dict[str, list[float]]:
    return {
        name: np.linalg.norm(document.activations[name].astype(np.float32), axis=1).tolist()
        for name in document.activations
    }


def _pooled_norms(store: Store, doc_idx: int) -> dict[str, dict[str, float]]:
    """Return the L2 norm of the document's pooled rows by hookpoint and pooling."""
    try:
        return {
            name: {pool: float(np.linalg.norm(array[doc_idx])) for pool, array in pools.items()}
            for name, pools in store.pooled.items()
        }
    except NotExtractedError:  # `actlas status` reports it; the token rows may exist
        return {}
