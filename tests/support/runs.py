"""Stores of made-up rows to be disturbed, and an undisturbed one of the same plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from actlas.jobs.run.run import run_extraction
from actlas.store.errors import EXIT_DONE
from actlas.store.store import Store
from support.jobs import options, plant
from support.workers import fake_store, make_fake


class Size(NamedTuple):
    """How much there is to do."""

    n_documents: int
    """Of some 18 tokens each."""
    shard_rows: int


SMALL = Size(40, 64)
"""Twelve shards."""
FEW = Size(40, 16)
"""Some fifty shards."""
SOME = Size(100, 16)
"""Some hundred shards."""
MANY = Size(300, 16)
"""Some three hundred shards."""


def planned(
    folder: Path, size: Size, shards: dict[int, list[str]] | None = None, **faults: Any
) -> Store:
    """Plan a store in a new folder, and plant faults: see :func:`support.jobs.plant`."""
    store = fake_store(folder, size.n_documents, size.shard_rows, dtype="float32")
    plant(folder, shards, **faults)
    return store


def undisturbed(folder: Path, size: Size) -> Store:
    """Plan a store and extract it in this process, where nothing happens to it."""
    store = planned(folder, size)
    assert run_extraction(store, options(), make_fake).exit_code == EXIT_DONE
    return store
