"""Repairing a shard: damaged objects are written again at their own names, whole ones stay.

Rows that come out with the same bits leave the shard's receipt as it is. Where they do not (another
processor, another kernel), the shard gets a receipt of the next generation, which readers prefer.
The caller must hold the lease: no other driver may be working.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
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
from actlas.store.ledger.receipts import Receipts, receipt_key
from actlas.store.objects.digests import object_digest
from actlas.store.read.reader import StoreReader
from actlas.store.shards.reader import ShardReader
from actlas.store.shards.writer import ShardWriter
from actlas.store.write.array_writer import ArrayWriter, Written
from actlas.store.write.commit import write_receipt
from actlas.store.write.outputs import (
    DenseOutputs,
    DenseRows,
    Outputs,
    PooledOutputs,
    PooledRows,
)


def repair(
    store: StoreReader,
    shard: int,
    outputs: Outputs,
    *,
    attempt: str,
    run: Mapping[str, Any] | None = None,
    on_nonfinite: str = "record",
) -> Receipt:
    """Replace the damaged objects of a shard, from its rows computed anew.

    Parameters
    ----------
    store : StoreReader
        The store.
    shard : int
        The number of the shard.
    outputs : Outputs
        All arrays of the shard, computed anew.
    attempt : str
        Names this attempt, for the receipt.
    run : mapping, optional
        How the rows were made, for the receipt.
    on_nonfinite : {"record", "refuse"}
        What to do with NaN and infinity.

    Returns
    -------
    Receipt
        The one that stands: the same as before, or of the next generation.

    Raises
    ------
    ConflictError
        An object that is whole is not what this model gives: these rows are another model's. Or
        another worker repairs the same shard.
    RunFaultError
        The disk is full or fails.
    """
    outputs.check_shapes(store, shard)
    store.require_same_plan()
    store.forget(outputs.job)  # another worker may have repaired this shard since it was read
    standing = standing_receipt(store.receipts(outputs.job), shard)
    policy = ReplaceDamaged(standing)
    writer = ArrayWriter(store, shard, attempt, policy)
    for spec, rows in outputs.computed(store):
        policy.check_matches(writer, spec, rows)
    records, n_nonfinite = outputs.write(writer, refuse_nonfinite=on_nonfinite == "refuse")
    covers = store.covered(shard, outputs.job)
    if (
        standing is not None
        and (standing.start, standing.stop) == covers
        and _by_key(standing.objects) == _by_key(records)
    ):
        return standing
    receipts = store.receipts(outputs.job)
    receipt = write_receipt(
        store,
        outputs.job,
        shard,
        covers,
        records,
        attempt=attempt,
        n_nonfinite=n_nonfinite,
        run=run,
        generation=receipts.generation(shard) + 1 if receipts.exists(shard) else 0,
    )
    store.forget(outputs.job)
    if _by_key(receipt.objects) != _by_key(records):
        raise ConflictError(
            f"{store.path}: shard {shard} of {outputs.job} was repaired by two workers at once. It "
            "is repaired once more.",
            path=receipt_key(outputs.job, shard, receipt.generation),
        )
    drop_unreadable(store.receipts(outputs.job), shard)
    return receipt


def repair_shard(
    store: StoreReader,
    shard: int,
    activations: DenseRows,
    *,
    loss: NDArray[np.float32] | None = None,
    **options: Any,
) -> Receipt:
    """Repair one shard of extraction; see :func:`~actlas.store.write.commit.commit_shard`."""
    return repair(store, shard, DenseOutputs(activations, loss), **options)


def repair_pooled(store: StoreReader, shard: int, pooled: PooledRows, **options: Any) -> Receipt:
    """Repair one shard of pooled rows; see :func:`~actlas.store.write.commit.commit_pooled`."""
    return repair(store, shard, PooledOutputs(pooled), **options)


@dataclass(frozen=True)
class ReplaceDamaged:
    """The policy of a repair: an object that is as its receipt says stays, any other is replaced.

    Attributes
    ----------
    standing : Receipt or None
        The shard's receipt; None where it cannot be read.
    """

    standing: Receipt | None

    @property
    def n_threads(self) -> int:
        """One: a whole encoded array is in memory while it is replaced."""
        return 1

    @cached_property
    def recorded(self) -> dict[str, ObjectRecord]:
        """What the receipt says of each object, by its key."""
        return {} if self.standing is None else _by_key(self.standing.objects)

    def check_matches(self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any]) -> None:
        """Hold an array that is whole against these rows, before any other is replaced.

        Raises
        ------
        ConflictError
            It is not what this model gives.
        """
        recorded = self.recorded.get(spec.key(writer.shard))
        if recorded is not None and _read_if_whole(writer, spec, recorded) is not None:
            writer.computed(spec, rows)

    def write(self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any]) -> Written:
        """Return the existing rows where their object is whole; otherwise replace the object.

        Without a receipt only chunks that carry their own checksums can be whole.
        """
        key = spec.key(writer.shard)
        recorded = self.recorded.get(key)
        if recorded is not None:
            stored = _read_if_whole(writer, spec, recorded)
            if stored is not None:
                return Written(stored, recorded)
        elif spec.checksummed_chunks and writer.objects.size(key) is not None:
            try:
                return writer.adopt(spec, key)
            except ConflictError:
                pass  # it cannot be read, so it is replaced
        return Written(None, self._replace(writer, spec, rows))

    def on_conflict(
        self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any], found: Written, why: str
    ) -> Written:
        """Replace an object that no receipt vouches for, or that follows from the others."""
        key = found.record.key
        computed = spec.path.startswith(("activations/", "pooled/")) or spec.path == "rows/loss"
        if key in self.recorded and computed:
            raise ConflictError(
                f"{writer.objects.url}/{key}: it is as its receipt says, and {why.strip()} "
                "Nothing of this shard is repaired with such rows: look at the model first.",
                path=key,
            )
        return Written(None, self._replace(writer, spec, rows))

    def _replace(self, writer: ArrayWriter, spec: ArraySpec, rows: NDArray[Any]) -> ObjectRecord:
        objects, key = writer.objects, spec.key(writer.shard)
        self._require_standing(writer, key)
        encoded = ShardWriter(spec, rows)
        objects.replace(key, b"".join(encoded.parts()))
        digest = encoded.n_bytes, encoded.xxh3
        if object_digest(objects, key) != digest:
            raise RunFaultError(
                f"{objects.url}/{key}: the {encoded.n_bytes} bytes that were written are not "
                "those that are read back. The disk or the memory is at fault.",
                path=key,
            )
        recorded = self.recorded.get(key)
        if recorded is not None and (recorded.n_bytes, recorded.xxh3) == digest:
            return recorded
        return writer.record(spec, digest, encoded.chunk_crc32c)

    def _require_standing(self, writer: ArrayWriter, key: str) -> None:
        """Raise where another worker has repaired this shard since its receipt was read."""
        if self.standing is None:
            return
        receipts = Receipts(writer.objects, self.standing.job, writer.shard + 1, "")
        if receipts.generation(writer.shard) != self.standing.generation:
            raise ConflictError(
                f"{writer.objects.url}/{key}: another worker has repaired this shard meanwhile. "
                "Nothing more of it is written.",
                path=key,
            )


def _read_if_whole(
    writer: ArrayWriter, spec: ArraySpec, recorded: ObjectRecord
) -> NDArray[Any] | None:
    """Return an array's rows where its object is as its receipt says, else None."""
    try:
        if object_digest(writer.objects, recorded.key) != (recorded.n_bytes, recorded.xxh3):
            return None
        start, stop = spec.shard_range(writer.shard)
        return ShardReader(writer.objects, spec, writer.shard).read_rows(0, stop - start)
    except (FileNotFoundError, CorruptDataError):
        return None
    except RunFaultError as error:
        if of_one_object(error):
            return None
        raise


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
    """Remove the superseded receipts of a shard that cannot be read; return their keys."""
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


def _by_key(records: Iterable[ObjectRecord]) -> dict[str, ObjectRecord]:
    return {record.key: record for record in records}
