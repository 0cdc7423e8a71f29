"""Reading of one shard: whole chunks, ranges of rows, and scattered rows, all checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ActlasError, CorruptDataError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.layout import ceil_div
from actlas.store.format.recorded import Recorded
from actlas.store.objects.base import Objects
from actlas.store.shards.chunks import (
    CRC_BYTES,
    crc32c,
    decode_chunk,
    index_bytes,
    reading_threads,
    stored_crc32c,
)

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped

SCATTERED = 32
"""The number of scattered rows that one thread reads in sequence."""


class ShardReader:
    """Reads the inner chunks of one shard.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    spec : ArraySpec
        The array.
    shard : int
        The shard's number.
    recorded : Recorded, optional
        The record of the shard's object: its size, and the crc32c of each chunk or the digest of
        the whole. Without it only the checksums inside the object are checked; uncompressed chunks
        have none.
    repaired : callable, optional
        Returns whether the shard was repaired with other bytes since it was opened. It is called
        when reading fails, to explain the failure.

    Raises
    ------
    CorruptDataError
        The shard is missing or truncated, its index is not the one that was written, or the object
        is not the recorded one.
    """

    def __init__(
        self,
        objects: Objects,
        spec: ArraySpec,
        shard: int,
        recorded: Recorded | None = None,
        repaired: Callable[[], bool] | None = None,
    ) -> None:
        self.objects = objects
        self.spec = spec
        self.shard = shard
        self.key = spec.key(shard)
        self.recorded = recorded
        self.chunk_crc32c = None if recorded is None else recorded.chunk_crc32c
        self._repaired = repaired
        with self._explained():
            self.index = self._read_index()

    @property
    def _threads(self) -> ThreadPoolExecutor:
        return reading_threads(self.objects.n_readers)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Add to a ``CorruptDataError`` that the shard was repaired since it was opened, if so."""
        try:
            yield
        except CorruptDataError as error:
            repaired = False
            with suppress(ActlasError, OSError):  # the damage is what must be reported
                repaired = self._repaired is not None and self._repaired()
            if not repaired:
                raise
            raise CorruptDataError(
                f"{error}. The shard was repaired since this store was opened, with other bytes: "
                "open it again.",
                **error.details,
            ) from error

    def _where(self, chunk: int | None = None) -> str:
        start, stop = self.spec.shard_range(self.shard)
        if chunk is not None:
            start += chunk * self.spec.chunk_rows
            stop = min(start + self.spec.chunk_rows, stop)
        return f"{self.objects.url}/{self.key}, rows [{start}, {stop})"

    def _read_index(self) -> NDArray[np.uint64]:
        n_bytes = index_bytes(self.spec)
        size = self.objects.size(self.key)
        if size is None or size < n_bytes:
            raise CorruptDataError(
                f"{self._where()}: the shard is {'missing' if size is None else 'truncated'} (got "
                f"{size or 0} bytes, and its index alone has {n_bytes})",
                path=self.key,
            )
        data = self._read_end(size, n_bytes)
        computed, recorded = crc32c(data[:-CRC_BYTES]), int.from_bytes(data[-CRC_BYTES:], "little")
        if computed != recorded:
            raise CorruptDataError(
                f"{self._where()}: its index has crc32c {computed:08x}, expected {recorded:08x}",
                path=self.key,
            )
        index = np.frombuffer(data, dtype="<u8", count=2 * self.spec.chunks_per_shard).reshape(
            -1, 2
        )
        used = index[: self.spec.n_chunks(self.shard)]
        if len(used) and (used > np.uint64(size)).any():
            raise CorruptDataError(
                f"{self._where()}: its index points outside the shard", path=self.key
            )
        # Overlapping chunks could make a few bytes stand for any number of rows.
        if used[:, 1].sum(dtype=np.float64) > size - n_bytes:
            raise CorruptDataError(f"{self._where()}: its chunks overlap", path=self.key)
        checksums = self.chunk_crc32c
        if checksums is not None and len(checksums) < len(used):
            raise CorruptDataError(
                f"{self._where()}: its receipt has {len(checksums)} checksums, expected "
                f"{len(used)}, one for each chunk",
                path=self.key,
            )
        return index

    def _read_end(self, size: int, n_bytes: int) -> bytes:
        """Return the last bytes of an object of this size, after holding it against its record."""
        if self.recorded is None:
            return self.objects.read(self.key, size - n_bytes, n_bytes)
        self.recorded.check_size(size, self._where(), self.key)
        if not self.recorded.checks_whole(n_bytes):
            return self.objects.read(self.key, size - n_bytes, n_bytes)
        data = self.objects.read(self.key)
        self.recorded.check_whole(data, self._where(), self.key)
        return data[-n_bytes:]

    def read_chunk(
        self,
        chunk: int,
        out: Shaped[NDArray[Any], "chunk_rows ..."] | None = None,
        scratch: memoryview | None = None,
    ) -> Shaped[NDArray[Any], "chunk_rows ..."]:
        """Return all rows of one inner chunk, checked; shape [chunk_rows, ...].

        Parameters
        ----------
        chunk : int
            The chunk's number in the shard.
        out : ndarray, shape [chunk_rows, ...], contiguous, optional
            Receives the rows.
        scratch : memoryview of bytes, optional
            Receives the encoded bytes, if they fit. Of an uncompressed chunk the result is then a
            view of it, unless ``out`` is given.
        """
        with self._explained():
            return self._read_chunk(chunk, out, scratch)

    def _read_chunk(
        self, chunk: int, out: NDArray[Any] | None, scratch: memoryview | None
    ) -> NDArray[Any]:
        offset, n_bytes = (int(v) for v in self.index[chunk])
        data: bytes | memoryview
        if scratch is None or len(scratch) < n_bytes:
            data = self.objects.read(self.key, offset, n_bytes)
        else:
            data = scratch[: self.objects.read_into(self.key, offset, scratch[:n_bytes])]
        where = self._where(chunk)
        if len(data) != n_bytes:
            raise CorruptDataError(
                f"{where}: got {len(data)} bytes, expected {n_bytes}", path=self.key
            )
        recorded = None if self.chunk_crc32c is None else self.chunk_crc32c[chunk]
        return decode_chunk(self.spec, data, where, out, recorded)

    def checksum(self, chunk: int) -> int:
        """Return the crc32c of an inner chunk for a record; a compressed chunk carries its own."""
        offset, n_bytes = (int(v) for v in self.index[chunk])
        if self.spec.checksummed_chunks:
            end = self.objects.read(self.key, offset + n_bytes - CRC_BYTES, CRC_BYTES)
            return stored_crc32c(end)
        return crc32c(self.objects.read(self.key, offset, n_bytes))

    def read_chunks(self, chunks: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the rows of several chunks in the given order, read and decoded in threads."""
        if len(chunks) <= 1:
            yield from (self.read_chunk(chunk) for chunk in chunks)
            return
        ahead = 2 * self.objects.n_readers
        running: deque[Future[NDArray[Any]]] = deque()
        for chunk in chunks:
            running.append(self._threads.submit(self.read_chunk, chunk))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    @property
    def row_by_row(self) -> bool:
        """Whether single rows can be read: the chunks are uncompressed and not checked."""
        return self.spec.blosc is None and self.chunk_crc32c is None

    def read_scattered(
        self, rows: Int64[NDArray[np.int64], " rows"]
    ) -> Shaped[NDArray[Any], "rows ..."]:
        """Return single rows; shape [n, ...]. Allowed only if :attr:`row_by_row`.

        Parameters
        ----------
        rows : ndarray of int64, shape [n]
            Row numbers in the shard, sorted, so that the disk is read forwards.
        """
        spec = self.spec
        out = np.empty((len(rows), *spec.shape[1:]), dtype=spec.numpy_dtype)
        words = out.reshape(len(rows), -1).view(np.uint8)
        chunk, within = np.divmod(rows, spec.chunk_rows)
        offsets = (self.index[chunk, 0].astype(np.int64) + within * spec.row_bytes).tolist()

        def fill(first: int) -> None:
            for i in range(first, min(first + SCATTERED, len(offsets))):
                data = self.objects.read(self.key, offsets[i], spec.row_bytes)
                if len(data) != spec.row_bytes:
                    raise CorruptDataError(
                        f"{self._where()}: the shard is truncated", path=self.key
                    )
                words[i] = np.frombuffer(data, np.uint8)

        deque(self._threads.map(fill, range(0, len(offsets), SCATTERED)), maxlen=0)
        return out

    def read_rows(
        self,
        start: int,
        stop: int,
        out: Shaped[NDArray[Any], "{stop-start} ..."] | None = None,
    ) -> Shaped[NDArray[Any], "{stop-start} ..."]:
        """Return rows [start, stop) of the shard; shape [stop - start, ...].

        Parameters
        ----------
        start, stop : int
            Row numbers in the shard.
        out : ndarray, shape [stop - start, ...], contiguous, optional
            Receives the rows. Threads decode directly into it.
        """
        spec = self.spec
        if out is None:
            out = np.empty((stop - start, *spec.shape[1:]), dtype=spec.numpy_dtype)
        rows = out

        def fill(chunk: int) -> None:
            first = chunk * spec.chunk_rows
            lo, hi = max(start, first), min(stop, first + spec.chunk_rows)
            part = rows[lo - start : hi - start]
            if hi - lo == spec.chunk_rows:
                self.read_chunk(chunk, part)
            else:
                part[...] = self.read_chunk(chunk)[lo - first : hi - first]

        chunks = range(start // spec.chunk_rows, ceil_div(stop, spec.chunk_rows))
        if len(chunks) <= 1:
            for chunk in chunks:
                fill(chunk)
        else:
            deque(self._threads.map(fill, chunks), maxlen=0)
        return rows
