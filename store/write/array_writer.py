"""Writing the arrays of one shard create-only, whatever job it is of.

The first writer wins. A later one reads back what is there: what is exact must be its own, what is
computed must be its own up to rounding.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConflictError, CorruptDataError, NonFiniteError, RunFaultError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.schema import ObjectRecord, Receipt
from actlas.store.format.sealing import FORMAT_VERSION
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.objects.digests import object_digest
from actlas.store.read.reader import StoreReader
from actlas.store.shards.chunks import crc32c
from actlas.store.shards.reader import ShardReader
from actlas.store.shards.writer import ShardWriter
from actlas.store.version import versions

ADOPT_TOLERANCE = {"float32": 1e-2, "float16": 1e-1, "bfloat16": 1e-1}
"""How far a row that an earlier attempt left may be from ours, as a share of its norm: kernels
round differently; another model, or damage, is much further away."""

Unlike = Callable[[NDArray[Any]], str | None]
"""Says why stored rows are not what they should be, or None."""

COMMIT_THREADS = 4
"""Arrays of a shard that are written at once: most of the time goes into waiting for the disk."""


class ArrayWriter:
    """Writes arrays of one shard, or adopts what is there, and records each.

    Parameters
    ----------
    store : StoreReader
    shard : int
        Which shard of every array that is written.
    attempt : str
        Names this try, for the records.
    """

    def __init__(self, store: StoreReader, shard: int, attempt: str) -> None:
        self.store = store
        self.objects = store.objects
        self.shard = shard
        self.attempt = attempt
        self.threads = COMMIT_THREADS
        self.tolerance = ADOPT_TOLERANCE[store.plan.model.compute_dtype]

    def exact(self, spec: ArraySpec, rows: NDArray[Any]) -> ObjectRecord:
        """Write what follows from the plan; what is there must be the same.

        Raises
        ------
        ConflictError
            It is not.
        """

        def unlike(stored: NDArray[Any]) -> str | None:
            if np.array_equal(stored, rows):
                return None
            return (
                "lies there already with other rows than this plan gives. Remove that file if no "
                "run of another version is writing here."
            )

        return self._hold(spec, rows, unlike)[1]

    def computed(
        self, spec: ArraySpec, rows: NDArray[Any]
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Write what a model gave; return what is there instead, which must be alike.

        Raises
        ------
        ConflictError
            It is not: a row is further away than rounding explains.
        """

        def unlike(stored: NDArray[Any]) -> str | None:
            bad = first_unlike(stored, rows, self.tolerance)
            if bad is None:
                return None
            return (
                f"lies there already, and its row {bad} differs from what this model gives by "
                f"more than {self.tolerance:g} of its norm. It is damaged, or of another model. "
                "Remove that file and the shard's statistics, then run the same command again with "
                "--retry-quarantined."
            )

        return self._hold(spec, rows, unlike)

    def losses(self, spec: ArraySpec, rows: NDArray[np.float32]) -> ObjectRecord:
        """Write losses that a model gave; what is there must be alike.

        Raises
        ------
        ConflictError
            It is not.
        """

        def unlike(stored: NDArray[Any]) -> str | None:
            if np.allclose(stored, rows, self.tolerance, self.tolerance, equal_nan=True):
                return None
            return (
                "lies there already, and differs from the losses that this model gives. It is "
                "damaged, or of another model. Remove that file, then run the same command again "
                "with --retry-quarantined."
            )

        return self._hold(spec, rows, unlike)[1]

    def derived(self, spec: ArraySpec, table: NDArray[np.float64]) -> ObjectRecord:
        """Write what was worked out from rows; what is there must be the same up to rounding.

        Raises
        ------
        ConflictError
            It is not.
        """

        def unlike(stored: NDArray[Any]) -> str | None:
            # Of each unit's largest number: another processor may sum up in another order.
            rounding = 1e-9 * np.nanmax(np.abs(table), axis=1, keepdims=True)
            if np.allclose(stored, table, 0, rounding, equal_nan=True):
                return None
            return (
                "lies there already and is not the statistics of its rows. Remove that file, then "
                "run the same command again with --retry-quarantined."
            )

        return self._hold(spec, table, unlike)[1]

    def _hold(
        self, spec: ArraySpec, rows: NDArray[Any], unlike: Unlike
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Write, and hold what is there already against what should be."""
        stored, record = self.write(spec, rows)
        if stored is not None and (why := unlike(stored)) is not None:
            return self.beaten(spec, rows, record, why)
        return stored, record

    def beaten(
        self, spec: ArraySpec, rows: NDArray[Any], record: ObjectRecord, why: str
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Decide what becomes of an object that is not what it should be: here an error."""
        raise ConflictError(f"{self.objects.url}/{record.key}: {why}", path=record.key)

    def write(
        self, spec: ArraySpec, rows: NDArray[Any]
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Create the array's shard. Where one is there already, return its rows too.

        Raises
        ------
        ConflictError
            What is there cannot be read.
        RunFaultError
            What was written is not what is read back.
        """
        key = spec.key(self.shard)
        if self.objects.size(key) is None:
            writer = ShardWriter(spec, rows)
            if self.objects.create(key, writer.parts()):
                if object_digest(self.objects, key) != (writer.n_bytes, writer.xxh3):
                    if self._is_done(spec):  # we slept, and a repair put another in its place
                        return self._adopt(spec, key)
                    self.objects.delete(key)
                    raise RunFaultError(
                        f"{self.objects.url}/{key}: the {writer.n_bytes} bytes that were written "
                        "are not those that are read back. The disk or the memory is at fault; "
                        "the file was removed.",
                        path=key,
                    )
                digest = writer.n_bytes, writer.xxh3
                return None, self._record(spec, digest, self.attempt, writer.chunk_crc32c)
        return self._adopt(spec, key)

    def _is_done(self, spec: ArraySpec) -> bool:
        """Whether a receipt stands for what we write, by a fresh look."""
        job = POOLED if spec.path.startswith("pooled/") else EXTRACT
        self.store.forget(job)
        return self.store.receipts(job).exists(self.shard)

    def _adopt(self, spec: ArraySpec, key: str) -> tuple[NDArray[Any], ObjectRecord]:
        try:
            reader = ShardReader(self.objects, spec, self.shard)
            start, stop = spec.shard_range(self.shard)
            rows = reader.read_rows(0, stop - start)
        except CorruptDataError as error:
            raise ConflictError(
                f"{error} It lies under a final name without a receipt: `actlas repair "
                f"{self.objects.url} --remove-strays` removes it, and the same command with "
                "--retry-quarantined writes it anew.",
                path=key,
            ) from error
        chunks: list[int] = []
        if not spec.checksummed_chunks:
            used = range(spec.n_chunks(self.shard))
            chunks = [crc32c(reader.read_chunk(c).reshape(-1).view(np.uint8).data) for c in used]
        digest = object_digest(self.objects, key)
        return rows, self._record(spec, digest, f"before {self.attempt}", chunks)

    def _record(
        self, spec: ArraySpec, digest: tuple[int, str], attempt: str, chunks: Sequence[int]
    ) -> ObjectRecord:
        return ObjectRecord(
            key=spec.key(self.shard),
            n_bytes=digest[0],
            xxh3=digest[1],
            attempt=attempt,
            chunk_crc32c=None if spec.checksummed_chunks else tuple(chunks),
        )


def write_receipt(
    store: StoreReader,
    job: str,
    shard: int,
    covers: tuple[int, int],
    records: Sequence[ObjectRecord],
    *,
    attempt: str,
    n_nonfinite: Mapping[str, int],
    run: Mapping[str, Any] | None,
    generation: int = 0,
) -> Receipt:
    """Write a shard's receipt, the last of its objects, and return the one that stands.

    Raises
    ------
    ConflictError
        The plan at this path is another one by now.
    """
    receipt = Receipt(
        format_version=FORMAT_VERSION,
        plan_sha256=store.plan_sha256,
        job=job,
        shard=shard,
        start=covers[0],
        stop=covers[1],
        attempt=attempt,
        host=socket.gethostname(),
        created_unix_s=time.time(),
        versions=versions(),
        objects=tuple(records),
        n_nonfinite=dict(n_nonfinite),
        run=dict(run or {}),
        generation=generation,
    )
    store.require_same_plan()
    return store.receipts(job).write(receipt)


def first_unlike(stored: NDArray[Any], rows: NDArray[Any], tolerance: float) -> int | None:
    """Return the first row whose difference exceeds ``tolerance`` of its norm, or None.

    NaN and infinity are compared by their places: a row that has them where the other has not is
    unlike it.

    Parameters
    ----------
    stored, rows : ndarray, shape [n, units]
    tolerance : float
        Of the row's L2 norm.
    """
    for start in range(0, len(rows), 1024):
        a = stored[start : start + 1024].astype(np.float32)
        b = rows[start : start + 1024].astype(np.float32)
        finite = np.isfinite(b)
        bad = (np.isfinite(a) != finite).any(axis=1)
        a, b = np.where(finite, a, 0), np.where(finite, b, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.linalg.norm(a - b, axis=1)
            bad |= distance > tolerance * np.linalg.norm(b, axis=1) + 1e-30
        if bad.any():
            return start + int(np.argmax(bad))
    return None


def refuse_nonfinite(name: str, shard: int, count: int, unit: int, dtype: str) -> None:
    """Raise ``NonFiniteError`` where there are NaN or infinities, and they are refused."""
    if count:
        raise NonFiniteError(
            f"{name}: {count:,} activations of shard {shard} are NaN or infinite in "
            f"{dtype}, first in unit {unit}. Compute or store in a wider dtype "
            "(--model-dtype, --dtype), or let them pass with run.on_nonfinite=record.",
            hookpoint=name,
            shard=shard,
            count=count,
        )
