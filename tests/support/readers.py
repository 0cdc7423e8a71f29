"""Every reader of the API, with the files that it reads and the jobs whose receipts it rests on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import actlas
from actlas.analysis.features.encode import Encoder
from actlas.analysis.features.extremes import gather_extremes
from actlas.analysis.features.index_plan import silent, totals_of
from actlas.analysis.sae.saelens_format import load_sae
from actlas.jobs.run.describe import info_of, show_of
from actlas.store.store import Store
from support.state_machine import FEATURES, HOOKPOINT

ROWS = (f"activations/{HOOKPOINT}",)
COLUMNS = tuple(
    f"rows/{name}" for name in ("token_id", "doc_idx", "pos_idx", "special", "loss", "role")
)
CODES = ("features/TOKENS/indptr", "features/TOKENS/indices", "features/TOKENS/data")
INDEX = ("features/INDEX/indptr", "features/INDEX/indices", "features/INDEX/data")
TABLES = ("features/INDEXED/count", "features/INDEXED/sum", "features/INDEXED/max")
TEXT = ("documents/text", "documents/text_start", "documents/char_start", "documents/token_id")


class Reader(NamedTuple):
    """A reader.

    Attributes
    ----------
    read : callable
        Reads the whole store, as a user does.
    arrays : tuple of str
        Arrays of which it reads every file.
    jobs : tuple of str
        Jobs of which it needs every receipt.
    """

    read: Callable[[Store], object]
    arrays: tuple[str, ...]
    jobs: tuple[str, ...] = ()


def _documents(store: Store) -> list[Any]:
    return [store.document(i) for i in range(len(store.documents))]


def _encode(store: Store) -> None:
    sae = load_sae(Path(store.path).parent / FEATURES)
    encoder = Encoder(store, store.features(FEATURES), sae)
    for shard in range(store.plan.n_shards):
        encoder.encode(shard)


def _of_features(ask: str, **more: Any) -> Callable[[Store], object]:
    def read(store: Store) -> object:
        features = store.features(FEATURES)
        active = [feature for feature in range(len(features)) if features.count[feature]]
        return [getattr(features, ask)(feature, **more) for feature in active]

    return read


def _of_units(store: Store) -> list[Any]:
    units = store.units(HOOKPOINT)
    return [(units.top(unit, 3), units.bottom(unit, 3)) for unit in range(len(units))]


def _localize(contrast: str, pool: str) -> Callable[[Store], object]:
    def read(store: Store) -> object:
        return actlas.localize(
            store, contrast, pool=pool, hookpoints=HOOKPOINT, scheduler="synchronous"
        )

    return read


EXTRACTED = ("extract",)
ENCODED = (f"encode.{FEATURES}", f"encoded.{FEATURES}")
INDEXED = (f"index.{FEATURES}", f"indexed.{FEATURES}")

READERS = {
    "rows": Reader(lambda s: s.rows[:], COLUMNS, EXTRACTED),
    "rows, some": Reader(lambda s: s.rows[list(range(0, len(s.rows), 5))], COLUMNS, EXTRACTED),
    "rows as a table": Reader(lambda s: s.rows.to_pandas(), COLUMNS, EXTRACTED),
    "activations": Reader(lambda s: s.activations[HOOKPOINT][:], ROWS, EXTRACTED),
    "activations, some": Reader(lambda s: s.activations[HOOKPOINT][::3], ROWS, EXTRACTED),
    "activations, all in turn": Reader(lambda s: [*s.activations[HOOKPOINT]], ROWS, EXTRACTED),
    "batches": Reader(
        lambda s: [*actlas.batches(s, HOOKPOINT, batch_size=8, special=True)], ROWS, EXTRACTED
    ),
    "batches without special tokens": Reader(
        lambda s: [*actlas.batches(s, HOOKPOINT, batch_size=8)],
        (*ROWS, "rows/special"),
        EXTRACTED,
    ),
    "a Dask array": Reader(
        lambda s: actlas.dask_array(s, HOOKPOINT).sum().compute(scheduler="synchronous"),
        ROWS,
        EXTRACTED,
    ),
    "statistics": Reader(
        lambda s: s.statistics(HOOKPOINT), (f"statistics/{HOOKPOINT}",), EXTRACTED
    ),
    "info": Reader(info_of, (f"statistics/{HOOKPOINT}",), EXTRACTED),
    "documents": Reader(
        _documents, (*TEXT, "documents/source", "documents/record", "documents/label")
    ),
    "documents as a table": Reader(
        lambda s: s.documents.to_pandas(), ("documents/start", "documents/label")
    ),
    "a column of tokens": Reader(
        lambda s: s.documents.token_column("role", 0, s.plan.n_tokens), ("documents/role",)
    ),
    "activations of documents": Reader(
        lambda s: [d.activations[HOOKPOINT] for d in _documents(s)], ROWS, EXTRACTED
    ),
    "show": Reader(
        lambda s: [show_of(s, i, None) for i in range(len(s.documents))],
        (*ROWS, f"pooled/{HOOKPOINT}/mean"),
        ("extract", "pooled"),
    ),
    "context": Reader(lambda s: [s.context(i, 0) for i in (0, 1, 2, 3)], ("documents/text",)),
    "pooled rows": Reader(
        lambda s: s.pooled[HOOKPOINT]["mean"][:], (f"pooled/{HOOKPOINT}/mean",), ("pooled",)
    ),
    "localize, pooled rows": Reader(
        _localize("S:N", "mean"), (f"pooled/{HOOKPOINT}/mean", "documents/label"), ("pooled",)
    ),
    "localize, rows of tokens": Reader(_localize("S:N", "last"), ROWS, EXTRACTED),
    "localize, a contrast of tokens": Reader(
        _localize("role=user:assistant", "mean"), (*ROWS, "documents/role"), EXTRACTED
    ),
    "encode": Reader(_encode, ROWS, EXTRACTED),
    "gather extremes": Reader(
        lambda s: gather_extremes(s, HOOKPOINT, attempt="test", k=4), ROWS, EXTRACTED
    ),
    "codes": Reader(lambda s: s.features(FEATURES).codes(0, s.plan.n_tokens), CODES, ENCODED),
    "the pass of an index": Reader(
        lambda s: totals_of(s, s.features(FEATURES), silent), CODES, ENCODED
    ),
    "top": Reader(_of_features("top", k=3), (*INDEX, "features/INDEXED/count"), INDEXED),
    "bottom": Reader(_of_features("bottom", k=3), INDEX, INDEXED),
    "quantile": Reader(_of_features("quantile", q=0.5), INDEX, INDEXED),
    "feature table": Reader(lambda s: s.features(FEATURES).to_pandas(), TABLES, INDEXED[1:]),
    "contexts of features": Reader(
        _of_features("contexts", k=3), ("documents/text", *INDEX), (*INDEXED, *ENCODED[1:])
    ),
    "extremes": Reader(
        _of_units,
        tuple(f"extremes/{end}_{what}" for end in ("top", "bottom") for what in ("t", "value")),
        (f"extremes.{HOOKPOINT}",),
    ),
    "contexts of units": Reader(
        lambda s: s.units(HOOKPOINT).contexts(0, 2), (f"statistics/{HOOKPOINT}",), EXTRACTED
    ),
}
