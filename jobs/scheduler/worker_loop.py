"""The worker loop, which turns failures into values, and the write slots of a machine."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

from actlas.jobs.logs import LOGGER
from actlas.jobs.scheduler.faults import Fault, fault_of
from actlas.jobs.scheduler.protocols import Done, MeasuredWorker, StagedWorker, Worker
from actlas.pipeline.options import RunOptions
from actlas.store.errors import PlaceError
from actlas.store.format.schema import Receipt
from actlas.store.objects.faults import writing


class WorkerLoop:
    """Runs a worker that writes a shard while it computes the next.

    At most two shards are in memory: one is computed, one is written.

    Parameters
    ----------
    worker : Worker
        The worker. A :class:`StagedWorker` is written in another thread.
    name : str
        Name of the worker for messages.
    store : str
        Path of the store, for errors of the operating system without a file name.
    slots : WriteSlots, optional
        Limits the shards that are written at once on this machine. A worker that cannot compute
        and commit separately holds a slot for both.
    damage_stops : bool
        Whether damaged input ends the run.
    """

    def __init__(
        self,
        worker: Worker,
        name: str,
        store: str,
        slots: WriteSlots | None = None,
        *,
        damage_stops: bool = False,
    ) -> None:
        self._worker, self._name, self._store = worker, name, store
        self._slots, self._damage_stops = slots, damage_stops
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="actlas-writer")
        self._writing: Future[Done | Fault] | None = None
        self._bare: float | None = None

    def measure(self, shard: int) -> None:
        """Measure the bare forward pass of a worker that has one, before the first shard.

        A measurement that fails is logged, and the work goes on without it.
        """
        if not isinstance(self._worker, MeasuredWorker):
            return
        try:
            rate = self._worker.bare_forward_rate(shard)
        except Exception:  # noqa: BLE001 - a number for the last line, not part of the work
            LOGGER.exception("the bare forward pass was not measured", extra={"shard": shard})
            return
        self._bare = None if rate is None else rate.tokens_per_s

    def attempt(self, shard: int) -> Done | Fault:
        """Run one shard once."""
        return self.begin(shard).result()

    def begin(self, shard: int) -> Future[Done | Fault]:
        """Compute a shard in this thread; return a future that is done once it is written.

        Only one thread may call it at a time.
        """
        attempt = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        worker, started = self._worker, time.perf_counter()
        if not isinstance(worker, StagedWorker):
            return _known(
                self._tried(shard, started, 0, lambda: worker.extract(shard, attempt=attempt))
            )
        try:
            computed = worker.compute(shard)
        except Exception as error:  # noqa: BLE001 - the fault keeps it, and the driver charges it
            return _known(self._fault(error, shard))
        began = time.perf_counter()
        if self._writing is not None:
            self._writing.exception()  # waits, so that no third shard is in memory
        waited = time.perf_counter() - began
        box = [computed]
        del computed

        def write() -> Done | Fault:
            return self._tried(shard, started, waited, lambda: worker.commit(box.pop(), attempt))

        self._writing = self._writer.submit(write)
        return self._writing

    def close(self) -> None:
        """Wait for the shard that is being written, and close the worker."""
        self._writer.shutdown(wait=True)
        if isinstance(self._worker, StagedWorker):
            self._worker.close()

    def _tried(
        self, shard: int, started: float, waited_s: float, make: Callable[[], Receipt]
    ) -> Done | Fault:
        try:
            with nullcontext(0.0) if self._slots is None else self._slots.slot() as turn_wait_s:
                began = time.perf_counter()
                receipt = make()
        except Exception as error:  # noqa: BLE001 - the fault keeps it, and the driver charges it
            return self._fault(error, shard)
        now = time.perf_counter()
        numbers = {k: v for k, v in receipt.run.items() if isinstance(v, int | float)}
        bare, self._bare = self._bare, None
        return Done(
            shard=shard,
            n_rows=receipt.stop - receipt.start,
            n_bytes=sum(record.n_bytes for record in receipt.objects),
            n_nonfinite=sum(receipt.n_nonfinite.values()),
            seconds=now - started,
            worker=self._name,
            run={
                **numbers,
                "write_s": now - began,
                "write_wait_s": waited_s,
                "turn_wait_s": turn_wait_s,
            },
            bare_tokens_per_s=bare,
            note=str(receipt.run.get("note", "")),
        )

    def _fault(self, error: Exception, shard: int) -> Fault:
        stops = self._damage_stops
        return fault_of(error, shard, self._name, self._store, damage_stops=stops)


def _known(outcome: Done | Fault) -> Future[Done | Fault]:
    future: Future[Done | Fault] = Future()
    future.set_result(outcome)
    return future


FIRST_POLL_S, LAST_POLL_S = 0.005, 0.1
"""Shortest and longest pause between two attempts to get a write slot, in seconds."""


class WriteSlots:
    """A semaphore over the processes of this machine, made of lock files.

    Parameters
    ----------
    n_slots : int
        Number of processes that may hold a slot at once.
    folder : Path
        Folder of the lock files.
    patience_s : float
        Seconds to wait for a slot. Afterwards the work goes on without one, because a holder that
        hangs must not make the deadlines of all others pass.
    """

    def __init__(self, n_slots: int, folder: Path, patience_s: float) -> None:
        self._files = [folder / f"writer-{i}.lock" for i in range(n_slots)]
        self._patience_s = patience_s

    @contextmanager
    def slot(self) -> Iterator[float]:
        """Hold a slot; yields the seconds waited for it."""
        began = time.monotonic()
        held = self._wait(began)
        try:
            yield time.monotonic() - began
        finally:
            if held is not None:
                os.close(held)

    def _wait(self, began: float) -> int | None:
        pause = FIRST_POLL_S
        while True:
            for file in self._files:
                if (held := _lock(file)) is not None:
                    return held
            waited = time.monotonic() - began
            if waited > self._patience_s:
                text = "no write slot became free: writing without one"
                LOGGER.warning(text, extra={"waited_s": waited, "places": len(self._files)})
                return None
            time.sleep(
                pause * random.uniform(0.5, 1.5)
            )  # otherwise all would ask at the same times
            pause = min(LAST_POLL_S, 2 * pause)


def write_slots(run: RunOptions) -> WriteSlots | None:
    """Return the write slots of a run; None if their number is unlimited.

    Raises
    ------
    PlaceError
        The folder of the lock files belongs to another user, or cannot be made.
    """
    if run.writers_per_machine is None:
        return None
    return WriteSlots(run.writers_per_machine, _own_folder(), run.deadline_floor_s / 2)


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"actlas-{os.getuid()}"
    with writing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PlaceError(
            f"{folder}: expected a folder of this user, for the locks of --writers-per-machine. "
            "Remove it, or set TMPDIR to a folder of yours on this machine."
        )
    return folder


def _lock(file: Path) -> int | None:
    """Return a file descriptor that holds a file's lock; None if another process holds it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
