"""Writing the arrays of one shard, whatever job it is of.

What happens to an object that exists already is a policy: :class:`CreateOnly` adopts it (the first
writer wins), and a repair (:mod:`actlas.store.verify.repair_shard`) replaces what is damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConflictError, CorruptDataError, RunFaultError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.schema import ObjectRecord
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.objects.digests import object_digest
from actlas.store.read.reader import StoreReader
from actlas.store.shards.reader import ShardReader
from actlas.store.shards.writer import ShardWriter
from actlas.store.write.matching import (
    ADOPT_TOLERANCE,
    Rule,
    close_losses,
    close_rows,
    close_statistics,
    equal_rows,
)

COMMIT_THREADS = 4
"""Arrays of a shard that are written at once: most of the time goes into waiting for the disk."""


class Written(NamedTuple):
    """An array of a shard that stands at its final name.

    Attributes
    ----------
    stored : ndarray or None
        The rows that existed before; None where this attempt's rows were written.
    record : ObjectRecord
        The object's bytes and checksums, for the receipt.
    """

    stored: NDArray[Any] | None
    record: ObjectRecord


class WritePolicy(Protocol):
    """What to do with an object that exists already."""

    @property
    def n_threads(self) -> int:
        """How many arrays of a shard are written at once."""

    def write(self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any]) -> Written:
        """Bring an array's shard to its final name."""

    def on_conflict(
        self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any], found: Written, why: str
    ) -> Written:
        """Decide what becomes of an object whose rows do not match."""


class ArrayWriter:
    """Writes the arrays of one shard, compares them with objects that exist, and records each.

    Parameters
    ----------
    store : StoreReader
        The store that the shard is of.
    shard : int
        The number of the shard, of every array that is written.
    attempt : str
        Names this attempt, for the records.
    policy : WritePolicy, optional
        What to do with an object that exists already; by default the first writer wins.
    """

    def __init__(
        self, store: StoreReader, shard: int, attempt: str, policy: WritePolicy | None = None
    ) -> None:
        self.store = store
        self.objects = store.objects
        self.shard = shard
        self.attempt = attempt
        self.policy = CreateOnly() if policy is None else policy
        self.tolerance = ADOPT_TOLERANCE[store.plan.model.compute_dtype]

    def exact(self, spec: ArraySpec, rows: NDArray[Any]) -> ObjectRecord:
        """Write rows that follow from the plan; an object that exists must equal them.

        Raises
        ------
        ConflictError
            It does not.
        """
        return self._write(spec, rows, equal_rows(rows)).record

    def computed(self, spec: ArraySpec, rows: NDArray[Any]) -> Written:
        """Write activations; an object that exists must equal them up to rounding.

        Raises
        ------
        ConflictError
            It does not: a row differs by more than rounding explains.
        """
        return self._write(spec, rows, close_rows(rows, self.tolerance))

    def losses(self, spec: ArraySpec, rows: NDArray[np.float32]) -> ObjectRecord:
        """Write losses; an object that exists must equal them up to rounding.

        Raises
        ------
        ConflictError
            It does not.
        """
        return self._write(spec, rows, close_losses(rows, self.tolerance)).record

    def statistics(self, spec: ArraySpec, table: NDArray[np.float64]) -> ObjectRecord:
        """Write the statistics of a shard's rows; an object that exists must equal them, likewise.

        Raises
        ------
        ConflictError
            It does not.
        """
        return self._write(spec, table, close_statistics(table)).record

    def write(self, spec: ArraySpec, rows: NDArray[Any]) -> Written:
        """Bring an array's shard to its final name, by the policy, without comparing rows.

        Raises
        ------
        ConflictError
            The existing object cannot be read, and the policy does not replace it.
        RunFaultError
            The bytes that are read back are not those that were written.
        """
        return self.policy.write(self, spec, rows)

    def adopt(self, spec: ArraySpec, key: str) -> Written:
        """Read an object that exists, and record it by its bytes.

        Raises
        ------
        ConflictError
            It cannot be read.
        """
        try:
            reader = ShardReader(self.objects, spec, self.shard)
            start, stop = spec.shard_range(self.shard)
            rows = reader.read_rows(0, stop - start)
        except CorruptDataError as error:
            raise ConflictError(
                f"{error} It has a final name and no receipt: `actlas repair "
                f"{self.objects.url} --remove-orphans` removes it, and the same command with "
                "--retry-quarantined writes it anew.",
                path=key,
            ) from error
        chunks = [reader.checksum(chunk) for chunk in range(spec.n_chunks(self.shard))]
        digest = object_digest(self.objects, key)
        return Written(rows, self.record(spec, digest, chunks, f"before {self.attempt}"))

    def record(
        self,
        spec: ArraySpec,
        digest: tuple[int, str],
        chunk_crc32c: Sequence[int],
        attempt: str | None = None,
    ) -> ObjectRecord:
        """Return the record of an object of this shard.

        Parameters
        ----------
        spec : ArraySpec
            The array.
        digest : tuple of int and str
            The object's bytes, and their xxh3.
        chunk_crc32c : sequence of int
            The checksum of each inner chunk.
        attempt : str, optional
            The attempt that wrote it; by default this one.
        """
        return ObjectRecord(
            key=spec.key(self.shard),
            n_bytes=digest[0],
            xxh3=digest[1],
            attempt=self.attempt if attempt is None else attempt,
            chunk_crc32c=tuple(chunk_crc32c),
        )

    def _write(self, spec: ArraySpec, rows: NDArray[Any], rule: Rule) -> Written:
        written = self.write(spec, rows)
        if written.stored is not None and (why := rule(written.stored)) is not None:
            return self.policy.on_conflict(self, spec, rows, written, why)
        return written


@dataclass(frozen=True, slots=True)
class CreateOnly:
    """The policy of a run: the first writer wins, and a later one adopts what matches."""

    @property
    def n_threads(self) -> int:
        """How many arrays of a shard are written at once."""
        return COMMIT_THREADS

    def write(self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any]) -> Written:
        """Create the array's shard, or read the one that exists.

        Raises
        ------
        ConflictError
            The existing object cannot be read.
        RunFaultError
            The bytes that are read back are not those that were written.
        """
        objects, key = writer.objects, spec.key(writer.shard)
        if objects.size(key) is not None:
            return writer.adopt(spec, key)
        encoded = ShardWriter(spec, rows)
        if not objects.create(key, encoded.parts()):
            return writer.adopt(spec, key)
        digest = encoded.n_bytes, encoded.xxh3
        if object_digest(objects, key) != digest:
            if _is_done(writer, spec):  # this process slept, and a repair replaced the object
                return writer.adopt(spec, key)
            objects.delete(key)
            raise RunFaultError(
                f"{objects.url}/{key}: the {encoded.n_bytes} bytes that were written "
                "are not those that are read back. The disk or the memory is at fault; "
                "the file was removed.",
                path=key,
            )
        return Written(None, writer.record(spec, digest, encoded.chunk_crc32c))

    def on_conflict(
        self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any], found: Written, why: str
    ) -> Written:
        """Raise ``ConflictError``: an object that exists is immutable, and this one differs."""
        key = found.record.key
        raise ConflictError(f"{writer.objects.url}/{key}: {why}", path=key)


def _is_done(writer: ArrayWriter, spec: ArraySpec) -> bool:
    """Whether the shard has a receipt, by a fresh listing."""
    job = POOLED if spec.path.startswith("pooled/") else EXTRACT
    writer.store.forget(job)
    return writer.store.receipts(job).exists(writer.shard)
