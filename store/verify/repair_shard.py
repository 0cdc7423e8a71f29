"""Repairing a shard: what is damaged is written again at its own name, what is whole stays.

Rows that come out with the same bits leave the shard's receipt as it is. Where they do not (another
processor, another kernel), the shard gets a receipt of the next generation, which readers prefer.
Only under the lease: no other driver may be at work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import (
    ConflictError,
    CorruptDataError,
    FormatError,
    RunFaultError,
    of_one_object,
)
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.schema import ObjectRecord, Receipt
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts, receipt_key
from actlas.store.objects.digests import object_digest
from actlas.store.read.reader import StoreReader
from actlas.store.shards.reader import ShardReader
from actlas.store.shards.writer import ShardWriter
from actlas.store.write.array_writer import ArrayWriter, write_receipt
from actlas.store.write.commit import check_shapes, write_arrays
from actlas.store.write.commit_pooled import PooledRows, check_pooled_shapes, write_pooled


def repair_shard(
    store: StoreReader,
    shard: int,
    activations: Mapping[str, NDArray[Any]],
    *,
    attempt: str,
    run: Mapping[str, Any] | None = None,
    on_nonfinite: str = "record",
    loss: NDArray[np.float32] | None = None,
) -> Receipt:
    """Put back what is damaged of a shard, from its rows computed anew.

    Parameters are those of :func:`actlas.store.write.commit.commit_shard`.

    Returns
    -------
    Receipt
        The one that stands: the same as before, or of the next generation.

    Raises
    ------
    ConflictError
        An object that is whole is not what this model gives: these rows are another model's.
    RunFaultError
        The disk is full or fails.
    """
    check_shapes(store, shard, activations, loss)
    store.require_same_plan()
    store.forget(EXTRACT)  # another worker may have repaired this shard since it was looked at
    writer = MendingWriter(store, shard, attempt, standing_receipt(store.receipts(), shard))
    for name, rows in activations.items():
        writer.agree(store.arrays.activations[name], rows)
    records, n_nonfinite = write_arrays(
        store, shard, activations, writer, on_nonfinite=on_nonfinite, loss=loss
    )
    covers = store.shard_range(shard)
    return _settle(store, EXTRACT, covers, writer, records, n_nonfinite, run)


def repair_pooled(
    store: StoreReader,
    shard: int,
    pooled: PooledRows,
    *,
    attempt: str,
    run: Mapping[str, Any] | None = None,
    on_nonfinite: str = "record",
) -> Receipt:
    """Put back what is damaged of a shard of pooled rows: as :func:`repair_shard` does."""
    check_pooled_shapes(store, shard, pooled)
    store.require_same_plan()
    store.forget(POOLED)
    standing = standing_receipt(store.receipts(POOLED), shard)
    writer = MendingWriter(store, shard, attempt, standing)
    for key, rows in pooled.items():
        writer.agree(store.arrays.pooled[key], rows)
    records, n_nonfinite = write_pooled(store, shard, pooled, writer, on_nonfinite=on_nonfinite)
    return _settle(store, POOLED, store.covered(shard, POOLED), writer, records, n_nonfinite, run)


class MendingWriter(ArrayWriter):
    """Keeps what is as its receipt says, and replaces what is not.

    Parameters
    ----------
    store, shard, attempt
        See :class:`~actlas.store.write.array_writer.ArrayWriter`.
    standing : Receipt or None
        The shard's receipt; None where it cannot be read.
    """

    def __init__(
        self, store: StoreReader, shard: int, attempt: str, standing: Receipt | None
    ) -> None:
        super().__init__(store, shard, attempt)
        self.standing = standing
        self.threads = 1  # a whole encoded array is in memory while it is put back
        self._recorded = {record.key: record for record in standing.objects} if standing else {}

    def write(
        self, spec: ArraySpec, rows: NDArray[Any]
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Return what is there where it is whole; otherwise put these rows in its place.

        Without a receipt only chunks that carry their own checksums can be whole.
        """
        key = spec.key(self.shard)
        recorded = self._recorded.get(key)
        if recorded is not None:
            rows_there = self._whole(spec, recorded)
            if rows_there is not None:
                return rows_there, recorded
        elif spec.checksummed_chunks and self.objects.size(key) is not None:
            try:
                return self._adopt(spec, key)
            except ConflictError:
                pass  # It cannot be read: it is put back.
        return None, self._put_back(spec, rows)

    def agree(self, spec: ArraySpec, rows: NDArray[Any]) -> None:
        """Hold an array that is whole against these rows, before any other is replaced.

        Raises
        ------
        ConflictError
            It is not what this model gives.
        """
        recorded = self._recorded.get(spec.key(self.shard))
        if recorded is not None and self._whole(spec, recorded) is not None:
            self.computed(spec, rows)

    def beaten(
        self, spec: ArraySpec, rows: NDArray[Any], record: ObjectRecord, why: str
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Replace an object that no receipt vouches for, or that follows from the others."""
        computed = spec.path.startswith(("activations/", "pooled/")) or spec.path == "rows/loss"
        if record.key in self._recorded and computed:
            raise ConflictError(
                f"{self.objects.url}/{record.key}: it is as its receipt says, and {why.strip()} "
                "Nothing of this shard is repaired with such rows: look at the model first.",
                path=record.key,
            )
        return None, self._put_back(spec, rows)

    def _whole(self, spec: ArraySpec, recorded: ObjectRecord) -> NDArray[Any] | None:
        try:
            if object_digest(self.objects, recorded.key) != (recorded.n_bytes, recorded.xxh3):
                return None
            start, stop = spec.shard_range(self.shard)
            return ShardReader(self.objects, spec, self.shard).read_rows(0, stop - start)
        except (FileNotFoundError, CorruptDataError):
            return None
        except RunFaultError as error:
            if of_one_object(error):
                return None
            raise

    def _put_back(self, spec: ArraySpec, rows: NDArray[Any]) -> ObjectRecord:
        key = spec.key(self.shard)
        self._require_standing(key)
        writer = ShardWriter(spec, rows)
        self.objects.replace(key, b"".join(writer.parts()))
        digest = writer.n_bytes, writer.xxh3
        if object_digest(self.objects, key) != digest:
            raise RunFaultError(
                f"{self.objects.url}/{key}: the {writer.n_bytes} bytes that were written are not "
                "those that are read back. The disk or the memory is at fault.",
                path=key,
            )
        recorded = self._recorded.get(key)
        if recorded is not None and (recorded.n_bytes, recorded.xxh3) == digest:
            return recorded
        return self._record(spec, digest, self.attempt, writer.chunk_crc32c)

    def _require_standing(self, key: str) -> None:
        """Raise where another worker has repaired this shard since it was looked at."""
        if self.standing is None:
            return
        receipts = Receipts(self.objects, self.standing.job, self.shard + 1, "")
        if receipts.generation(self.shard) != self.standing.generation:
            raise ConflictError(
                f"{self.objects.url}/{key}: another worker has repaired this shard meanwhile. "
                "Nothing more of it is written.",
                path=key,
            )


def standing_receipt(receipts: Receipts, shard: int) -> Receipt | None:
    """Return the receipt that stands, or None where there is none that can be read."""
    try:
        return receipts.read(shard)
    except (FormatError, CorruptDataError, FileNotFoundError):
        return None
    except RunFaultError as error:
        if of_one_object(error):
            return None
        raise


def drop_unreadable(receipts: Receipts, shard: int) -> list[str]:
    """Remove the receipts of a shard that cannot be read and do not stand; return their keys.

    Whatever they said, a later one says what is true now.
    """
    dropped = []
    for generation in [0, *receipts.generations.get(shard, [])][:-1]:
        key = receipt_key(receipts.job, shard, generation)
        if receipts.objects.size(key) is None:
            continue
        try:
            receipts.read(shard, generation)
        except (FormatError, CorruptDataError):
            receipts.objects.delete(key)
            dropped.append(key)
    return dropped


def _settle(
    store: StoreReader,
    job: str,
    covers: tuple[int, int],
    writer: MendingWriter,
    records: list[ObjectRecord],
    n_nonfinite: Mapping[str, int],
    run: Mapping[str, Any] | None,
) -> Receipt:
    """Write the next generation where something differs from what the receipt says."""
    receipts, shard, standing = store.receipts(job), writer.shard, writer.standing
    if (
        standing is not None
        and (standing.start, standing.stop) == covers
        and _by_key(standing.objects) == _by_key(records)
    ):
        return standing
    before = receipts.exists(shard)
    receipt = write_receipt(
        store,
        job,
        shard,
        covers,
        records,
        attempt=writer.attempt,
        n_nonfinite=n_nonfinite,
        run=run,
        generation=receipts.generation(shard) + 1 if before else 0,
    )
    store.forget(job)
    if _by_key(receipt.objects) != _by_key(records):
        raise ConflictError(
            f"{store.path}: shard {shard} of {job} was repaired by two workers at once. It is "
            "repaired once more.",
            path=receipt_key(job, shard, receipt.generation),
        )
    drop_unreadable(store.receipts(job), shard)
    return receipt


def _by_key(records: Any) -> dict[str, ObjectRecord]:
    return {record.key: record for record in records}
