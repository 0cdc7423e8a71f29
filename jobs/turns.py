"""Taking turns: at most so many writers at once on one machine, whoever started them.

A place is a lock on a file, held by an open descriptor, so the kernel gives it up however its
holder dies. The places are those of one user in one temporary folder: containers that share no
such folder take no turns with each other.
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actlas.jobs.logs import LOGGER
from actlas.pipeline.options import RunOptions
from actlas.store.errors import RunFaultError

FIRST_POLL_S, LAST_POLL_S = 0.005, 0.1


class Turns:
    """A number of places on this machine.

    Parameters
    ----------
    n_places : int
        How many may hold one at once.
    folder : Path
        Where their lock files are.
    patience_s : float
        After this long without a place the work goes on without one: a holder that hangs must not
        make the deadlines of all others pass.
    """

    def __init__(self, n_places: int, folder: Path, patience_s: float) -> None:
        self._files = [folder / f"writer-{i}.lock" for i in range(n_places)]
        self._patience_s = patience_s

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Wait for a place and hold it; what is yielded is the seconds waited."""
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
                text = "no turn to write came: writing without one"
                LOGGER.warning(text, extra={"waited_s": waited, "places": len(self._files)})
                return None
            time.sleep(pause * random.uniform(0.5, 1.5))  # else all would ask at the same times
            pause = min(LAST_POLL_S, 2 * pause)


def turns_of(run: RunOptions) -> Turns | None:
    """Return the turns that a run asks for; None where everyone writes when they like.

    Raises
    ------
    RunFaultError
        The folder of the locks is another user's.
    """
    if run.writers_per_machine is None:
        return None
    return Turns(run.writers_per_machine, _own_folder(), run.deadline_floor_s / 2)


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"actlas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise RunFaultError(
            f"{folder}: expected a folder of this user, for the locks of --writers-per-machine. "
            "Remove it, or set TMPDIR to a folder on this machine that is yours."
        )
    return folder


def _lock(file: Path) -> int | None:
    """Return a descriptor that holds a file's lock; None where someone else does."""
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
