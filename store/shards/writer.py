"""Writing of one shard: its inner chunks, then the index and the index's checksum.

A shard holds its inner chunks without gaps, then the index (offset and length of each chunk as
little-endian uint64, all ones for an absent chunk), then the crc32c of the index.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from typing_extensions import Buffer

from actlas.store.format.array_spec import ArraySpec
from actlas.store.shards.chunks import (
    MISSING,
    codec_threads,
    crc32c,
    encode_chunk,
    stored_crc32c,
)

if TYPE_CHECKING:
    from jaxtyping import Shaped


class ShardWriter:
    """Encodes one shard as a stream of buffers and computes its checksums on the way.

    Parameters
    ----------
    spec : ArraySpec
        The array.
    rows : ndarray, shape [rows of the shard, ...]
        The shard's rows, in the array's dtype.

    Attributes
    ----------
    n_bytes : int
        Bytes yielded so far; the size of the object once :meth:`parts` is exhausted.
    chunk_crc32c : list of int
        The crc32c of each chunk written so far, for the record of the object.
    """

    def __init__(self, spec: ArraySpec, rows: Shaped[NDArray[Any], "rows ..."]) -> None:
        if rows.dtype != spec.numpy_dtype or rows.shape[1:] != spec.shape[1:]:
            raise ValueError(
                f"{spec.path}: got {rows.dtype} {rows.shape}, expected {spec.dtype} "
                f"(rows, {', '.join(map(str, spec.shape[1:]))})"
            )
        self.spec = spec
        self.rows = rows
        self.n_bytes = 0
        self._xxh3 = xxhash.xxh3_128()
        self.chunk_crc32c: list[int] = []

    @property
    def xxh3(self) -> str:
        """The XXH3 (128 bits, hexadecimal) of the bytes yielded so far."""
        return self._xxh3.hexdigest()

    def parts(self) -> Iterator[Buffer]:
        """Yield the chunks in order, then the index. Threads encode some chunks ahead."""
        spec = self.spec
        index = np.full((spec.chunks_per_shard, 2), MISSING, dtype="<u8")
        for i, chunk in enumerate(self._encoded()):
            n_bytes = memoryview(chunk).nbytes
            index[i] = self.n_bytes, n_bytes
            own = stored_crc32c(chunk) if spec.checksummed_chunks else crc32c(chunk)
            self.chunk_crc32c.append(own)
            yield self._count(chunk)
        data = index.tobytes()
        yield self._count(data + struct.pack("<I", crc32c(data)))

    def _count(self, part: Buffer) -> Buffer:
        self._xxh3.update(part)
        self.n_bytes += memoryview(part).nbytes
        return part

    def _encoded(self) -> Iterator[Buffer]:
        spec = self.spec
        executor = codec_threads()
        ahead = 2 * (os.cpu_count() or 1)
        running: deque[Future[Buffer]] = deque()
        for start in range(0, len(self.rows), spec.chunk_rows):
            rows = self.rows[start : start + spec.chunk_rows]
            running.append(executor.submit(encode_chunk, spec, rows))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
