"""Where a store's bytes lie: create-only objects under keys, in a folder or in a bucket.

An object appears under its final name whole, durable, and once: the first writer wins. Locally a
file is staged, synced, linked to its name and the folder is synced; the final name is never opened
for writing. An object store does the same with a conditional PUT, see
:mod:`actlas.store.objects.remote_create`.
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
    """Keys to immutable objects, plus the few small ones that may be replaced (leases, logs)."""

    @property
    def url(self) -> str:
        """Where it is: a folder or a URL, without credentials."""

    @property
    def n_readers(self) -> int:
        """How many reads at once keep it busy."""

    def within(self, limit_s: float) -> Objects:
        """Return the same objects for who would rather ask again later than wait for an answer.

        A request that is tried again while it fails is given up after ``limit_s`` seconds at the
        latest, and raises ``RunFaultError``.
        """

    def create(self, key: str, parts: Iterable[Buffer]) -> bool:
        """Write an object whole and durable; False if there was one already, left as it is."""

    def replace(self, key: str, data: bytes) -> None:
        """Write a small object over what was there, at once."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""

    def read(self, key: str, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Return bytes [offset, offset + n_bytes) or to the end.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        """

    def pieces(self, key: str, n_bytes: int) -> Iterator[bytes]:
        """Yield a whole object in order, some ``n_bytes`` at a time.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        """

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None where there is no such object."""

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names directly under a folder, in no order; none where there is no folder."""

    def walk(self) -> Iterator[str]:
        """Yield every key there is, in no order."""

    def prune(self, folder: str) -> None:
        """Remove a folder's empty folders and itself, where folders are a thing of their own."""

    def sweep(self) -> int:
        """Remove what killed writers left unfinished; return how many. Only under the lease."""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the URL of a bucket, and not of a folder.

    Raises
    ------
    ConfigError
        It was a URL, until pathlib took one of its slashes.

    Examples
    --------
    >>> is_url("s3://bucket/run.zarr"), is_url("run.zarr"), is_url("file:///tmp/run.zarr")
    (True, False, False)
    """
    text = os.fspath(path)
    if re.match(r"(s3a?|gs|az(ure)?|abfss?|adl):/(?!/)", text):
        raise ConfigError(
            f"{text}: this was a URL until pathlib took one of its slashes. Give it as a string.",
            field="store",
        )
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.isalnum() and scheme.lower() != "file"


def open_objects(url: str | os.PathLike[str]) -> Objects:
    """Return the objects at a path or a URL.

    Raises
    ------
    StoreNotFoundError
        It is a URL of a kind that this version does not open.
    ConfigError
        It is a URL with credentials in it, or of no bucket.
    """
    text = os.fspath(url)
    if is_url(text):
        from actlas.store.objects.remote import RemoteObjects

        return RemoteObjects(text)
    return LocalObjects(text.removeprefix("file://"))
