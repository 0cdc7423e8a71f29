"""Stopping a run: the first signal drains it, the second stops it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from actlas.store.errors import EXIT_RESUME

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LAST_S = 15.0
"""How long a process that was told twice to stop may take for it."""

_owns_process = False


class Stop:
    """Watches for Ctrl-C and SIGTERM while it is entered.

    Enter it after ``ray.init``, whose own handler aborts the driver on SIGTERM. The first signal
    sets ``requested``: nothing new is begun, what is in flight may finish. The second raises
    ``KeyboardInterrupt``.

    Parameters
    ----------
    say : callable
        Tells the user what happens, in one plain line.
    lost : Event, optional
        Set where the run has lost its lease: then it drains too.
    """

    def __init__(self, say: Callable[[str], None], lost: threading.Event | None = None) -> None:
        self.signalled = False
        self._lost = lost
        self._say = say
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether nothing new may be begun."""
        return self.signalled or (self._lost is not None and self._lost.is_set())

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread alone
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            if _owns_process:
                threading.Thread(target=_end_process, daemon=True).start()
            raise KeyboardInterrupt
        self.signalled = True
        text = (
            f"{signal.Signals(number).name}: finishing the shards in flight, beginning no other. "
            "Once more (Ctrl-C) stops at once; either way nothing done is lost."
        )
        # The main thread may be inside the very stream or lock that saying needs.
        threading.Thread(target=self._say, args=(text,), daemon=True).start()


def terminate_as_interrupt() -> None:
    """Make SIGTERM raise ``KeyboardInterrupt`` where no :class:`Stop` is entered.

    Called where the process is the command line's own: then a second signal ends it within
    ``LAST_S``, whatever it hangs in.
    """
    global _owns_process
    _owns_process = True
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _end_process() -> None:
    """End the process if it has not ended by itself: a signal may interrupt the holder of a lock.

    What was being written is as after SIGKILL: nothing half-done counts.
    """
    time.sleep(LAST_S)
    os._exit(EXIT_RESUME)
