"""Objects in a bucket under one prefix, through obstore.

An object is created by one conditional PUT (``If-None-Match: *``), never by parts. Each carries a
mark of who wrote it, so that a writer whose answer was lost knows its own object again.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import Buffer

from actlas.store.errors import FormatError, RunFaultError
from actlas.store.inside import KEY_CHARACTERS, MAX_RECORD_BYTES
from actlas.store.remote_client import Settings, client, parse_url
from actlas.store.remote_faults import Trouble, outage, trouble

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

T = TypeVar("T")

MAX_PUT_BYTES = 5 << 30
"""What S3 takes in one PUT."""
MARK = "actlaswrite"
"""The metadata that names the attempt: one word, since each vendor forbids other signs."""
PAGE = 1000
OUT_S = 60.0
"""For so long after a store was found out, it is asked once and no more: a run that ends because of
an outage has a lease to give up and a log to close, and would wait as long again for each."""

_outages: dict[str, float] = {}
_out_lock = threading.Lock()


class RemoteObjects:
    """Objects in a bucket.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``. Pickled, it is this and no more.

    Raises
    ------
    ConfigError
        The URL is none, or holds credentials.
    """

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteObjects, (self._url,)

    def __repr__(self) -> str:
        return f"RemoteObjects({self._url!r})"

    @property
    def url(self) -> str:
        """The bucket and the prefix."""
        return self._url

    @property
    def n_readers(self) -> int:
        """How many range requests keep the store busy."""
        return self._settings.n_readers

    @cached_property
    def _settings(self) -> Settings:
        return Settings.now()

    def create(self, key: str, parts: Iterable[Buffer]) -> bool:
        """Put an object if there is none; False if there was one.

        The object is in memory whole while it is sent.

        Raises
        ------
        RunFaultError
            The store does not answer, refuses, or takes no object of this size.
        """
        import obstore

        body, n_bytes = self._body(key, parts)
        mark = uuid.uuid4().hex
        asked_twice = False

        def put(store: ObjectStore) -> bool:
            nonlocal asked_twice
            # Whoever asks twice looks first: the first answer may be what was lost.
            if asked_twice and (found := self._written_by(store, key, mark, body)) is not None:
                return found
            asked_twice = True
            obstore.put(
                store, key, body, mode="create", use_multipart=False, attributes={MARK: mark}
            )
            return True

        def settle(found: Trouble) -> bool | None:
            if found.kind != "exists":
                return None
            # obstore itself asks again after a 500, and its second try may meet our own object;
            # and a 409 says only that another write was under way: then nothing may be there.
            return self._request(key, lambda store: self._written_by(store, key, mark, body))

        return self._request(key, put, n_sent=n_bytes, settle=settle)

    def replace(self, key: str, data: bytes) -> None:
        """Put an object over what was there."""
        import obstore

        def put(store: ObjectStore) -> None:
            obstore.put(store, key, data, mode="overwrite", use_multipart=False)

        self._request(key, put, n_sent=len(data))

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens where there is none."""
        import obstore

        try:
            self._request(key, lambda store: obstore.delete(store, key))
        except FileNotFoundError:
            return

    def read(self, key: str, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Get a range of an object; fewer bytes come back only at its end.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        RunFaultError
            The store does not answer, or refuses.
        """
        import obstore

        if n_bytes == 0:
            self._require(key)
            return b""
        options: GetOptions = {}
        # Always a range: its answer says how long the whole object is, apart from its own length.
        if n_bytes is None:
            options["range"] = {"offset": offset}
        else:
            options["range"] = (offset, offset + n_bytes)

        def get(store: ObjectStore) -> bytes:
            got = obstore.get(store, key, options=options)
            size = got.meta["size"]
            if n_bytes is None and size - offset > MAX_RECORD_BYTES:
                raise FormatError(
                    f"{self._url}/{key}: {size} bytes, and it is read whole; expected at most "
                    f"{MAX_RECORD_BYTES}. It is none of actlas's.",
                    path=key,
                )
            data = got.bytes().to_bytes()
            stop = size if n_bytes is None else min(size, offset + n_bytes)
            if len(data) != stop - offset:
                raise _CutError(f"{len(data)} bytes of body, expected {stop - offset}")
            return data

        def settle(found: Trouble) -> bytes | None:
            return b"" if found.kind == "range" else None  # nothing lies there

        return self._request(key, get, settle=settle)

    def pieces(self, key: str, n_bytes: int) -> Iterator[bytes]:
        """Yield a whole object in order, by one request unless it breaks, in some ``n_bytes``.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        """
        import obstore

        def ended(found: Trouble) -> tuple[int, bytes, Iterator[Any]] | None:
            return (0, b"", iter(())) if found.kind == "range" else None

        offset, size = 0, 1
        while offset < size:
            options: GetOptions = {"range": {"offset": offset}}

            def begin(
                store: ObjectStore, options: GetOptions = options, offset: int = offset
            ) -> tuple[int, bytes, Iterator[Any]]:
                got = obstore.get(store, key, options=options)
                stream = iter(got.stream(n_bytes))
                first = bytes(next(stream, b""))
                if not first and offset < got.meta["size"]:
                    raise _CutError("no body")
                return got.meta["size"], first, stream

            size, piece, stream = self._request(key, begin, settle=ended)
            try:
                while piece:
                    offset += len(piece)
                    yield piece
                    piece = bytes(next(stream, b""))
            except _errors() as error:
                if trouble(error).kind != "passing":
                    raise outage(f"{self._url}/{key}", trouble(error)) from None
            # What is still missing is asked for again; each answer brings at least one piece.

    def size(self, key: str) -> int | None:
        """Return an object's size, or None where there is none."""
        import obstore

        try:
            return self._request(key, lambda store: obstore.head(store, key)["size"])
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> Iterator[str]:
        """List what lies directly under a folder.

        A folder of objects alone is read page by page, whatever its size.
        """
        import obstore

        prefix = folder.strip("/")
        listed = self._list(prefix)
        first = next(listed, [])
        if any("/" in path for path in first):
            # It has folders of its own, which a delimiter spares us to walk through.
            found = self._request(
                prefix, lambda store: obstore.list_with_delimiter(store, prefix or None)
            )
            paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
            yield from (path.rpartition("/")[2] for path in paths)
            return
        seen: set[str] = set()
        for page in itertools.chain([first], listed):
            for path in page:
                name, slash, _ = path.partition("/")
                if slash and name in seen:
                    continue
                if slash:
                    seen.add(name)
                yield name

    def walk(self) -> Iterator[str]:
        """List every object, page by page."""
        for page in self._list(""):
            yield from page

    def prune(self, folder: str) -> None:
        """Do nothing: a bucket has no folders."""

    def sweep(self) -> int:
        """Do nothing: an object is there whole or not at all, and parts are never uploaded."""
        return 0

    def _list(self, prefix: str) -> Iterator[list[str]]:
        """Yield pages of paths below a prefix; after a fault, go on behind the last."""
        import obstore

        last: str | None = None
        start = len(prefix) + 1 if prefix else 0
        while True:

            def begin(store: ObjectStore, last: str | None = last) -> tuple[Any, Any]:
                pages = iter(obstore.list(store, prefix or None, offset=last, chunk_size=PAGE))
                return next(pages, []), pages

            page, pages = self._request(prefix, begin)
            try:
                while page:
                    last = page[-1]["path"]
                    yield [meta["path"][start:] for meta in page if len(meta["path"]) > start]
                    page = next(pages, [])
                return
            except _errors() as error:
                if trouble(error).kind != "passing":
                    raise outage(f"{self._url}/{prefix}", trouble(error)) from None

    def _require(self, key: str) -> int:
        size = self.size(key)
        if size is None:
            raise _missing(f"{self._url}/{key}")
        return size

    def _body(self, key: str, parts: Iterable[Buffer]) -> tuple[list[memoryview], int]:
        body, n_bytes = [], 0
        for part in parts:
            view = memoryview(part).cast("B")
            n_bytes += view.nbytes
            if n_bytes > MAX_PUT_BYTES:
                raise RunFaultError(
                    f"{self._url}/{key}: this object has more than {MAX_PUT_BYTES >> 30} GiB, the "
                    "most that one conditional PUT takes. Plan with fewer rows per shard "
                    "(--shard-rows).",
                    path=f"{self._url}/{key}",
                )
            if view.nbytes:
                body.append(view)
        return body, n_bytes

    def _written_by(
        self, store: ObjectStore, key: str, mark: str, body: list[memoryview]
    ) -> bool | None:
        """Whether the object at a key is ours; None where there is none."""
        import obstore

        try:
            found = obstore.get(store, key, options={"head": True})
        except FileNotFoundError as error:
            if trouble(error).kind == "missing":
                return None
            raise
        theirs = found.attributes.get(MARK)
        if theirs is not None:
            return bool(theirs == mark)
        # A store that keeps no metadata: the same bytes are as good as ours.
        if found.meta["size"] != sum(part.nbytes for part in body):
            return False
        return obstore.get(store, key).bytes().to_bytes() == b"".join(body)

    def _request(
        self,
        key: str,
        do: Callable[[ObjectStore], T],
        *,
        n_sent: int | None = None,
        settle: Callable[[Trouble], T | None] | None = None,
    ) -> T:
        """Do a request, again and again while its failure may pass.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        RunFaultError
            It failed for good, or for longer than ``ACTLAS_RETRY_S``.
        """
        if key.startswith("/") or ".." in key.split("/") or len(key) > KEY_CHARACTERS:
            raise FormatError(
                f"{self._url}: a key stays inside its store, got {key[:200]!r}.", key=key[:200]
            )
        where, settings = f"{self._url}/{key}", _patient(self._url, self._settings)
        began, wait_s = time.monotonic(), 0.1
        limit = began + settings.retry_s
        while True:
            try:
                result = do(client(self._url, settings, n_sent))
            except _errors() as error:
                found = trouble(error)
            else:
                _outages.pop(self._url, None)
                return result
            if found.kind in ("missing", "exists", "range"):  # an answer is an answer
                _outages.pop(self._url, None)
            if settle is not None and (settled := settle(found)) is not None:
                return settled
            if found.kind == "missing":
                raise _missing(where) from None
            now = time.monotonic()
            if found.kind == "final" or now + wait_s > limit:
                with _out_lock:
                    _outages[self._url] = now
                raise outage(where, found, now - began) from None
            time.sleep(wait_s * (0.5 + _jitter()))
            wait_s = min(2 * wait_s, 5.0)


class _CutError(Exception):
    """An answer held fewer bytes than it said."""


def _errors() -> tuple[type[Exception], ...]:
    """Return what obstore raises: its own errors, and two of Python's."""
    from obstore.exceptions import BaseError

    return BaseError, FileNotFoundError, ConnectionError, TimeoutError, _CutError


def _patient(url: str, settings: Settings) -> Settings:
    """Return the settings without tries of any kind where the store was found out just now."""
    since = _outages.get(url)
    if since is not None and time.monotonic() - since < OUT_S:
        return settings._replace(retry_s=0.0)
    return settings


def _missing(where: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)


def _jitter() -> float:
    """Return a number in [0, 1): many workers that failed together must not return together."""
    return Random(os.getpid() ^ time.monotonic_ns()).random()
