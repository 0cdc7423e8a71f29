"""``Objects``: how a store's bytes are kept, as create-only objects in a folder or a bucket.

An object appears under its key complete, durable, and once: the first writer wins. On a file
system a file is staged, synced, linked to its final name, and its folder is synced; the final name
is never opened for writing. In a bucket a conditional PUT does the same
(:func:`actlas.store.objects.remote_requests.create_object`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Protocol

from typing_extensions import Buffer

from actlas.store.errors import ConfigError
from actlas.store.objects.local import LocalObjects


class Objects(Protocol):
    """A mapping of keys to immutable objects.

    A few small objects may be replaced: heartbeats of leases, and logs. A key is a path relative to
    the store, such as ``ledger/plan.json``.
    """

    @property
    def url(self) -> str:
        """The folder or URL that the keys are relative to, without credentials."""

    @property
    def n_readers(self) -> int:
        """The number of concurrent reads that keeps the file system or object store busy."""

    def within(self, limit_s: float) -> Objects:
        """Return the same objects with a time limit on each request.

        A request that has failed for ``limit_s`` seconds is not retried again: it raises
        ``RunFaultError``.

        Parameters
        ----------
        limit_s : float
            Seconds.
        """

    def create(self, key: str, parts: Iterable[Buffer]) -> bool:
        """Write an object durably and return True, or return False if the key exists.

        An existing object is left unchanged.

        Parameters
        ----------
        key : str
            The object's key.
        parts : iterable of bytes-like
            The object's bytes, in order.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write a small object atomically, replacing any object under this key."""

    def delete(self, key: str) -> None:
        """Delete an object; a key that does not exist is no error."""

    def read(self, key: str, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Return bytes [offset, offset + n_bytes) of an object, or fewer at its end.

        Parameters
        ----------
        key : str
            The object's key.
        offset : int
            The first byte.
        n_bytes : int, optional
            The number of bytes; without it, everything from ``offset`` to the end.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        """

    def read_into(self, key: str, offset: int, out: memoryview) -> int:
        """Read an object's bytes from ``offset`` on into memory that is used again.

        Parameters
        ----------
        key : str
            The object's key.
        offset : int
            The first byte.
        out : memoryview of bytes
            Receives the bytes.

        Returns
        -------
        int
            The number of bytes: those of ``out``, or fewer at the object's end.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        """

    def stream(self, key: str, n_bytes: int) -> Iterator[bytes]:
        """Yield an object's bytes in order, about ``n_bytes`` at a time.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        """

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, or None if it does not exist."""

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names directly under a folder, in no order; nothing if there is no folder."""

    def walk(self) -> Iterator[str]:
        """Yield every key, in no order."""

    def prune(self, folder: str) -> None:
        """Remove a folder's empty subfolders and the folder itself; a bucket has no folders."""

    def sweep(self) -> int:
        """Remove the unfinished files of killed writers and return their number.

        Only the holder of the store's lease may call this.
        """


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is the URL of a bucket, rather than a folder.

    Raises
    ------
    ConfigError
        The path is a URL that pathlib shortened by one slash (``s3:/bucket``).

    Examples
    --------
    >>> is_url("s3://bucket/run.zarr"), is_url("run.zarr"), is_url("file:///tmp/run.zarr")
    (True, False, False)
    """
    text = os.fspath(path)
    if re.match(r"(s3a?|gs|az(ure)?|abfss?|adl):/(?!/)", text):
        raise ConfigError(
            f"{text}: pathlib removed a slash from this URL. Give the URL as a string.",
            field="store",
        )
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.isalnum() and scheme.lower() != "file"


def open_objects(url: str | os.PathLike[str]) -> Objects:
    """Return the objects at a path or a URL.

    Raises
    ------
    StoreNotFoundError
        The URL's scheme is not supported.
    ConfigError
        The URL contains credentials, or names no bucket.
    """
    if not isinstance(url, str | os.PathLike):
        raise ConfigError(
            f"store: got {url!r:.100} ({type(url).__name__}), expected an open store, or the path "
            "or URL of one.",
            field="store",
        )
    text = os.fspath(url)
    if is_url(text):
        from actlas.store.objects.remote import RemoteObjects

        return RemoteObjects(text)
    return LocalObjects(text.removeprefix("file://"))
