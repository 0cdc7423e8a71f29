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
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from actlas.store.arrays import ArraySpec
from actlas.store.errors import (
    ConflictError,
    CorruptDataError,
    HookpointError,
    NonFiniteError,
    RunFaultError,
)
from actlas.store.moments import Moments
from actlas.store.objects import Objects
from actlas.store.receipts import EXTRACT
from actlas.store.schema import FORMAT_VERSION, ObjectRecord, Receipt
from actlas.store.shardfile import ShardReader, ShardWriter, crc32c
from actlas.store.specs import STATISTICS
from actlas.store.store import Store
from actlas.store.version import VERSION

READ_BYTES = 1 << 20
ADOPT_TOLERANCE = {"float32": 1e-2, "float16": 1e-1, "bfloat16": 1e-1}
"""How far a row that an earlier attempt left may be from ours, as a share of its norm: kernels
round differently; another model, or damage, is much further away."""
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
        What lies under a final name is not what this plan and model give, or is damaged; or the
        plan at this path is another one by now.
    RunFaultError
        The disk is full or fails.
    """
    _check_shapes(store, shard, activations)
    receipts = store.receipts()
    if receipts.exists(shard):
        return receipts.read(shard)
    store.require_same_plan()
    with ThreadPoolExecutor(COMMIT_THREADS, thread_name_prefix="actlas-commit") as pool:
        moments = dict(zip(activations, pool.map(Moments.of, activations.values()), strict=True))
        if on_nonfinite == "refuse":
            _refuse_nonfinite(store, shard, moments, activations)
        writer = _Writer(store, shard, attempt)
        try:
            # Columns first: who is wrong about which row is which writes nothing else.
            columns = store.shard_columns(shard)
            records = list(pool.map(writer.column, columns, columns.values()))
            dense = pool.map(writer.hookpoint, activations, activations.values(), moments.values())
            for name, (moment, written) in zip(activations, dense, strict=True):
                moments[name] = moment
                records += written
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    start, stop = store.shard_range(shard)
    receipt = Receipt(
        format_version=FORMAT_VERSION,
        plan_sha256=store.plan_sha256,
        job=EXTRACT,
        shard=shard,
        start=start,
        stop=stop,
        attempt=attempt,
        host=socket.gethostname(),
        created_unix_s=time.time(),
        versions=versions(),
        objects=tuple(records),
        n_nonfinite={name: _n_nonfinite(m, stop - start) for name, m in moments.items()},
        run=dict(run or {}),
    )
    store.require_same_plan()
    return receipts.write(receipt)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions of what may have had a hand in a row."""
    found = {"python": platform.python_version(), "actlas": VERSION}
    for name in ("numpy", "numcodecs", "torch", "transformers", "tokenizers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class _Writer:
    """Writes arrays of one shard, or adopts what is there, and records each."""

    def __init__(self, store: Store, shard: int, attempt: str) -> None:
        self.objects = store.objects
        self.arrays = store.arrays
        self.shard = shard
        self.attempt = attempt
        self.tolerance = ADOPT_TOLERANCE[store.plan.model.compute_dtype]

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
            self._check_alike(dense.key, stored, rows)
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

    def _check_alike(self, key: str, stored: NDArray[Any], rows: NDArray[Any]) -> None:
        """Refuse to adopt rows that are not what this model gives here, rounding apart."""
        bad = first_unlike(stored, rows, self.tolerance)
        if bad is not None:
            raise ConflictError(
                f"{self.objects.url}/{key}: lies there already without a receipt, and its row "
                f"{bad} differs from what this model gives by more than {self.tolerance:g} of its "
                "norm. It is damaged, or of another model. Remove that file, then run the same "
                "command again.",
                path=key,
                row=bad,
            )

    def _write(
        self, spec: ArraySpec, rows: NDArray[Any]
    ) -> tuple[NDArray[Any] | None, ObjectRecord]:
        """Create the array's shard. Where one is there already, return its rows too."""
        key = spec.key(self.shard)
        if self.objects.size(key) is None:
            writer = ShardWriter(spec, rows)
            if self.objects.create(key, writer.parts()):
                if object_digest(self.objects, key) != (writer.n_bytes, writer.xxh3):
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
        digest = object_digest(self.objects, key)
        return rows, self._record(spec, digest, f"before {self.attempt}", chunks)

    def _record(
        self, spec: ArraySpec, digest: tuple[int, str], attempt: str, chunks: list[int]
    ) -> ObjectRecord:
        return ObjectRecord(
            key=spec.key(self.shard),
            n_bytes=digest[0],
            xxh3=digest[1],
            attempt=attempt,
            chunk_crc32c=None if spec.checksummed_chunks else tuple(chunks),
        )


def object_digest(objects: Objects, key: str) -> tuple[int, str]:
    """Return the size and the XXH3 (128 bits, hexadecimal) of an object, read in pieces.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    """
    n_bytes, digest = 0, xxhash.xxh3_128()
    while piece := objects.read(key, n_bytes, READ_BYTES):
        digest.update(piece)
        n_bytes += len(piece)
    return n_bytes, digest.hexdigest()


def first_unlike(stored: NDArray[Any], rows: NDArray[Any], tolerance: float) -> int | None:
    """Return the first row whose difference exceeds ``tolerance`` of its norm, or None.

    Rows with NaN or infinity are not compared.

    Parameters
    ----------
    stored, rows : ndarray, shape [n, units]
    tolerance : float
        Of the row's L2 norm.
    """
    for start in range(0, len(rows), 1024):
        a = stored[start : start + 1024].astype(np.float32)
        b = rows[start : start + 1024].astype(np.float32)
        finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.linalg.norm(a - b, axis=1)
            bad = finite & (distance > tolerance * np.linalg.norm(b, axis=1) + 1e-30)
        if bad.any():
            return start + int(np.argmax(bad))
    return None


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
