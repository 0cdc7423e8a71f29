"""Digests of whole objects, read in pieces."""

from __future__ import annotations

import hashlib

import xxhash

from actlas.store.objects.base import Objects

READ_BYTES = 1 << 20


def object_digest(objects: Objects, key: str) -> tuple[int, str]:
    """Return the size and the XXH3 (128 bits, hexadecimal) of an object, read in pieces.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    """
    n_bytes, digest = 0, xxhash.xxh3_128()
    for piece in objects.pieces(key, READ_BYTES):
        digest.update(piece)
        n_bytes += len(piece)
    return n_bytes, digest.hexdigest()


def object_sha256(objects: Objects, key: str) -> tuple[str, int]:
    """Return the sha256 (hexadecimal) and the size of an object, as a plan records them.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    """
    digest, n_bytes = hashlib.sha256(), 0
    for piece in objects.pieces(key, READ_BYTES):
        digest.update(piece)
        n_bytes += len(piece)
    return digest.hexdigest(), n_bytes
