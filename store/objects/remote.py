"""Objects in a bucket under one prefix, through obstore."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from typing_extensions import Buffer

from actlas.store.errors import FormatError
from actlas.store.objects.local_paths import MAX_RECORD_BYTES
from actlas.store.objects.remote_client import parse_url
from actlas.store.objects.remote_create import create
from actlas.store.objects.remote_errors import Trouble, outage, trouble
from actlas.store.objects.remote_requests import CutError, Requests, errors, missing

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

PAGE = 1000


class RemoteObjects:
    """Objects in a bucket.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``.
    limit_s : float, optional
        See :meth:`within`. Pickled, they are these two and no more.

    Raises
    ------
    ConfigError
        The URL is none, or holds credentials.
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
        """How many range requests keep the store busy."""
        return self._requests.settings.n_readers

    def within(self, limit_s: float) -> RemoteObjects:
        """Return the same objects, whose requests are given up after so many seconds."""
        return RemoteObjects(self._url, limit_s)

    def create(self, key: str, parts: Iterable[Buffer]) -> bool:
        """Put an object if there is none; False if there was one.

        The object is in memory whole while it is sent.

        Raises
        ------
        RunFaultError
            The store does not answer, refuses, or takes no object of this size.
        """
        return create(self._requests, key, parts)

    def replace(self, key: str, data: bytes) -> None:
        """Put an object over what was there."""
        import obstore

        def put(store: ObjectStore) -> None:
            obstore.put(store, key, data, mode="overwrite", use_multipart=False)

        self._ask(key, put, n_sent=len(data))

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens where there is none."""
        import obstore

        try:
            self._ask(key, lambda store: obstore.delete(store, key))
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
                raise CutError(f"{len(data)} bytes of body, expected {stop - offset}")
            return data

        def settle(found: Trouble) -> bytes | None:
            return b"" if found.kind == "range" else None  # nothing lies there

        return self._ask(key, get, settle=settle)

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
                    raise CutError("no body")
                return got.meta["size"], first, stream

            size, piece, stream = self._ask(key, begin, settle=ended)
            try:
                while piece:
                    offset += len(piece)
                    yield piece
                    piece = bytes(next(stream, b""))
            except errors() as error:
                if trouble(error).kind != "passing":
                    raise outage(f"{self._url}/{key}", trouble(error)) from None
            # What is still missing is asked for again; each answer brings at least one piece.

    def size(self, key: str) -> int | None:
        """Return an object's size, or None where there is none."""
        import obstore

        try:
            return self._ask(key, lambda store: obstore.head(store, key)["size"])
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

            page, pages = self._ask(prefix, begin)
            try:
                while page:
                    last = page[-1]["path"]
                    yield [meta["path"][start:] for meta in page if len(meta["path"]) > start]
                    page = next(pages, [])
                return
            except errors() as error:
                if trouble(error).kind != "passing":
                    raise outage(f"{self._url}/{prefix}", trouble(error)) from None

    def _require(self, key: str) -> int:
        size = self.size(key)
        if size is None:
            raise missing(f"{self._url}/{key}")
        return size
