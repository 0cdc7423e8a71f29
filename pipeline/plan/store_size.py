"""The size of a plan's store once all is extracted: objects, folders and bytes, part by part.

Raw arrays, indexes and ``zarr.json`` files are counted exactly. Compressed documents, row columns
and statistics are projected from sampled chunks, encoded by the code that writes a store;
compressed activations from a ratio that was measured on other models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.catalog import LOSS, StoreArrays
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import ModelFiles, Plan
from actlas.store.format.sealing import seal
from actlas.store.format.zarr_json import (
    group_metadata,
    ledger_metadata,
    metadata_bytes,
    root_metadata,
)
from actlas.store.ledger.model_files import MODEL_FILES_COPY_KEY, MODEL_FILES_KEY
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.read.row_index import RowIndex
from actlas.store.shards.chunks import encode_chunk, index_bytes
from actlas.store.statistics.shard import ShardStatistics
from actlas.store.write.document_columns import DocumentColumns, ImageColumns, document_rows

RATIOS: Mapping[tuple[str, str], tuple[float, float, float]] = {
    ("bfloat16", "dense"): (1.46, 1.47, 1.48),
    ("bfloat16", "fast"): (1.33, 1.35, 1.41),
}
"""Lowest, usual and highest compression ratio of activations, by dtype and profile, as measured on
the residual streams of three models (``benchmarks/results/2026-11-21-compression.md``). Activations
of other dtypes are counted raw, which is an upper bound."""

SAMPLED_CHUNKS = 24
"""Chunks of each column of the documents that are encoded, spread over the whole column."""

SAMPLED_SHARDS = 8
"""Shards whose row columns and statistics are encoded."""

SAMPLED_UNITS = 32
"""Units of the random rows whose statistics are encoded."""

RECEIPT_BYTES = 1_070
"""Bytes of a receipt besides its records: range, versions, times and counts. This constant and the
next ones were read off real ledgers; ``tests/pipeline/plan/test_estimates.py`` compares them."""

RECORD_BYTES = 131
"""Bytes of an object's record in a receipt, besides the object's key and its chunks' checksums."""

CHECKSUM_BYTES = 11
"""Bytes of a chunk's checksum in a record: a decimal number and a comma."""

PLAN_ENTRY_BYTES = 80
"""Bytes of an object's entry in the plan file besides its key: a sha256 and a size."""

Rates = Mapping[str, float]
"""Stored bytes of one row of an array without the index, by the array's path."""


class Part(NamedTuple):
    """Some of a store's objects.

    Attributes
    ----------
    name : str
        A group of the store, ``activations/`` and a hookpoint, ``receipts`` or ``metadata``.
    n_objects, n_bytes : int
        Objects (files, or keys in an object store) and their bytes as stored.
    raw_bytes : int
        Bytes of the rows before compression; 0 for what is no array.
    exact : bool
        Whether the bytes are counted; otherwise they are projected from a sample or a ratio.
    """

    name: str
    n_objects: int
    n_bytes: int
    raw_bytes: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class StoreSize:
    """The objects of a complete store, without the driver's logs and leases.

    Attributes
    ----------
    parts : tuple of Part
        Each hookpoint's activations, the statistics, the row columns, the pooled rows, the
        documents, the receipts, and all metadata with the plan.
    ratio : tuple of float or None
        Lowest, usual and highest ratio of the activations' raw bytes to the stored ones; None
        where they are stored raw, or where no ratio was measured.
    objects_per_shard, bytes_per_shard : int
        Objects and bytes of a full shard with its receipt; of a shard of pooled rows in a store
        that has no others. Each object is an object store's three requests: a check, a write and
        a reading back.
    folders : mapping of str to int
        Entries of the three folders that have the most.
    """

    parts: tuple[Part, ...]
    ratio: tuple[float, float, float] | None
    objects_per_shard: int
    bytes_per_shard: int
    folders: Mapping[str, int]

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole store."""
        return self.bytes_of("")

    @property
    def n_objects(self) -> int:
        """Objects of the whole store."""
        return sum(part.n_objects for part in self.parts)

    def bytes_of(self, name: str) -> int:
        """Return the stored bytes of all parts whose name starts with ``name``."""
        return sum(part.n_bytes for part in self.parts if part.name.startswith(name))

    def raw_bytes_of(self, name: str) -> int:
        """Return the same parts' bytes before compression."""
        return sum(part.raw_bytes for part in self.parts if part.name.startswith(name))


def store_size(
    plan: Plan, rates: Rates, *, labelled: bool, files: ModelFiles | None = None
) -> StoreSize:
    """Return the size of a plan's store. Pure arithmetic, whatever the number of rows.

    Parameters
    ----------
    plan : Plan
        The plan, perhaps one that is scaled up from a sample.
    rates : mapping of str to float
        Stored bytes per row, as :func:`sample_rates` measures them. Image files, which are
        compressed already, and arrays without a rate count raw.
    labelled : bool
        Whether documents have labels.
    files : ModelFiles, optional
        The record of the model's files that is written with the plan.
    """
    arrays = StoreArrays(plan, () if labelled else None)
    activations, pooled = [*arrays.activations.values()], [*arrays.pooled.values()]
    ratio = None if plan.compression == "none" else RATIOS.get((plan.dtype, plan.compression))
    if ratio is not None:
        shrunk = [spec for spec in (*activations, *pooled) if spec.dtype == plan.dtype]
        rates = {**{spec.path: spec.row_bytes / ratio[1] for spec in shrunk}, **rates}
    rates = {"documents/image": 1.0, **rates}
    groups = {
        **{spec.path: [spec] for spec in activations},
        "statistics": [*arrays.statistics.values()],
        "rows": [*arrays.rows.values()],
        "pooled": pooled,
        "documents": [*arrays.documents.values()],
    }
    jobs = {EXTRACT: [*groups["rows"], *activations, *groups["statistics"]], POOLED: pooled}
    jobs = {job: specs for job, specs in jobs.items() if specs}
    n_shards = {job: specs[0].n_shards for job, specs in jobs.items()}
    receipts = sum(n_shards[job] * _receipt_bytes(plan, specs) for job, specs in jobs.items())
    receipts += 2 * len(jobs) * RECEIPT_BYTES  # a record that the job was finished, and its copy
    entries = {f"ledger/receipts/{job}": n for job, n in n_shards.items()}
    entries |= {f"{spec.path}/c": spec.n_shards for spec in arrays.all().values()}
    first = next(iter(jobs.values()))
    full = sum(_stored_bytes(spec, rates, min(spec.shard_rows, spec.n_rows)) for spec in first)
    return StoreSize(
        parts=(
            *(_part(name, specs, rates) for name, specs in groups.items() if specs),
            Part("receipts", sum(n_shards.values()) + 2 * len(jobs), receipts),
            _metadata(plan, arrays, files),
        ),
        ratio=ratio,
        objects_per_shard=len(first) + 1,
        bytes_per_shard=full + _receipt_bytes(plan, first),
        folders=dict(sorted(entries.items(), key=lambda pair: (-pair[1], pair[0]))[:3]),
    )


def _part(name: str, specs: Sequence[ArraySpec], rates: Rates) -> Part:
    return Part(
        name,
        n_objects=sum(spec.n_shards for spec in specs),
        n_bytes=sum(_stored_bytes(spec, rates, spec.n_rows) for spec in specs),
        raw_bytes=sum(spec.n_rows * spec.row_bytes for spec in specs),
        exact=all(spec.compression == "none" for spec in specs),
    )


def _stored_bytes(spec: ArraySpec, rates: Rates, n_rows: int) -> int:
    """Return the stored bytes of an array's first rows, the indexes of their shards included."""
    index = layout.n_shards(n_rows, spec.shard_rows) * index_bytes(spec)
    if spec.path in rates:
        return round(rates[spec.path] * n_rows) + index
    padded = layout.ceil_div(n_rows, spec.chunk_rows) * spec.chunk_rows
    return padded * spec.row_bytes + index


def _receipt_bytes(plan: Plan, specs: Sequence[ArraySpec]) -> int:
    """Return the bytes of the receipt of a shard in the middle, which writes these arrays."""
    checksums = sum(spec.chunks_per_shard for spec in specs)
    keys = sum(len(spec.key(spec.n_shards // 2)) for spec in specs)
    names = sum(len(f'"{hookpoint.name}":0,') for hookpoint in plan.hookpoints)
    return RECEIPT_BYTES + names + keys + RECORD_BYTES * len(specs) + CHECKSUM_BYTES * checksums


def _metadata(plan: Plan, arrays: StoreArrays, files: ModelFiles | None) -> Part:
    """Return every ``zarr.json``, the two plan files and the two records of the model's files.

    The names of sources and labels are left out.
    """
    specs = arrays.all().values()
    bodies = [root_metadata(plan), ledger_metadata(), *(group_metadata() for _ in arrays.groups)]
    bodies += [spec.metadata() for spec in specs]
    keys = [spec.metadata_key for spec in specs] + [f"{group}/zarr.json" for group in arrays.groups]
    for spec in arrays.documents.values():
        keys += map(spec.key, range(spec.n_shards))
    records = [seal(files)] * 2 if files is not None else []
    keys += [MODEL_FILES_KEY, MODEL_FILES_COPY_KEY][: len(records)]
    plan_file = len(plan.model_dump_json()) + sum(len(key) + PLAN_ENTRY_BYTES for key in keys)
    n_bytes = sum(len(metadata_bytes(body)) for body in bodies) + 2 * plan_file
    n_bytes += sum(map(len, records))
    return Part("metadata", len(bodies) + 2 + len(records), n_bytes)


def sample_rates(
    plan: Plan, columns: DocumentColumns, images: ImageColumns | None = None
) -> dict[str, float]:
    """Encode chunks from all over a plan's documents and row columns; return bytes per row.

    Parameters
    ----------
    plan : Plan
        The plan of these documents, or of a part of them.
    columns : DocumentColumns
        The documents.
    images : ImageColumns, optional
        Their images, where the plan has a processor for them.
    """
    arrays = StoreArrays(plan, columns.label_names if columns.label is not None else None)
    rates = {}
    for name, spec in arrays.documents.items():
        n_chunks = layout.ceil_div(spec.n_rows, spec.chunk_rows)
        starts = (chunk * spec.chunk_rows for chunk in _spread(n_chunks, SAMPLED_CHUNKS))
        ranges = ((at, min(at + spec.chunk_rows, spec.n_rows)) for at in starts)
        found = (document_rows(columns, images, name, spec, *ends) for ends in ranges)
        rates[spec.path] = _rate(spec, found)
    return rates | _row_rates(plan, arrays, columns) if plan.dense else rates


def _row_rates(plan: Plan, arrays: StoreArrays, columns: DocumentColumns) -> dict[str, float]:
    """Encode the row columns of some shards, and the statistics of random rows in their place."""
    index = RowIndex(plan)
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in arrays.rows}
    tables = []
    for shard in _spread(plan.n_shards, SAMPLED_SHARDS):
        random, (start, stop) = np.random.default_rng(shard), plan.shard_range(shard)
        found = index.columns(shard, columns)
        if plan.with_loss:  # Positive numbers of the usual size: their sign and exponent shrink.
            found[LOSS] = random.gamma(2.0, 1.2, stop - start).astype(np.float32)
        for name, column in found.items():
            rows[name].append(column)
        drawn = random.standard_normal((stop - start, SAMPLED_UNITS))
        statistics = ShardStatistics.of(
            drawn.astype(numpy_dtype(plan.dtype)), index.shard_documents(shard, columns)
        )
        tables.append(statistics.table(arrays.statistics_names)[None])
    rates = {spec.path: _rate(spec, rows[name]) for name, spec in arrays.rows.items()}
    for spec in arrays.statistics.values():
        sampled = replace(spec, shape=(*spec.shape[:2], SAMPLED_UNITS))
        rates[spec.path] = _rate(sampled, tables) / SAMPLED_UNITS * spec.shape[2]
    return rates


def _rate(spec: ArraySpec, found: Iterable[NDArray[Any]]) -> float:
    """Return the encoded bytes of one row in these ranges of rows, each of whole chunks."""
    n_rows = n_bytes = 0
    for rows in found:
        for at in range(0, len(rows), spec.chunk_rows):
            chunk = encode_chunk(spec, rows[at : at + spec.chunk_rows])
            n_bytes += memoryview(chunk).nbytes
        n_rows += len(rows)
    return n_bytes / max(1, n_rows)


def _spread(n: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` of the numbers below ``n``, evenly spaced, first and last too."""
    places = np.linspace(0, max(0, n - 1), min(n, wanted)).round().astype(int)
    found: list[int] = np.unique(places).tolist()
    return found
