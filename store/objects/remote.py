"""Objects in a bucket under one prefix, through obstore."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from typing_extensions import Buffer

from actlas.store.errors import FormatError
from actlas.store.objects.local_paths import MAX_RECORD_BYTES
from actlas.store.objects.remote_client import parse_url
from actlas.store.objects.remote_errors import RequestFailure, classify, outage
from actlas.store.objects.remote_requests import (
    Requests,
    TruncatedError,
    create_object,
    errors,
    missing,
)

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

PAGE = 1000
"""The number of keys in one page of a listing."""


class RemoteObjects:
    """Objects in a bucket under one prefix. Pickling keeps only the two parameters.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``.
    limit_s : float, optional
        A time limit for each request in seconds; see :meth:`within`.

    Raises
    ------
    ConfigError
        The URL is malformed, or contains credentials.
    """

    def __init__(self, url: str, limit_s: float | None = None) -> None:
        self._url = parse_url(url)
        self._requests = Requests(self._url, limit_s)
        self._ask = self._requests.ask

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteObjects, (self._url, self._requests.limit_s)

    def __repr__(self) -> str:
        return f"RemoteObjects({self._url!r})"

    @property
    def url(self) -> str:
        """The bucket and the prefix."""
        return self._url

    @property
    def n_readers(self) -> int:
        """The number of concurrent range requests that keeps the store busy."""
        return self._requests.settings.n_readers

    def within(self, limit_s: float) -> RemoteObjects:
        """Return the same objects, with a time limit in seconds on each request."""
        return RemoteObjects(self._url, limit_s)

    def create(self, key: str, parts: Iterable[Buffer]) -> bool:
        """Create an object by a conditional PUT; return False if the key exists.

        The complete object is in memory while it is sent.

        Raises
        ------
        RunFaultError
            The store does not answer, refuses the request, or accepts no object of this size.
        """
        return create_object(self._requests, key, parts)

    def replace(self, key: str, data: bytes) -> None:
        """Write an object, replacing any object under this key."""
        import obstore

        def put(store: ObjectStore) -> None:
            obstore.put(store, key, data, mode="overwrite", use_multipart=False)

        self._ask(key, put, n_sent=len(data))

    def delete(self, key: str) -> None:
        """Delete an object; a key that does not exist is no error."""
        import obstore

        try:
            self._ask(key, lambda store: obstore.delete(store, key))
        except FileNotFoundError:
            return

    def read(self, key: str, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Return a range of an object's bytes, or fewer at its end.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        RunFaultError
            The store does not answer, or refuses the request.
        """
        import obstore

        if n_bytes == 0:
            self._require(key)
            return b""
        options: GetOptions = {}
        # A range request's answer also gives the length of the whole object.
        if n_bytes is None:
            options["range"] = {"offset": offset}
        else:
            options["range"] = (offset, offset + n_bytes)

        def get(store: ObjectStore) -> bytes:
            got = obstore.get(store, key, options=options)
            size = got.meta["size"]
            if n_bytes is None and size - offset > MAX_RECORD_BYTES:
                raise FormatError(
                    f"{self._url}/{key}: got {size} bytes, which is no record of a store; "
                    f"expected at most {MAX_RECORD_BYTES} bytes.",
                    path=key,
                )
            data = got.bytes().to_bytes()
            stop = size if n_bytes is None else min(size, offset + n_bytes)
            if len(data) != stop - offset:
                raise TruncatedError(f"got a body of {len(data)} bytes, expected {stop - offset}")
            return data

        def settle(found: RequestFailure) -> bytes | None:
            return b"" if found.kind == "range" else None  # beyond the object's end

        return self._ask(key, get, settle=settle)

    def read_into(self, key: str, offset: int, out: memoryview) -> int:
        """Read a range of an object's bytes and copy them; fewer come only at its end.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        RunFaultError
            The store does not answer, or refuses the request.
        """
        data = self.read(key, offset, len(out))
        out[: len(data)] = data
        return len(data)

    def stream(self, key: str, n_bytes: int) -> Iterator[bytes]:
        """Yield an object's bytes in order, about ``n_bytes`` at a time.

        One request serves the whole object; if it breaks off, another one continues.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        """
        import obstore

        def ended(found: RequestFailure) -> tuple[int, bytes, Iterator[Any]] | None:
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
                    raise TruncatedError("no body")
                return got.meta["size"], first, stream

            size, part, stream = self._ask(key, begin, settle=ended)
            try:
                while part:
                    offset += len(part)
                    yield part
                    part = bytes(next(stream, b""))
            except errors() as error:
                if classify(error).kind != "transient":
                    raise outage(f"{self._url}/{key}", classify(error)) from None
            # The rest is requested again; each answer yields at least one part.

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, or None if it does not exist."""
        import obstore

        try:
            return self._ask(key, lambda store: obstore.head(store, key)["size"])
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names directly under a folder.

        A folder that holds only objects is listed page by page, whatever its size.
        """
        import obstore

        prefix = folder.strip("/")
        listed = self._list(prefix)
        first = next(listed, [])
        if any("/" in path for path in first):
            # The folder has subfolders: a delimiter avoids listing their contents.
            found = self._ask(
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
        """Yield every key, page by page."""
        for page in self._list(""):
            yield from page

    def prune(self, folder: str) -> None:
        """Do nothing: a bucket has no folders."""

    def sweep(self) -> int:
        """Do nothing: an object is complete or absent, and multipart uploads are never used."""
        return 0

    def _list(self, prefix: str) -> Iterator[list[str]]:
        """Yield pages of paths below a prefix; after a failure, continue behind the last one."""
        import obstore

        last: str | None = None
        start = len(prefix) + 1 if prefix else 0
        while True:

            def begin(store: ObjectStore, last: str | None = last) -> tuple[Any, Any]:
                pages = iter(obstore.list(store, prefix or None, offset=last, chunk_size=PAGE))
                return next(pages, []), pages

            page, pages = self._ask(prefix, begin)
            try:
                while page:
                    last = page[-1]["path"]
                    yield [meta["path"][start:] for meta in page if len(meta["path"]) > start]
                    page = next(pages, [])
                return
            except errors() as error:
                if classify(error).kind != "transient":
                    raise outage(f"{self._url}/{prefix}", classify(error)) from None

    def _require(self, key: str) -> int:
        size = self.size(key)
        if size is None:
            raise missing(f"{self._url}/{key}")
        return size
