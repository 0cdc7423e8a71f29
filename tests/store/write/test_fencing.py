"""Two attempts at one shard that differ in bits, one inside the other at every point of writing.

The control writes its arrays plainly over what is there, with the receipt still created once: that
is what "idempotent" jobs do, and its arrays do not match their receipt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.stores import create, plan_for, truth, words_columns
from typing_extensions import Buffer

from actlas.store.format import layout
from actlas.store.objects.local import LocalObjects
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify
from actlas.store.write import array_writer as writer
from actlas.store.write.commit import commit_shard

N_OBJECTS = 8
"""Of one shard: three columns, two hookpoints with their statistics, the receipt."""

Create = Callable[[LocalObjects, str, Iterable[Buffer]], bool]
create_once: Create = LocalObjects.create


def write_over(objects: LocalObjects, key: str, parts: Iterable[Buffer]) -> bool:
    """What an executor without fences does: the last writer wins; the record is created once."""
    if key.startswith("ledger/"):
        return create_once(objects, key, parts)
    objects.replace(key, b"".join(map(bytes, parts)))
    return True


def rows_of(store: Store, attempt: int) -> dict[str, NDArray[np.generic]]:
    """A shard's activations as a kernel gives them: another attempt rounds otherwise."""
    start, stop = store.shard_range(0)
    t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
    rows = {name: truth(store, name)[t] for name in store.activations}
    for values in rows.values():
        values.view(np.uint16)[attempt::7] ^= 1
    return rows


def interleave(
    store: Store, at: int, write: Create, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Stop the first attempt before its ``at``-th object, run the second whole, and go on.

    Returns
    -------
    int
        How many objects the first attempt created or tried to.
    str
        The attempt of the receipt that stands.
    """
    n_created = [0]

    def stopped(objects: LocalObjects, key: str, parts: Iterable[Buffer]) -> bool:
        n_created[0] += 1
        if n_created[0] == at + 1:
            with monkeypatch.context() as second:
                second.setattr(LocalObjects, "create", write)
                commit_shard(open_store(store.path), 0, rows_of(store, 2), attempt="second")
        return write(objects, key, parts)

    with monkeypatch.context() as first:
        first.setattr(writer, "COMMIT_THREADS", 1)
        first.setattr(LocalObjects, "create", stopped)
        receipt = commit_shard(store, 0, rows_of(store, 1), attempt="first")
    assert receipt == open_store(store.path).receipt(0)
    return n_created[0], receipt.attempt


def planned(folder: Path) -> Store:
    columns = words_columns(3, 12, 20)
    return create(folder / "run.zarr", plan_for(columns, shard_rows=64), columns)


@pytest.mark.parametrize("at", range(N_OBJECTS))
def test_whoever_is_late_changes_nothing(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = planned(tmp_path)
    n_objects, attempt = interleave(store, at, create_once, monkeypatch)
    assert n_objects >= at + 1, "the second attempt never came in between"
    assert attempt == "second"
    report = verify(open_store(store.path), full=True)
    assert report.ok, report


@pytest.mark.parametrize("at", range(N_OBJECTS))
def test_the_control_writing_over_breaks_the_receipt(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where all the first attempt's arrays came before the second's do they agree."""
    store = planned(tmp_path)
    size = LocalObjects.size

    def unseen(objects: LocalObjects, key: str) -> int | None:
        mine = key.startswith(("rows/", "activations/", "statistics/"))
        return None if mine and sys._getframe(1).f_code.co_name == "write" else size(objects, key)

    with monkeypatch.context() as blind:
        blind.setattr(LocalObjects, "size", unseen)
        n_objects, _ = interleave(store, at, write_over, monkeypatch)
    assert n_objects == N_OBJECTS
    assert verify(open_store(store.path), full=True).ok == (at == N_OBJECTS - 1)
