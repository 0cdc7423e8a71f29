"""One attempt at a shard in a process of its own, which stops in the middle of writing."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

from typing_extensions import Buffer

from actlas.jobs.scheduler.protocols import Done
from actlas.jobs.scheduler.worker_loop import WorkerLoop
from actlas.pipeline.options import RunOptions
from actlas.store.objects.local import LocalObjects
from support.processes import LOADED
from support.workers import freeze_before, make_fake


def attempt(
    path: str, shard: int, *, stop_before: str = "", overwrite: bool = False
) -> BaseProcess:
    """Start an attempt at a shard; it exits with 0 where it came to a receipt, its own or another.

    Parameters
    ----------
    path : str
        Of the store.
    shard : int
        Which shard.
    stop_before : str
        The key of one of its files: it stops before that gets its final name. Never where empty.
    overwrite : bool
        The control: arrays are written plainly, over what is there. Receipts are still created.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    process = context.Process(
        target=_attempt, args=(path, shard, stop_before, overwrite), daemon=True
    )
    process.start()
    return process


def _attempt(path: str, shard: int, stop_before: str, overwrite: bool) -> None:
    os.environ.pop("ACTLAS_TEST_FOLDER", None)  # of whichever test started the fork server
    if overwrite:
        LocalObjects.create = _overwriting  # type: ignore[method-assign]
    hand = WorkerLoop(make_fake(path, RunOptions()), "worker", path)
    if stop_before:
        freeze_before(stop_before)
    if not isinstance(hand.attempt(shard), Done):
        raise SystemExit(1)


_create = LocalObjects.create


def _overwriting(self: LocalObjects, key: str, parts: Iterable[Buffer]) -> bool:
    if key.startswith("ledger/"):
        return _create(self, key, parts)
    final = self.path(key)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f"{final.name}.{uuid.uuid4().hex}.part")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
    os.replace(temporary, final)  # noqa: PTH105 - the call that is counted
    return True
