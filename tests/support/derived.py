"""Derived jobs that suffer planned faults; and a driver of them to be killed.

``python -m support.derived STORE`` indexes the set ``made`` of a store, in blocks of
``BLOCK_CODES``.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import actlas
import actlas.jobs.derived.extremes
import actlas.jobs.derived.index
from actlas.analysis.features import index_plan
from actlas.analysis.features.index_plan import IndexPlan
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt
from support.workers import attempts, suffer

BLOCK_CODES = 500
MEMORY_BYTES = 48 * 600
"""For several blocks of a small store, and several passes."""

open_indexer = actlas.jobs.derived.index.open_indexer
open_gatherer = actlas.jobs.derived.extremes.open_gatherer


class Suffering:
    """A worker whose attempts are noted, and suffer what ``faults.json`` says."""

    def __init__(self, worker: Any, path: str) -> None:
        self.worker, self.folder = worker, Path(path).parent

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        n_before = sum(line.split()[0] == str(shard) for line in attempts(self.folder))
        with (self.folder / "attempts.txt").open("a") as file:
            file.write(f"{shard} {os.getpid()} {attempt}\n")
        file = self.folder / "faults.json"
        faults = json.loads(file.read_text()) if file.exists() else {}
        time.sleep(faults.get("slow_s", 0))
        planned = faults.get(str(shard), [])
        if n_before < len(planned):
            suffer(planned[n_before], shard, self.folder)
        receipt: Receipt = self.worker.extract(shard, attempt=attempt)
        return receipt


def open_suffering_indexer(store: str, run: RunOptions, *, name: str, plan: IndexPlan) -> Suffering:
    return Suffering(open_indexer(store, run, name=name, plan=plan), store)


def open_suffering_gatherer(store: str, run: RunOptions, *, hookpoint: str) -> Suffering:
    return Suffering(open_gatherer(store, run, hookpoint=hookpoint), store)


def plant_faults(patch: Any) -> None:
    """Have indexes cut into small blocks, and the workers of derived jobs suffer."""
    in_small_blocks = functools.partial(index_plan.plan_index, block_codes=BLOCK_CODES)
    patch.setattr(index_plan, "plan_index", in_small_blocks)
    patch.setattr(actlas.jobs.derived.index, "open_indexer", open_suffering_indexer)
    patch.setattr(actlas.jobs.derived.extremes, "open_gatherer", open_suffering_gatherer)


def main() -> None:
    """Index a store in small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        plant_faults(patch)
        actlas.index_sae(sys.argv[1], "made", max_memory_bytes=MEMORY_BYTES)


if __name__ == "__main__":
    main()
