"""``Recorded``: what a receipt, or the plan, says of one object; readers hold its bytes against it.

A checksum that lies beside its bytes does not say *which* bytes they are: a valid file of another
shard, array or store passes. A record lies elsewhere, is sealed, and names the object by its key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import xxhash

from actlas.store.errors import CorruptDataError
from actlas.store.format.schema import ObjectRecord

WHOLE_BYTES = 4 << 20
"""An object without a record of its chunks is read and hashed as a whole when it is first opened,
if its chunks have at most this many bytes. Only the size of a larger one is compared."""

SWAPPED = (
    "A file of another shard, array or store lies in its place, or it was changed. `actlas verify "
    "--full` lists such files, `actlas repair` mends them."
)
"""The end of messages about an object that is not the recorded one."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The record of an object.

    Attributes
    ----------
    n_bytes : int
        The object's size.
    digest : str
        The XXH3 (128 bits) or the sha256 of all its bytes, hexadecimal: 32 or 64 digits.
    chunk_crc32c : sequence of int, or None
        The crc32c of each of its inner chunks, without the crc32c that a compressed chunk ends
        with; None if the record has none.
    by : str
        What holds the record, for messages: ``receipt`` or ``plan``.
    """

    n_bytes: int
    digest: str
    chunk_crc32c: Sequence[int] | None = None
    by: str = "receipt"

    @classmethod
    def of(cls, record: ObjectRecord) -> Recorded:
        """Return what a receipt's record says of its object."""
        return cls(record.n_bytes, record.xxh3, record.chunk_crc32c)

    def checks_whole(self, n_index_bytes: int) -> bool:
        """Return whether the object is hashed as a whole: it is small, its chunks have no record.

        Parameters
        ----------
        n_index_bytes : int
            The size of the object's index, which does not count.
        """
        small = self.n_bytes - n_index_bytes <= WHOLE_BYTES
        return small and self.chunk_crc32c is None and bool(self.digest)

    def unchecked(self) -> Recorded:
        """Return the record of an uncompressed object of which only the size is to be compared."""
        return replace(self, chunk_crc32c=None, digest="")

    def check_size(self, size: int, where: str, key: str) -> None:
        """Raise ``CorruptDataError`` if an object of this size is not the recorded one.

        Parameters
        ----------
        size : int
            The object's size in bytes.
        where : str
            The object and its rows, for the message.
        key : str
            The object's key.
        """
        if size != self.n_bytes:
            word = "truncated" if size < self.n_bytes else "too long"
            raise CorruptDataError(
                f"{where}: the shard is {word} (got {size:,} bytes, its {self.by} records "
                f"{self.n_bytes:,}). {SWAPPED}",
                path=key,
            )

    def check_whole(self, data: bytes, where: str, key: str) -> None:
        """Raise ``CorruptDataError`` if these are not the recorded object's bytes.

        Parameters
        ----------
        data : bytes
            All bytes of the object.
        where : str
            The object and its rows, for the message.
        key : str
            The object's key.
        """
        if len(self.digest) == 64:
            name, found = "sha256", hashlib.sha256(data).hexdigest()
        else:
            name, found = "XXH3", xxhash.xxh3_128_hexdigest(data)
        if found != self.digest:
            raise CorruptDataError(
                f"{where}: its {name} is {found[:16]}…, its {self.by} records "
                f"{self.digest[:16]}…. {SWAPPED}",
                path=key,
            )
