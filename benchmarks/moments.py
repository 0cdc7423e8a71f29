"""Cost of a shard's statistics: CPU seconds per gigabyte of bfloat16 rows.

They are compared with the plain moments (n, mean, m2, min, max) in one process, alternating. In an
extraction a thread computes the statistics while the next shard is computed.
"""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from actlas.store.statistics.moments import Moments
from actlas.store.statistics.shard import ShardStatistics
from actlas.store.statistics.shard_documents import ShardDocuments
from benchmarks import harness
from benchmarks.harness import Contender, Report, Table

WIDTHS = (64, 256, 768, 4096)


def lengths(kind: str, n_tokens: int) -> NDArray[np.int64]:
    """Return lengths of documents with at least ``n_tokens`` tokens in total."""
    rng = np.random.default_rng(0)
    if kind == "The Pile":  # log-normal
        return np.exp(rng.normal(np.log(500), 1.6, n_tokens)).astype(np.int64) + 1
    return np.full(n_tokens, int(kind.split()[0]), np.int64)


def run(quick: bool) -> Report:
    """Compute the statistics of a shard, for narrow and wide rows, short and long documents."""
    report = Report("Statistics of a shard")
    table = Table(
        "Processor seconds per GB of bfloat16 rows, one thread",
        ("width", "documents", "plain moments", "all statistics", "times as much"),
    )
    for width in WIDTHS[:2] if quick else WIDTHS:
        n_rows = 2048 if quick else min(65_536, (1 << 27) // width)
        rows = np.random.default_rng(1).standard_normal((n_rows, width), dtype=np.float32)
        rows = rows.astype(ml_dtypes.bfloat16)
        for kind in ("1 token each", "12 tokens each", "The Pile"):
            plain, whole = _measure(rows, kind, rounds=1 if quick else 5)
            name = kind.lower().replace(" ", "_")
            report.figures[f"{width}.{name}.cpu_s_per_gb"] = whole
            report.figures[f"{width}.{name}.times_plain"] = whole / plain
            cells = f"{plain:.2f}", f"{whole:.2f}", f"{whole / plain:.2f}"
            table.rows.append((f"{width:,}", kind, *cells))
    report.tables.append(table)
    return report


def _measure(rows: NDArray[np.generic], kind: str, rounds: int) -> tuple[float, float]:
    """Return the seconds per gigabyte of plain moments and of all statistics."""
    n_rows = len(rows)
    edges = np.concatenate([[0], np.cumsum(lengths(kind, n_rows))])
    edges = edges[: int(np.searchsorted(edges, n_rows)) + 1]
    documents = ShardDocuments.of(np.random.default_rng(2).permutation(n_rows), edges, 0, n_rows)
    contenders = [
        Contender("plain", lambda: Moments.of(rows)),
        Contender("all", lambda: ShardStatistics.of(rows, documents)),
    ]
    measured = harness.alternate(contenders, rounds, limit="plain")
    plain, whole = (float(np.median(each.cpu_seconds)) for each in measured)
    return plain / rows.nbytes * 1e9, whole / rows.nbytes * 1e9


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.moments", run))
