"""Committing a shard: its arrays create-only, then its statistics, then its receipt.

The first writer wins. A later one reads back what is there: row columns must be its own, and the
checksums and statistics of its receipt come from the bytes at the final names, whoever wrote them.
"""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.arrays import ArraySpec
from actlas.store.errors import (
    ConflictError,
    CorruptDataError,
    HookpointError,
    NonFiniteError,
)
from actlas.store.moments import Moments
from actlas.store.objects import Objects
from actlas.store.receipts import EXTRACT
from actlas.store.schema import FORMAT_VERSION, ObjectRecord, Receipt
from actlas.store.shardfile import ShardReader, ShardWriter, crc32c
from actlas.store.specs import STATISTICS
from actlas.store.store import Store

READ_BYTES = 1 << 20
COMMIT_THREADS = 4
"""Arrays of a shard that are written at once: most of the time goes into waiting for the disk."""


def commit_shard(
    store: Store,
    shard: int,
    activations: Mapping[str, NDArray[Any]],
    *,
    attempt: str,
    run: Mapping[str, Any] | None = None,
    on_nonfinite: str = "record",
) -> Receipt:
    """Write one shard of a store and return the receipt that stands.

    Parameters
    ----------
    store : Store
        The store.
    shard : int
        Which shard.
    activations : mapping of hookpoint to ndarray, shape [rows of the shard, units]
        In the plan's dtype, the rows in their stored order.
    attempt : str
        Names this try, for the receipt.
    run : mapping
        How it was made, for the receipt.
    on_nonfinite : {"record", "refuse"}
        What to do with NaN and infinity.

    Raises
    ------
    NonFiniteError
        There are some, and they are refused; nothing is written.
    ConflictError
        What lies under a final name is not a row column of this plan, or is damaged.
    RunFaultError
        The disk is full or fails.
    """
    _check_shapes(store, shard, activations)
    with ThreadPoolExecutor(COMMIT_THREADS, thread_name_prefix="actlas-commit") as pool:
        moments = dict(zip(activations, pool.map(Moments.of, activations.values()), strict=True))
        if on_nonfinite == "refuse":
            _refuse_nonfinite(store, shard, moments, activations)
        writer = _Writer(store, shard, attempt)
        columns = [
            pool.submit(writer.column, name, rows)
            for name, rows in store.shard_columns(shard).items()
        ]
        dense = [
            pool.submit(writer.hookpoint, name, rows, moments[name])
            for name, rows in activations.items()
        ]
        records = [future.result() for future in columns]
        for name, future in zip(activations, dense, strict=True):
            moments[name], written = future.result()
            records += written
    start, stop = store.shard_range(shard)
    receipt = Receipt(
        format_version=FORMAT_VERSION,
        job=EXTRACT,
        shard=shard,
        start=start,
        stop=stop,
        attempt=attempt,
        host=socket.gethostname(),
        created_unix_s=time.time(),
        versions={"python": platform.python_version(), "numpy": np.__version__},
        objects=tuple(records),
        n_nonfinite={name: _n_nonfinite(m, stop - start) for name, m in moments.items()},
        run=dict(run or {}),
    )
    return store.receipts().write(receipt)


class _Writer:
    """Writes arrays of one shard, or adopts what is there, and records each."""

    def __init__(self, store: Store, shard: int, attempt: str) -> None:
        self.objects = store.objects
        self.arrays = store.arrays
        self.shard = shard
        self.attempt = attempt

    def column(self, name: str, rows: NDArray[Any]) -> ObjectRecord:
        """Write a row column; one that is there must be the same."""
        spec = self.arrays.rows[name]
        stored, record = self._write(spec, rows)
        if stored is not None and not np.array_equal(stored, rows):
            raise ConflictError(
                f"{self.objects.url}/{record.key}: lies there already with other rows than this "
                "plan gives. Remove that file if no run of another version is writing here.",
                path=record.key,
            )
        return record

    def hookpoint(
        self, name: str, rows: NDArray[Any], moments: Moments
    ) -> tuple[Moments, list[ObjectRecord]]:
        """Write activations and the statistics of whatever then lies there."""
        stored, dense = self._write(self.arrays.activations[name], rows)
        if stored is not None:
            moments = Moments.of(stored)
        table = np.stack([getattr(moments, s) for s in STATISTICS])[None]
        stored, statistics = self._write(self.arrays.statistics[name], table)
        if stored is not None and not np.allclose(stored, table, rtol=1e-9, equal_nan=True):
            raise ConflictError(
                f"{self.objects.url}/{statistics.key}: lies there already and is not the "
                "statistics of its rows. Remove that file, then run the same command again.",
                path=statistics.key,
            )
        return moments, [dense, statistics]

    def _write(
        self, spec: ArraySpec, rows: NDArray[Any]
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Create the array's shard. Where one is there already, return its rows too."""
        key = spec.key(self.shard)
        if self.objects.size(key) is None:
            writer = ShardWriter(spec, rows)
            if self.objects.create(key, writer.parts()):
                n_bytes, crc = object_crc32c(self.objects, key)
                if (n_bytes, crc) != (writer.n_bytes, writer.crc32c):
                    raise CorruptDataError(
                        f"{self.objects.url}/{key}: wrote {writer.n_bytes} bytes with crc32c "
                        f"{writer.crc32c:08x}, read back {n_bytes} with {crc:08x}. The disk or "
                        "the memory is at fault.",
                        path=key,
                    )
                return None, self._record(spec, n_bytes, crc, self.attempt, writer.chunk_crc32c)
        return self._adopt(spec, key)

    def _adopt(self, spec: ArraySpec, key: str) -> tuple[NDArray[Any], ObjectRecord]:
        try:
            reader = ShardReader(self.objects, spec, self.shard)
            start, stop = spec.shard_range(self.shard)
            rows = reader.read_rows(0, stop - start)
        except CorruptDataError as error:
            raise ConflictError(
                f"{error} It lies under a final name without a receipt. Remove that file, then "
                "run the same command again.",
                path=key,
            ) from error
        chunks: list[int] = []
        if not spec.checksummed_chunks:
            used = range(spec.n_chunks(self.shard))
            chunks = [crc32c(reader.read_chunk(c).reshape(-1).view(np.uint8).data) for c in used]
        n_bytes, crc = object_crc32c(self.objects, key)
        return rows, self._record(spec, n_bytes, crc, f"before {self.attempt}", chunks)

    def _record(
        self, spec: ArraySpec, n_bytes: int, crc: int, attempt: str, chunks: list[int]
    ) -> ObjectRecord:
        return ObjectRecord(
            key=spec.key(self.shard),
            n_bytes=n_bytes,
            crc32c=crc,
            attempt=attempt,
            chunk_crc32c=None if spec.checksummed_chunks else tuple(chunks),
        )


def object_crc32c(objects: Objects, key: str) -> tuple[int, int]:
    """Return the size and the crc32c of an object's bytes, read in pieces.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    """
    n_bytes, crc = 0, 0
    while piece := objects.read(key, n_bytes, READ_BYTES):
        crc = crc32c(piece, crc)
        n_bytes += len(piece)
    return n_bytes, crc


def _check_shapes(store: Store, shard: int, activations: Mapping[str, NDArray[Any]]) -> None:
    if set(activations) != set(store.arrays.activations):
        raise HookpointError(
            f"shard {shard}: got activations of {', '.join(sorted(activations))}, the plan has "
            f"{', '.join(store.arrays.activations)}."
        )
    start, stop = store.shard_range(shard)
    for name, rows in activations.items():
        spec = store.arrays.activations[name]
        if rows.shape != (stop - start, spec.shape[1]) or rows.dtype != spec.numpy_dtype:
            raise ValueError(
                f"shard {shard}, {name}: got {rows.dtype} {rows.shape}, expected {spec.dtype} "
                f"({stop - start}, {spec.shape[1]})"
            )


def _n_nonfinite(moments: Moments, n_rows: int) -> int:
    return int(n_rows * len(moments.n) - moments.n.sum())


def _refuse_nonfinite(
    store: Store,
    shard: int,
    moments: Mapping[str, Moments],
    activations: Mapping[str, NDArray[Any]],
) -> None:
    for name, moment in moments.items():
        count = _n_nonfinite(moment, len(activations[name]))
        if count:
            unit = int(np.argmin(moment.n))
            raise NonFiniteError(
                f"{name}: {count:,} activations of shard {shard} are NaN or infinite in "
                f"{store.plan.dtype}, first in unit {unit}. Compute or store in a wider dtype "
                "(--model-dtype, --dtype), or let them pass with run.on_nonfinite=record.",
                hookpoint=name,
                shard=shard,
                count=count,
            )
