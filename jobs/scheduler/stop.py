"""Stopping a run by signals: the first one drains it, the second one stops it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from actlas.jobs.terminal import echo
from actlas.store.errors import EXIT_RESUME, SignalledExit
from actlas.store.voice import spoken

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LAST_S = 15.0
"""Seconds that a process may take to end after the second signal."""

_owns_process = False


class Stop:
    """Context manager that handles Ctrl-C and SIGTERM.

    Enter it after ``ray.init``, whose own handler aborts the driver on SIGTERM. The first signal
    sets ``requested``: no further shard is begun, and the shards in flight may finish. The second
    signal raises: see :func:`interruption`. At the end the handlers of before are put back. In
    threads other than the main one nothing is handled, since Python delivers no signals there.

    Parameters
    ----------
    log : callable
        Receives one line for the user.
    lost : Event, optional
        Set when the run has lost its lease, which drains the run as well.
    unit : str
        Noun for a unit of work, for the message.
    at_once : bool
        Whether the first signal stops the run at once, as the second one does.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        lost: threading.Event | None = None,
        *,
        unit: str = "shard",
        at_once: bool = False,
    ) -> None:
        self.signal: int | None = None
        self._unit, self._at_once = unit, at_once
        self._lost = lost
        self._log = log
        self._before: dict[int, Any] = {}

    @property
    def signalled(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @contextmanager
    def ending_the_process(self) -> Iterator[None]:
        """Let an error that is raised after a signal end a Python process that was told to end."""
        try:
            yield
        except Exception as error:
            if self.signal is None or _owns_process:
                raise
            raise interruption(self.signal, str(error)) from error

    @property
    def requested(self) -> bool:
        """Whether no further shard may be begun."""
        return self.signalled or (self._lost is not None and self._lost.is_set())

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals only to the main thread
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
            raise interruption(number, "stopped at once")
        self.signal = number
        if self._at_once:
            raise interruption(number, "stopped at once")
        units = f"{self._unit}s"
        text = (
            f"{signal.Signals(number).name}: finishing the {units} in flight, then stopping. A "
            f"second signal (Ctrl-C) stops at once; finished {units} are kept either way."
        )
        # The main thread may hold the stream or the lock that logging needs.
        threading.Thread(target=self._log, args=(text,), daemon=True).start()


def interruption(number: int, line: str) -> BaseException:
    """Return what a signal raises: ``KeyboardInterrupt`` after SIGINT, else ``SignalledExit``.

    Neither is an ``Exception``: a program that goes on after errors does not go on after these.

    Parameters
    ----------
    number : int
        The signal.
    line : str
        How far the run came. A process that ends by ``SignalledExit`` prints nothing by itself:
        the line is printed here.
    """
    if number == signal.SIGINT or _owns_process:
        return KeyboardInterrupt(spoken(line))
    name = signal.Signals(number).name
    echo(f"{name}: {line}", err=True)
    return SignalledExit(line)


def terminate_as_interrupt() -> None:
    """Make SIGTERM raise ``KeyboardInterrupt`` outside of :class:`Stop`.

    The command line calls it for its own process: a second signal then ends the process within
    ``LAST_S`` seconds, whatever it is blocked by.
    """
    global _owns_process
    _owns_process = True
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _end_process() -> None:
    """End a process that does not end by itself, for example because it waits for a lock.

    Files that were being written are left as after SIGKILL: unfinished ones do not count.
    """
    time.sleep(LAST_S)
    os._exit(EXIT_RESUME)
