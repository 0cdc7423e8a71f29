"""All benchmarks, one after the other: ``python -m benchmarks [--quick] [--json]``."""

from __future__ import annotations

import sys

from benchmarks import (
    batches,
    compression,
    extraction,
    harness,
    lookup,
    moments,
    peers,
    records,
    scheduling,
    startup,
    storage,
    welch,
)
from benchmarks.harness import Report


def run(quick: bool) -> Report:
    """Run every benchmark."""
    whole = Report("Benchmarks")
    modules = (
        *(startup, storage, records, compression, extraction, peers),
        *(moments, batches, welch, lookup, scheduling),
    )
    for module in modules:
        name, part = module.__name__.rpartition(".")[2], module.run(quick)
        whole.notes += part.notes
        whole.tables += part.tables
        whole.figures |= {f"{name}.{key}": value for key, value in part.figures.items()}
    return whole


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks", run))
