"""What a plan's store will weigh once all is extracted: objects, folders, bytes, part by part.

Raw arrays, indexes and metadata are counted exactly. What is compressed is reckoned from chunks
encoded here by the very code that will write them: of documents and row columns real ones, of
statistics those of made-up rows. How much activations shrink cannot be known before a model has
run: that is a ratio measured elsewhere, and it is stated with the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.catalog import LOSS, StoreArrays
from actlas.store.format.schema import ObjectRecord, Plan, Receipt
from actlas.store.format.sealing import FORMAT_VERSION, seal
from actlas.store.format.zarr_json import group_metadata, metadata_bytes
from actlas.store.shards.chunks import CRC_BYTES, encode_chunk
from actlas.store.statistics.shard import ShardStatistics
from actlas.store.statistics.shard_documents import ShardDocuments
from actlas.store.version import versions
from actlas.store.write.document_columns import DocumentColumns, ImageColumns, document_rows

RATIOS: Mapping[tuple[str, str], tuple[float, float, float]] = {
    ("bfloat16", "dense"): (1.46, 1.47, 1.48),
    ("bfloat16", "fast"): (1.33, 1.35, 1.41),
}
"""Lowest, usual and highest measured: ``benchmarks/results/2026-11-21-compression.md``, residual
streams of three models. Of other dtypes nothing is said: raw bytes are then the bound."""

SAMPLED_CHUNKS = 24
"""Of each column, from all over it."""

SAMPLED_SHARDS = 8

SAMPLED_STATISTICS = 8

SAMPLED_UNITS = 32

Rates = Mapping[str, float]
"""Stored bytes of one row of an array, index aside, by the array's path."""


class Part(NamedTuple):
    """Some of a store's objects.

    Attributes
    ----------
    name : str
    n_objects, n_bytes : int
    exact : bool
        Counted; otherwise reckoned from a sample or from a ratio.
    """

    name: str
    n_objects: int
    n_bytes: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Footprint:
    """What lies on disk when a store is whole. The driver's logs and leases are not counted.

    Attributes
    ----------
    parts : tuple of Part
        Each hookpoint's activations, the statistics, the row columns, the pooled rows, the
        documents, the receipts, and the rest of the ledger with all metadata.
    ratio : tuple of float or None
        Lowest, usual and highest ratio of the activations' raw bytes to the stored ones; None
        where they are stored raw, or where nothing is known.
    objects_per_shard, bytes_per_shard : int
        Of a full shard, its receipt included; of pooled rows where there are no others. Each object
        is asked for, written and read back: three requests of an object store.
    folders : mapping of str to int
        The folders with the most entries, and how many each has.
    """

    parts: tuple[Part, ...]
    ratio: tuple[float, float, float] | None
    objects_per_shard: int
    bytes_per_shard: int
    folders: Mapping[str, int]

    @property
    def n_bytes(self) -> int:
        """Of the whole store."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def n_objects(self) -> int:
        """Files, or keys in an object store."""
        return sum(part.n_objects for part in self.parts)

    def bytes_of(self, name: str) -> int:
        """Return the bytes of the parts whose name begins so."""
        return sum(part.n_bytes for part in self.parts if part.name.startswith(name))


def footprint(plan: Plan, rates: Rates, *, labelled: bool) -> Footprint:
    """Return what a plan's store will weigh. Pure: integers only, whatever the number of rows.

    Parameters
    ----------
    plan : Plan
    rates : mapping of str to float
        See :func:`sample_rates`; arrays that it lacks count raw.
    labelled : bool
        Whether documents have labels.
    """
    arrays = StoreArrays(plan, () if labelled else None)
    ratio = None if plan.compression == "none" else RATIOS.get((plan.dtype, plan.compression))
    rates = {"documents/image": 1.0, **rates}  # Image files are compressed already.
    for spec in (*arrays.activations.values(), *arrays.pooled.values()):
        if ratio is not None and spec.dtype == plan.dtype:
            rates.setdefault(spec.path, spec.row_bytes / ratio[1])
    parts = [_part(spec.path, [spec], rates) for spec in arrays.activations.values()]
    groups = {
        "statistics": arrays.statistics.values(),
        "rows": arrays.rows.values(),
        "pooled": arrays.pooled.values(),
        "documents": arrays.documents.values(),
    }
    parts += [_part(name, list(specs), rates) for name, specs in groups.items() if specs]
    jobs = [("extract", plan.n_shards)] * plan.dense + [("pooled", arrays.n_pooled_shards)]
    shard_specs = [
        spec
        for name in ("rows", "statistics")
        for spec in (*groups[name], *(arrays.activations.values() if name == "rows" else ()))
    ] or list(groups["pooled"])
    receipt_bytes = {
        job: _receipt_bytes(plan, list(groups["pooled"]) if job == "pooled" else shard_specs, job)
        for job, n in jobs
        if n
    }
    n_receipts = sum(n for _, n in jobs)
    in_receipts = sum(receipt_bytes[job] * n for job, n in jobs if n)
    parts.append(Part("receipts", n_receipts, in_receipts, exact=False))
    parts.append(_metadata(plan, arrays))
    per_shard = [_shard_bytes(spec, rates) for spec in shard_specs]
    first = next(iter(receipt_bytes.values()))
    return Footprint(
        parts=tuple(part for part in parts if part.n_objects),
        ratio=ratio,
        objects_per_shard=len(per_shard) + 1,
        bytes_per_shard=sum(per_shard) + first,
        folders=_folders(arrays, jobs),
    )


def sample_rates(
    plan: Plan, columns: DocumentColumns, images: ImageColumns | None = None
) -> dict[str, float]:
    """Encode chunks from all over a plan's documents and row columns; return bytes per row.

    Parameters
    ----------
    plan : Plan
        Of these documents, or of a part of them.
    columns : DocumentColumns
    images : ImageColumns, optional
        Where the plan has a processor for them.
    """
    labels = columns.label_names if columns.label is not None else None
    arrays = StoreArrays(plan, labels)

    def of_documents(name: str, spec: ArraySpec) -> Callable[[int, int], NDArray[Any]]:
        return lambda start, stop: document_rows(columns, images, name, spec, start, stop)

    rates = {}
    for name, spec in arrays.documents.items():
        chunks = _spread(layout.ceil_div(spec.n_rows, spec.chunk_rows), SAMPLED_CHUNKS)
        ranges = [(c * spec.chunk_rows, (c + 1) * spec.chunk_rows) for c in chunks]
        rates[spec.path] = _rate(spec, of_documents(name, spec), ranges)
    if plan.dense:
        rates |= _row_rates(plan, arrays, columns)
        rates |= _statistics_rates(plan, arrays, columns)
    return rates


def _row_rates(plan: Plan, arrays: StoreArrays, columns: DocumentColumns) -> dict[str, float]:
    n_bytes: dict[str, int] = {}
    n_rows = 0
    for shard in _spread(plan.n_shards, SAMPLED_SHARDS):
        start, stop = layout.shard_range(shard, plan.shard_rows, plan.n_tokens)
        for name, rows in _shard_columns(plan, columns, start, stop).items():
            spec = arrays.rows[name]
            pieces = range(0, len(rows), spec.chunk_rows)
            chunks = (encode_chunk(spec, rows[at : at + spec.chunk_rows]) for at in pieces)
            n = sum(memoryview(chunk).nbytes for chunk in chunks)
            n_bytes[spec.path] = n_bytes.get(spec.path, 0) + n
        n_rows += stop - start
    return {path: n / n_rows for path, n in n_bytes.items()}


def _shard_columns(
    plan: Plan, columns: DocumentColumns, start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Return a shard's row columns, as :meth:`Store.shard_columns` does from a store."""
    t = layout.shard_tokens(plan.order, plan.seed, start, stop)
    doc_idx = np.searchsorted(columns.start, t, side="right") - 1
    found: dict[str, NDArray[Any]] = {
        "token_id": columns.token_ids(start, stop)[t - start],
        "doc_idx": doc_idx.astype(np.int64),
        "pos_idx": (t - columns.start[doc_idx]).astype(np.int32),
    }
    special = columns.special(start, stop) if plan.keep_special else None
    if special is not None:
        found["special"] = special[t - start].astype(np.int8)
    for name in plan.token_columns:
        found[name] = columns.token_column(name, start, stop)[t - start]
    if plan.with_loss:  # A positive number of about the same size: sign and exponent shrink.
        losses = np.random.default_rng(0).gamma(2.0, 1.2, stop - start)
        found[LOSS] = losses.astype(np.float32)
    return found


def _statistics_rates(
    plan: Plan, arrays: StoreArrays, columns: DocumentColumns
) -> dict[str, float]:
    """Return what the statistics of made-up rows come to, in shards of this plan's documents."""
    specs = arrays.statistics.values()
    dtype = next(iter(arrays.activations.values())).numpy_dtype
    shards = _spread(plan.n_shards, SAMPLED_STATISTICS)
    n_bytes = 0
    for shard in shards:
        start, stop = layout.shard_range(shard, plan.shard_rows, plan.n_tokens)
        first, last = np.searchsorted(columns.start, [start, stop - 1], side="right") - 1
        rows_of = layout.shard_rows_of(plan.order, plan.seed, start, stop)
        documents = ShardDocuments.of(rows_of, columns.start[first : last + 2], start, stop)
        drawn = np.random.default_rng(shard).standard_normal((stop - start, SAMPLED_UNITS))
        table = ShardStatistics.of(drawn.astype(dtype), documents).table(arrays.statistics_names)
        narrow = replace(next(iter(specs)), shape=(plan.n_shards, len(table), SAMPLED_UNITS))
        n_bytes += memoryview(encode_chunk(narrow, table[None])).nbytes
    of_unit = n_bytes / len(shards) / SAMPLED_UNITS
    return {spec.path: of_unit * spec.shape[2] for spec in specs}


def _rate(
    spec: ArraySpec, read: Callable[[int, int], NDArray[Any]], ranges: Iterable[tuple[int, int]]
) -> float:
    n_rows = n_bytes = 0
    for start, stop in ranges:
        rows = read(start, min(stop, spec.n_rows))
        n_bytes += memoryview(encode_chunk(spec, rows)).nbytes
        n_rows += len(rows)
    return n_bytes / max(1, n_rows)


def _spread(n: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` of the numbers below ``n``, evenly spaced, the ends among them."""
    places: list[int] = np.unique(
        np.linspace(0, max(0, n - 1), min(n, wanted)).round().astype(int)
    ).tolist()
    return places


def _index_bytes(spec: ArraySpec) -> int:
    return 16 * spec.chunks_per_shard + CRC_BYTES


def _shard_bytes(spec: ArraySpec, rates: Rates) -> int:
    """Return the bytes of a full shard."""
    rows = min(spec.shard_rows, spec.n_rows)
    if spec.path in rates:
        return round(rates[spec.path] * rows) + _index_bytes(spec)
    return layout.ceil_div(rows, spec.chunk_rows) * spec.chunk_rows * spec.row_bytes + _index_bytes(
        spec
    )


def _array_bytes(spec: ArraySpec, rates: Rates) -> int:
    index = spec.n_shards * _index_bytes(spec)
    if spec.path in rates:
        return round(rates[spec.path] * spec.n_rows) + index
    last = spec.n_shards - 1
    n_chunks = last * spec.chunks_per_shard + (spec.n_chunks(last) if spec.n_shards else 0)
    return n_chunks * spec.chunk_rows * spec.row_bytes + index


def _part(name: str, specs: list[ArraySpec], rates: Rates) -> Part:
    return Part(
        name,
        sum(spec.n_shards for spec in specs),
        sum(_array_bytes(spec, rates) for spec in specs),
        all(spec.compression == "none" for spec in specs),
    )


def _receipt_bytes(plan: Plan, specs: list[ArraySpec], job: str) -> int:
    """Return the bytes of a receipt, by making one like those to come."""
    attempt = "a-host-name:1234567:0123abcd"
    shard = plan.n_shards // 2
    records = [
        ObjectRecord(
            key=spec.key(shard),
            n_bytes=spec.shard_rows * spec.row_bytes,
            xxh3="0" * 32,
            attempt=attempt,
            chunk_crc32c=None if spec.checksummed_chunks else (1 << 31,) * spec.chunks_per_shard,
        )
        for spec in specs
    ]
    seconds = dict.fromkeys(("compute_s", "forward_s", "gather_s", "other_s"), 0.12345678901234567)
    return len(
        seal(
            Receipt(
                format_version=FORMAT_VERSION,
                plan_sha256="0" * 64,
                job=job,
                shard=shard,
                start=shard * plan.shard_rows,
                stop=(shard + 1) * plan.shard_rows,
                attempt=attempt,
                host="a-host-name",
                created_unix_s=round(time.time(), 6),
                versions=versions(),
                objects=tuple(records),
                n_nonfinite={h.name: 0 for h in plan.hookpoints},
                run={"device": "cuda (NVIDIA)", "executor": "ray", **seconds, "more": "x" * 330},
            )
        )
    )


def _metadata(plan: Plan, arrays: StoreArrays) -> Part:
    """Return plan, its copy, and every ``zarr.json``: the names of sources and labels apart."""
    specs = arrays.all().values()
    sizes = [len(metadata_bytes(spec.metadata())) for spec in specs]
    sizes += [len(metadata_bytes(group_metadata())) for _ in arrays.groups]
    body = len(plan.model_dump_json())
    # An entry of the plan's objects: a key, a sha256, a size.
    n_keys = len(sizes) + 2 + sum(spec.n_shards for spec in arrays.documents.values())
    plan_file = body + 112 * n_keys + 200
    return Part(
        "metadata", len(sizes) + 4, sum(sizes) + 700 + 2 * body + 2 * plan_file, exact=False
    )


def _folders(arrays: StoreArrays, jobs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the entries of the folders that have most: of objects, or of folders of one object."""
    found = {f"ledger/receipts/{job}": n for job, n in jobs if n}
    found |= {f"{spec.path}/c": spec.n_shards for spec in arrays.all().values()}
    largest = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return dict(largest[:3])
