"""Following the log of a job on a cluster, through connections that break.

A connection always begins at the log's first character, so the characters that were shown are
counted and skipped: no line is lost or shown twice.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable
from typing import Any

from actlas.store.errors import InterruptedRunError

LOST_AFTER_S = 120.0
"""Seconds without any answer after which a job is no longer followed; the job may go on."""

SILENT_AFTER_S = 120.0
"""Seconds without text after which a connection is made anew: it may be dead without a sign."""

ANSWER_S = 30.0
"""Seconds that the server may take to answer a request."""

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 10.0
"""Seconds between tries to connect: doubled after each that fails."""


class _OutputError(Exception):
    """What was heard cannot be written: no fault of the connection. It has the cause."""


class JobLog:
    """The part of a job's log that was shown.

    Parameters
    ----------
    write : callable
        Receives the text that was not shown yet, as it is: whatever prints it escapes it.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._n_read = self._n_shown = 0
        self.heard_s = time.monotonic()

    def begin(self) -> None:
        """Begin to read the log from its first character again."""
        self._n_read = 0

    def add(self, text: str) -> None:
        """Take the next text of the log, and write what was not shown."""
        self.heard_s = time.monotonic()
        self._n_read += len(text)
        n_new = self._n_read - self._n_shown
        if n_new <= 0:
            return
        self._n_shown = self._n_read
        try:
            self._write(text[-n_new:])
        except OSError as error:
            raise _OutputError from error


def follow(client: Any, job: str, write: Callable[[str], None], address: str) -> Any:
    """Write a job's log as it grows, and return the server's record of the finished job.

    Parameters
    ----------
    client : ray.job_submission.JobSubmissionClient
        The client.
    job : str
        The submission id.
    write : callable
        Receives the text of the log.
    address : str
        The server's address, for messages.

    Raises
    ------
    InterruptedRunError
        The server has not answered for ``LOST_AFTER_S``. The job may go on.
    AuthenticationError
        The server refuses the token by now.
    """
    from ray.exceptions import AuthenticationError

    log, pause, lost_s = JobLog(write), FIRST_PAUSE_S, math.inf
    while True:
        try:
            asyncio.run(_tail(client, job, log))
            info = client.get_job_info(job)
        except _OutputError as error:
            raise error.__cause__ or error from None
        except AuthenticationError:
            raise
        except _connection_errors() as error:
            now = time.monotonic()
            if not log.heard_s <= lost_s <= now:  # the first failure, or the first since then
                lost_s, pause = now, FIRST_PAUSE_S
            if now - lost_s > LOST_AFTER_S:
                raise InterruptedRunError(
                    f"{address} has not answered for {LOST_AFTER_S:.0f} s "
                    f"({first_line(error)}): the job is no longer followed and may go on."
                ) from error
        else:
            lost_s, pause = math.inf, FIRST_PAUSE_S
            if info.status.is_terminal():
                _read_the_rest(client, job, log, write)
                return info
        time.sleep(pause)
        pause = min(LAST_PAUSE_S, 2 * pause)


async def _tail(client: Any, job: str, log: JobLog) -> None:
    """Write the log until the server ends the connection, or is silent for a while."""
    log.begin()
    texts = client.tail_job_logs(job)
    while True:
        following = asyncio.ensure_future(anext(texts))
        try:
            await asyncio.wait({following}, timeout=SILENT_AFTER_S)
            if not following.done():
                return
            log.add(following.result())
        except StopAsyncIteration:
            return
        finally:
            if not following.done():
                following.cancel()
                await asyncio.wait({following})
                await texts.aclose()


def _read_the_rest(client: Any, job: str, log: JobLog, write: Callable[[str], None]) -> None:
    """Write what the last connection had not told when it ended before the job did."""
    log.begin()
    try:
        log.add(client.get_job_logs(job))
    except _OutputError as error:
        raise error.__cause__ or error from None
    except _connection_errors() as error:
        write(f"the end of the log may be missing: {first_line(error)}\n")


def limit_requests(client: Any) -> None:
    """Give the client's requests a time limit: Ray's own has none, and could wait for ever."""
    ask = getattr(client, "_do_request", None)
    if ask is not None:
        client._do_request = functools.partial(ask, timeout=ANSWER_S)


def _connection_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    from ray.exceptions import RayError

    return (OSError, RuntimeError, RayError, aiohttp.ClientError)


def first_line(error: object) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
