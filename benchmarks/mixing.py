"""Mixing of batches: the variance of batch means against independent rows, simulated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.batches.sampler import Epoch, Schedule, select
from actlas.store.format import layout
from benchmarks.harness import Report, Table, figure_name

Integers = NDArray[np.int64]
RHO = 0.2
"""Share of the activations' variance that is between documents."""
EFFECTS = 4


def short_lengths(n_tokens: int) -> Integers:
    """Return geometric lengths of documents, 50 tokens on average."""
    rng = np.random.default_rng(1)
    return _cut(rng.geometric(1 / 50, n_tokens // 40), n_tokens)


def long_lengths(n_tokens: int) -> Integers:
    """Return lengths of documents as in The Pile: log-normal, median 500, sigma 1.6."""
    rng = np.random.default_rng(2)
    return _cut(np.ceil(rng.lognormal(np.log(500), 1.6, n_tokens // 400)), n_tokens)


def _cut(lengths: NDArray[np.generic], n_tokens: int) -> Integers:
    ends = np.minimum(np.cumsum(lengths.astype(np.int64)), n_tokens)
    return np.diff(np.unique(np.concatenate([[0], ends, [n_tokens]])))


def in_store(document: Integers, order: str, shard_rows: int) -> Integers:
    """Return the document of each row of a store, from that of each token."""
    parts = [
        document[layout.shard_tokens(order, 0, start, min(start + shard_rows, len(document)))]
        for start in range(0, len(document), shard_rows)
    ]
    return np.concatenate(parts)


def by_sampler(
    row_document: Integers, shard_rows: int, chunk_rows: int, buffer_rows: int, batch_size: int
) -> Iterator[Integers]:
    """Yield the documents of an epoch's rows, group by group, in the order of batches."""
    n_chunks = len(row_document) // chunk_rows
    chunk = np.arange(n_chunks)
    usable = np.full(n_chunks, chunk_rows)
    selection = select(0, chunk // (shard_rows // chunk_rows), chunk, usable)
    epoch = Epoch(selection, 0, 0)
    schedule = Schedule(selection.n_rows, batch_size, buffer_rows)
    for i in range(schedule.n_groups):
        wanted = epoch.request(schedule.group(i), batch_size, schedule.group_size(i))
        sizes = wanted.stop - wanted.start
        first = wanted.block * chunk_rows + wanted.start - (np.cumsum(sizes) - sizes)
        rows = np.repeat(first, sizes) + np.arange(sizes.sum())
        yield row_document[rows[wanted.order]]


def reservoir(document: Integers, buffer_rows: int) -> Integers:
    """Return documents in the order of a streaming shuffle buffer of ``buffer_rows`` rows.

    Each step gives a random row of the buffer and replaces it by the next one: a row that enters at
    step i leaves after a geometric time.
    """
    rng = np.random.default_rng(3)
    leaves = np.arange(len(document)) + rng.geometric(1 / buffer_rows, len(document))
    return document[np.argsort(leaves, kind="stable")]


def inflation(documents: Integers, batch_size: int) -> tuple[float, float]:
    """Return (variance of batch means over that of independent rows, documents in a batch).

    The part between documents, :data:`RHO` of the variance, is drawn several times; the part within
    documents is the same for every order and is computed exactly.
    """
    rng = np.random.default_rng(4)
    n = len(documents) // batch_size
    batches = documents[: n * batch_size]
    found = []
    for _ in range(EFFECTS):
        effect = rng.standard_normal(int(documents.max()) + 1).astype(np.float32)
        each = effect[batches]
        means = each.reshape(n, batch_size).mean(axis=1, dtype=np.float64)
        found.append(means.var() * batch_size / each.var(dtype=np.float64))
    some = [len(np.unique(b)) for b in batches.reshape(n, batch_size)[:: max(1, n // 20)]]
    return 1 - RHO + RHO * float(np.mean(found)), float(np.mean(some))


def mixing_table(report: Report, quick: bool) -> None:
    """Compare batches with documents in order, a streaming shuffle buffer and independent rows."""
    n_tokens, batch_size, buffer_rows = (1 << 23, 8192, 262_144)
    shard_rows = layout.SHARD_ROWS_MAX
    if quick:
        n_tokens, batch_size, buffer_rows, shard_rows = (1 << 18, 512, 1 << 14, 1 << 13)
    corpora = {"short": short_lengths(n_tokens), "long": long_lengths(n_tokens)}
    table = Table(
        "How well batches are mixed",
        ("order", "short documents", "of them in a batch", "long ones", "of them in a batch"),
        notes=(
            f"Variance of the means of batches of {batch_size:,} over that of independent rows "
            f"(1 is as good); {RHO:.0%} of the variance lies between documents. "
            f"{n_tokens:,} tokens, shards of {shard_rows:,} rows, a shuffle buffer of "
            f"{buffer_rows:,} rows; short: geometric, 50 tokens on average; long: log-normal, "
            "median 500, sigma 1.6. "
            "Simulated with the sampler's own integers; the buffer holds 65,536 rows of documents "
            "in order.",
        ),
    )
    found: dict[str, list[str]] = {}
    for kind, lengths in corpora.items():
        document = np.repeat(np.arange(len(lengths)), lengths)
        for name, order in _orders(document, shard_rows, buffer_rows, batch_size):
            value, distinct = inflation(order, batch_size)
            found.setdefault(name, []).extend([f"{value:.2f}", f"{distinct:,.0f}"])
            report.figures[figure_name("mixing", kind, name)] = value
    table.rows += [(name, *cells) for name, cells in found.items()]
    report.tables.append(table)


def _orders(
    document: Integers, shard_rows: int, buffer_rows: int, batch_size: int
) -> Iterator[tuple[str, Integers]]:
    yield "independent", np.random.default_rng(5).permutation(document)
    for order, chunk in (("shuffled", 256), ("shuffled", 1024), ("corpus", 1024)):
        rows = in_store(document, order, shard_rows)
        groups = by_sampler(rows, shard_rows, chunk, buffer_rows, batch_size)
        yield f"actlas {order} {chunk}", np.concatenate(list(groups))
    yield "buffer", reservoir(document, min(65_536, 8 * batch_size))
    yield "in order", document
