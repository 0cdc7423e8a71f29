"""Requests to an object store: which are retried, for how long, and conditional creation.

obstore's errors do not pass this module: a request ends with an answer, ``FileNotFoundError``, or a
``RunFaultError``.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterable
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import Buffer

from actlas.store.errors import FormatError, PlaceError
from actlas.store.objects.local_paths import KEY_CHARACTERS
from actlas.store.objects.remote_client import Settings, client
from actlas.store.objects.remote_errors import RequestFailure, classify, outage

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

OUT_S = 60.0
"""Seconds after an outage during which requests are not retried.

A run that ends because of an outage still releases its lease and closes its log, and must not wait
for the full retry time at each of these requests.
"""

_outages: dict[tuple[str, bool], float] = {}
"""The time at which a store last had an outage, by (URL, whether the request was a write)."""

_answers: dict[tuple[str, bool], float] = {}
"""The time at which a store last answered any request of this process, by the same keys."""

MAX_PUT_BYTES = 5 << 30
"""The maximum size of an object that S3 accepts in one PUT: 5 GiB."""

MARK = "actlaswrite"
"""The object metadata key that holds the writer's mark; every vendor accepts plain letters."""


class Requests:
    """Sends requests for the objects below one URL and retries those that may succeed later.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``.
    limit_s : float, optional
        A time limit in seconds for each request, if shorter than ``ACTLAS_RETRY_S``. A request
        that fails within such a limit is not recorded as an outage, since it was not retried for
        the full time.
    """

    def __init__(self, url: str, limit_s: float | None = None) -> None:
        self.url = url
        self.limit_s = limit_s

    @cached_property
    def settings(self) -> Settings:
        """Timeouts and retry times of these requests."""
        now = Settings.now()
        # A try may begin during the first half of the limit, and takes at most the other half.
        return now if self.limit_s is None else now.within(self.limit_s / 2)

    def ask(
        self,
        key: str,
        do: Callable[[ObjectStore], T],
        *,
        n_sent: int | None = None,
        settle: Callable[[RequestFailure], T | None] | None = None,
    ) -> T:
        """Send a request, and retry it while its failure may be transient.

        Parameters
        ----------
        key : str
            The object that the request is about.
        do : callable
            Sends the request with the client that it is given, and returns the answer.
        n_sent : int, optional
            The number of bytes in the request's body; None for a read.
        settle : callable, optional
            Returns the answer that a failure stands for, or None if it stands for none.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        RunFaultError
            The failure is permanent, or the retry time is over.
        """
        if key.startswith("/") or ".." in key.split("/") or len(key) > KEY_CHARACTERS:
            raise FormatError(
                f"{self.url}: got key {key[:200]!r}, expected one that stays inside the store.",
                key=key[:200],
            )
        where, settings = f"{self.url}/{key}", self._patience(n_sent)
        # With a time limit all retries are made here: obstore's own would add to them.
        tries = settings if self.limit_s is None else settings._replace(retry_s=0.0)
        began, wait_s = time.monotonic(), 0.1
        limit = began + settings.retry_s
        while True:
            try:
                result = do(client(self.url, tries, n_sent))
            except errors() as error:
                found = classify(error)
            else:
                self._answered(n_sent)
                return result
            if found.kind in ("missing", "exists", "range"):  # the store answered
                self._answered(n_sent)
            if settle is not None and (settled := settle(found)) is not None:
                return settled
            if found.kind == "missing":
                raise missing(where) from None
            now = time.monotonic()
            if found.kind == "permanent" or now + wait_s > limit:
                self._gave_up(found, n_sent, began, now)
                raise outage(where, found, now - began) from None
            time.sleep(wait_s * (0.5 + _jitter()))
            wait_s = min(2 * wait_s, 5.0)

    def _patience(self, n_sent: int | None) -> Settings:
        """Return the settings; without any retries shortly after an outage."""
        since = _outages.get((self.url, n_sent is not None))
        if since is not None and time.monotonic() - since < OUT_S:
            return self.settings._replace(retry_s=0.0)
        return self.settings

    def _answered(self, n_sent: int | None) -> None:
        _answers[self.url, n_sent is not None] = time.monotonic()
        _outages.pop((self.url, n_sent is not None), None)

    def _gave_up(self, found: RequestFailure, n_sent: int | None, began: float, now: float) -> None:
        """Record an outage, unless the failure concerns this object only."""
        if self.limit_s is not None:
            return
        # Reads may work while writes fail: a bucket over its quota.
        ours, other = (self.url, n_sent is not None), (self.url, n_sent is None)
        if found.kind == "permanent":
            out = [ours, other] if found.everywhere else []
        else:  # unless others were answered during the second half of the retry time
            out = [k for k in (ours, other) if _answers.get(k, -1.0) <= (began + now) / 2]
        if ours in out:
            _outages.update(dict.fromkeys(out, now))


class TruncatedError(Exception):
    """The body of an answer has fewer bytes than its headers announced."""


def errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a request may raise: obstore's own and some of Python's."""
    from obstore.exceptions import BaseError

    return BaseError, FileNotFoundError, ConnectionError, TimeoutError, TruncatedError


def missing(where: str) -> FileNotFoundError:
    """Return the ``FileNotFoundError`` for the object at this URL."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)


def _jitter() -> float:
    """Return a random number in [0, 1): workers that failed together must not retry together."""
    return Random(os.getpid() ^ time.monotonic_ns()).random()


def create_object(requests: Requests, key: str, parts: Iterable[Buffer]) -> bool:
    """Create an object by one conditional PUT; return False if the key exists.

    The PUT has ``If-None-Match: *``. The object carries a random mark in its metadata, by which a
    writer whose answer was lost recognizes its own object. A multipart upload is never used.

    Parameters
    ----------
    requests : Requests
        Sends the request.
    key : str
        The object's key.
    parts : iterable of bytes-like
        The object's bytes, in order; all of them are in memory while the request is sent.

    Raises
    ------
    RunFaultError
        The store does not answer, refuses the request, or accepts no object of this size.
    """
    import obstore

    body, n_bytes = _body(f"{requests.url}/{key}", parts)
    mark = uuid.uuid4().hex
    asked_twice = False

    def put(store: ObjectStore) -> bool:
        nonlocal asked_twice
        # A second try looks for the object first: the first answer may have been lost.
        if asked_twice and (found := _written_by(store, key, mark, body)) is not None:
            return found
        asked_twice = True
        obstore.put(store, key, body, mode="create", use_multipart=False, attributes={MARK: mark})
        return True

    def settle(found: RequestFailure) -> bool | None:
        if found.kind != "exists":
            return None
        # obstore itself retries after a 500, and its second try may find our own object; and a
        # 409 only means that another write was in progress: there may be no object at all.
        return requests.ask(key, lambda store: _written_by(store, key, mark, body))

    return requests.ask(key, put, n_sent=n_bytes, settle=settle)


def _body(where: str, parts: Iterable[Buffer]) -> tuple[list[memoryview], int]:
    body, n_bytes = [], 0
    for part in parts:
        view = memoryview(part).cast("B")
        n_bytes += view.nbytes
        if n_bytes > MAX_PUT_BYTES:
            raise PlaceError(
                f"{where}: this object is larger than {MAX_PUT_BYTES >> 30} GiB, the limit of one "
                "conditional PUT. Plan with fewer rows per shard (--shard-rows).",
                path=where,
            )
        if view.nbytes:
            body.append(view)
    return body, n_bytes


def _written_by(store: ObjectStore, key: str, mark: str, body: list[memoryview]) -> bool | None:
    """Return whether the object at a key is ours, or None if there is none."""
    import obstore

    try:
        found = obstore.get(store, key, options={"head": True})
    except FileNotFoundError as error:
        if classify(error).kind == "missing":
            return None
        raise
    theirs = found.attributes.get(MARK)
    if theirs is not None:
        return bool(theirs == mark)
    # The store keeps no metadata: an object with the same bytes counts as ours.
    if found.meta["size"] != sum(part.nbytes for part in body):
        return False
    return obstore.get(store, key).bytes().to_bytes() == b"".join(body)
