"""Encoding and decoding of one inner chunk: codecs, checksums, and the thread pools they use."""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray
from typing_extensions import Buffer

from actlas.store.errors import CorruptDataError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.recorded import SWAPPED

if TYPE_CHECKING:
    from jaxtyping import Shaped

MISSING = np.iinfo(np.uint64).max
"""The offset and length of an absent chunk in a shard's index."""

_SHUFFLE = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}

CRC_BYTES = 4
"""The size of a crc32c."""

_INDEX_ENTRY_BYTES = 16


def crc32c(data: Buffer, value: int = 0) -> int:
    """Return the crc32c (Castagnoli) of ``data``, continued from the crc32c ``value``."""
    array = np.frombuffer(memoryview(data), dtype=np.uint8)
    return int(google_crc32c.extend(value, array))


@lru_cache(maxsize=1)
def codec_threads() -> ThreadPoolExecutor:
    """Return this process's thread pool for compression."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="actlas-codec")


@lru_cache(maxsize=4)
def reading_threads(n: int) -> ThreadPoolExecutor:
    """Return this process's pool of ``n`` threads for reading and decompression."""
    return ThreadPoolExecutor(n, thread_name_prefix="actlas-reading")


def _after_fork() -> None:
    """Drop the thread pools in a forked child, which has none of their threads."""
    codec_threads.cache_clear()
    reading_threads.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


@lru_cache(maxsize=32)
def _blosc(cname: str, clevel: int, shuffle: str, blocksize: int) -> Any:
    return Blosc(cname=cname, clevel=clevel, shuffle=_SHUFFLE[shuffle], blocksize=blocksize)


def _codec(spec: ArraySpec) -> Any:
    assert spec.blosc is not None
    return _blosc(**spec.blosc)


def _integers(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view as unsigned integers: Blosc takes its element size from the buffer."""
    return array.view(f"u{array.dtype.itemsize}")


def index_bytes(spec: ArraySpec) -> int:
    """Return the bytes of a shard's index: offset and length of every chunk, and a crc32c."""
    return _INDEX_ENTRY_BYTES * spec.chunks_per_shard + CRC_BYTES


def encode_chunk(spec: ArraySpec, rows: Shaped[NDArray[Any], "rows ..."]) -> Buffer:
    """Encode the rows of one inner chunk, padded with the fill value to the full chunk.

    Parameters
    ----------
    spec : ArraySpec
        The array.
    rows : ndarray, shape [rows, ...]
        At most ``spec.chunk_rows`` rows, in the array's dtype.
    """
    if len(rows) < spec.chunk_rows:
        padded = np.full((spec.chunk_rows, *spec.shape[1:]), _fill(spec), dtype=spec.numpy_dtype)
        padded[: len(rows)] = rows
        rows = padded
    rows = np.ascontiguousarray(rows)
    if spec.blosc is None:
        return rows.reshape(-1).view(np.uint8).data
    body = bytes(_codec(spec).encode(_integers(rows)))
    return body + struct.pack("<I", crc32c(body))


def _fill(spec: ArraySpec) -> Any:
    value = spec.metadata()["fill_value"]
    return float("nan") if value == "NaN" else value


def decode_chunk(
    spec: ArraySpec,
    data: bytes | memoryview,
    where: str,
    out: Shaped[NDArray[Any], "chunk_rows ..."] | None = None,
    recorded: int | None = None,
) -> Shaped[NDArray[Any], "chunk_rows ..."]:
    """Decode one inner chunk and return all its rows; shape [chunk_rows, ...].

    A chunk's crc32c is computed once, and compared with the one that a compressed chunk ends with
    and with the recorded one.

    Parameters
    ----------
    spec : ArraySpec
        The array.
    data : bytes or memoryview
        The encoded chunk.
    where : str
        The chunk's object and rows, for messages.
    out : ndarray, shape [chunk_rows, ...], contiguous, optional
        Receives the rows.
    recorded : int, optional
        The chunk's crc32c in the record of its object.

    Raises
    ------
    CorruptDataError
        The checksum or the size is not the recorded one.
    """
    shape = (spec.chunk_rows, *spec.shape[1:])
    n_bytes = spec.chunk_rows * spec.row_bytes
    if spec.blosc is None:
        if len(data) != n_bytes:
            raise CorruptDataError(
                f"{where}: got {len(data)} bytes, expected {n_bytes}", path=where
            )
        if recorded is not None:
            _check_recorded(crc32c(data), recorded, where)
        rows = np.frombuffer(data, dtype=spec.numpy_dtype).reshape(shape)
        if out is None:
            return rows
        out[...] = rows
        return out
    body = memoryview(data)[:-CRC_BYTES]
    own, computed = stored_crc32c(data), crc32c(body)
    if computed != own:
        raise CorruptDataError(
            f"{where}: its crc32c is {computed:08x}, recorded is {own:08x}", path=where
        )
    if recorded is not None:
        _check_recorded(computed, recorded, where)
    # Blosc's header gives the sizes before and after compression. They must agree with the
    # array's shape and with the bytes read.
    sizes = int.from_bytes(body[4:8], "little"), int.from_bytes(body[12:16], "little")
    if sizes != (n_bytes, len(body)):
        raise CorruptDataError(
            f"{where}: its Blosc header does not announce {n_bytes} bytes of rows", path=where
        )
    if out is None:
        out = np.empty(shape, dtype=spec.numpy_dtype)
    try:
        _codec(spec).decode(body, out=out.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError) as error:
        raise CorruptDataError(f"{where}: cannot be decompressed ({error})", path=where) from error
    return out


def stored_crc32c(chunk: Buffer) -> int:
    """Return the crc32c that an encoded, compressed chunk ends with."""
    return int.from_bytes(memoryview(chunk)[-CRC_BYTES:], "little")


def _check_recorded(computed: int, recorded: int, where: str) -> None:
    if computed != recorded:
        raise CorruptDataError(
            f"{where}: its crc32c is {computed:08x}, its receipt (of documents: the plan) records "
            f"{recorded:08x}. {SWAPPED}",
            path=where,
        )
