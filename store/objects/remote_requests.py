"""Asking a bucket until it answers: what is tried again, how long, what an outage leaves behind.

obstore's errors end here. What goes on to the rest is an answer, ``FileNotFoundError``, or a run
fault.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, TypeVar

from actlas.store.errors import FormatError
from actlas.store.objects.local_paths import KEY_CHARACTERS
from actlas.store.objects.remote_client import Settings, client
from actlas.store.objects.remote_errors import Trouble, outage, trouble

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

OUT_S = 60.0
"""For so long after a store was found out, it is asked once and no more: a run that ends because of
an outage has a lease to give up and a log to close, and would wait as long again for each."""

_outages: dict[tuple[str, bool], float] = {}
"""When a store was last found out, by URL and by whether it was written to."""

_answers: dict[tuple[str, bool], float] = {}
"""When a store last answered anybody in this process, by URL and by whether it was written to."""


class Requests:
    """Requests for the objects below one URL.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``.
    limit_s : float, optional
        Give each request up after so many seconds, where ``ACTLAS_RETRY_S`` would go on. Such a
        request says nothing of an outage: others may have the patience that it lacks.
    """

    def __init__(self, url: str, limit_s: float | None = None) -> None:
        self.url = url
        self.limit_s = limit_s

    @cached_property
    def settings(self) -> Settings:
        """How patient they are."""
        now = Settings.now()
        # A try may begin until the half of it, and each takes no longer than the other.
        return now if self.limit_s is None else now.within(self.limit_s / 2)

    def ask(
        self,
        key: str,
        do: Callable[[ObjectStore], T],
        *,
        n_sent: int | None = None,
        settle: Callable[[Trouble], T | None] | None = None,
    ) -> T:
        """Do a request, again and again while its failure may pass.

        Parameters
        ----------
        key : str
            Of the object that it is about.
        do : callable
            Asks a client, and returns the answer.
        n_sent : int, optional
            The bytes that go with it; None where it reads.
        settle : callable
            Returns what a failure means as an answer; None where it means none.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        RunFaultError
            It failed for good, or for as long as it may.
        """
        if key.startswith("/") or ".." in key.split("/") or len(key) > KEY_CHARACTERS:
            raise FormatError(
                f"{self.url}: a key stays inside its store, got {key[:200]!r}.", key=key[:200]
            )
        where, settings = f"{self.url}/{key}", self._patience(n_sent)
        # The limited do all their tries themselves: obstore's own would come on top.
        tries = settings if self.limit_s is None else settings._replace(retry_s=0.0)
        began, wait_s = time.monotonic(), 0.1
        limit = began + settings.retry_s
        while True:
            try:
                result = do(client(self.url, tries, n_sent))
            except errors() as error:
                found = trouble(error)
            else:
                self._answered(n_sent)
                return result
            if found.kind in ("missing", "exists", "range"):  # an answer is an answer
                self._answered(n_sent)
            if settle is not None and (settled := settle(found)) is not None:
                return settled
            if found.kind == "missing":
                raise missing(where) from None
            now = time.monotonic()
            if found.kind == "final" or now + wait_s > limit:
                self._gave_up(found, n_sent, began, now)
                raise outage(where, found, now - began) from None
            time.sleep(wait_s * (0.5 + _jitter()))
            wait_s = min(2 * wait_s, 5.0)

    def _patience(self, n_sent: int | None) -> Settings:
        """Return the settings without tries of any kind where the store was found out just now."""
        since = _outages.get((self.url, n_sent is not None))
        if since is not None and time.monotonic() - since < OUT_S:
            return self.settings._replace(retry_s=0.0)
        return self.settings

    def _answered(self, n_sent: int | None) -> None:
        _answers[self.url, n_sent is not None] = time.monotonic()
        _outages.pop((self.url, n_sent is not None), None)

    def _gave_up(self, found: Trouble, n_sent: int | None, began: float, now: float) -> None:
        """Note an outage, unless it is this object's own fault that was met."""
        if self.limit_s is not None:
            return
        # Who reads may be answered where nobody can write: a bucket over its quota.
        ours, other = (self.url, n_sent is not None), (self.url, n_sent is None)
        if found.kind == "final":
            out = [ours, other] if found.everywhere else []
        else:  # or others were answered while this was tried for the second half of the time
            out = [k for k in (ours, other) if _answers.get(k, -1.0) <= (began + now) / 2]
        if ours in out:
            _outages.update(dict.fromkeys(out, now))


class CutError(Exception):
    """An answer held fewer bytes than it said."""


def errors() -> tuple[type[Exception], ...]:
    """Return what obstore raises: its own errors, and two of Python's."""
    from obstore.exceptions import BaseError

    return BaseError, FileNotFoundError, ConnectionError, TimeoutError, CutError


def missing(where: str) -> FileNotFoundError:
    """Return what says that there is no object at this URL."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)


def _jitter() -> float:
    """Return a number in [0, 1): many workers that failed together must not return together."""
    return Random(os.getpid() ^ time.monotonic_ns()).random()
