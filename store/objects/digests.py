"""Digests of complete objects, streamed."""

from __future__ import annotations

import hashlib

import xxhash

from actlas.store.objects.base import Objects

READ_BYTES = 1 << 20
"""Bytes that are read at a time: 1 MiB."""


def object_digest(objects: Objects, key: str) -> tuple[int, str]:
    """Return the size in bytes and the XXH3 (128 bits, hexadecimal) of an object.

    Raises
    ------
    FileNotFoundError
        The object does not exist.
    """
    n_bytes, digest = 0, xxhash.xxh3_128()
    for part in objects.stream(key, READ_BYTES):
        digest.update(part)
        n_bytes += len(part)
    return n_bytes, digest.hexdigest()


def object_sha256(objects: Objects, key: str) -> tuple[str, int]:
    """Return the sha256 (hexadecimal) and the size in bytes of an object, as a plan records them.

    Raises
    ------
    FileNotFoundError
        The object does not exist.
    """
    digest, n_bytes = hashlib.sha256(), 0
    for part in objects.stream(key, READ_BYTES):
        digest.update(part)
        n_bytes += len(part)
    return digest.hexdigest(), n_bytes
