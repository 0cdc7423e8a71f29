"""``ArraySpec``: the geometry, the codecs and the ``zarr.json`` of one Zarr v3 array.

Every array is sharded with the codec ``sharding_indexed``: one object per shard, with the inner
chunks in order and without gaps, then the index and its crc32c. The body of an uncompressed shard
is therefore the raw row-major array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from actlas.store.format import layout
from actlas.store.format.dtypes import fill_value, numpy_dtype

COLUMN_COMPRESSION = "column"
"""The compression of integer columns: Blosc zstd with byte shuffle."""

_BLOCK_BYTES = 1 << 20
"""The size of a Blosc block of activations. Zstd builds one entropy code per 128 KiB; in smaller
blocks unrelated byte planes would share it (docs/decisions/0009)."""

_BLOSC: dict[str, dict[str, Any]] = {
    "fast": {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "blocksize": _BLOCK_BYTES},
    "dense": {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": _BLOCK_BYTES},
    COLUMN_COMPRESSION: {"cname": "zstd", "clevel": 3, "shuffle": "shuffle", "blocksize": 0},
}


@dataclass(frozen=True)
class ArraySpec:
    """The path, shape, shards, chunks and codecs of one array.

    Parameters
    ----------
    path : str
        The array's path in the store, such as ``activations/resid_post.3``.
    shape : tuple of int
        The length of each axis. Only the first axis is split into shards and chunks.
    dtype : str
        The Zarr v3 data type.
    shard_rows, chunk_rows : int
        Elements of the first axis per shard and per inner chunk; ``chunk_rows`` divides
        ``shard_rows``.
    compression : str
        ``none``, ``fast``, ``dense`` or ``column``.
    dimensions : tuple of str
        The name of each axis.
    attributes : dict
        The array's own attributes in its ``zarr.json``; never changed after construction.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int
    chunk_rows: int
    compression: str
    dimensions: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"{self.path}: {self.chunk_rows=} must divide {self.shard_rows=}")
        if len(self.dimensions) != len(self.shape):
            raise ValueError(f"{self.path}: {self.dimensions=} do not fit {self.shape=}")

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the elements."""
        return numpy_dtype(self.dtype)

    @property
    def n_rows(self) -> int:
        """The length of the first axis."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """The uncompressed size of one row, in bytes."""
        return math.prod(self.shape[1:]) * self.numpy_dtype.itemsize

    @property
    def chunks_per_shard(self) -> int:
        """The number of inner chunks of a full shard: the length of its index."""
        return self.shard_rows // self.chunk_rows

    @property
    def n_shards(self) -> int:
        """The number of shards; the last one may be shorter."""
        return layout.n_shards(self.n_rows, self.shard_rows)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a shard."""
        return layout.shard_range(shard, self.shard_rows, self.n_rows)

    def n_chunks(self, shard: int) -> int:
        """Return the number of chunks of a shard that hold rows."""
        start, stop = self.shard_range(shard)
        return layout.n_shards(stop - start, self.chunk_rows)

    def key(self, shard: int) -> str:
        """Return the key of a shard's object."""
        return "/".join([self.path, "c", str(shard), *("0" for _ in self.shape[1:])])

    @property
    def metadata_key(self) -> str:
        """The key of the array's ``zarr.json``."""
        return f"{self.path}/zarr.json"

    @property
    def blosc(self) -> dict[str, Any] | None:
        """Blosc's options for writing, or None if the chunks are uncompressed."""
        return _BLOSC.get(self.compression)

    @property
    def checksummed_chunks(self) -> bool:
        """Whether each chunk ends with its own crc32c."""
        return self.blosc is not None

    def metadata(self) -> dict[str, Any]:
        """Return the ``zarr.json`` of this array (Zarr v3, codec ``sharding_indexed``)."""
        little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        if self.numpy_dtype.itemsize == 1:
            little = {"name": "bytes"}
        crc = {"name": "crc32c"}
        codecs = [little]
        if self.blosc is not None:
            options = {**self.blosc, "typesize": self.numpy_dtype.itemsize}
            codecs = [little, {"name": "blosc", "configuration": options}, crc]
        sharding = {
            "chunk_shape": [self.chunk_rows, *self.shape[1:]],
            "codecs": codecs,
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, crc],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.shard_rows, *self.shape[1:]]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill_value(self.dtype),
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": self.attributes,
            "dimension_names": list(self.dimensions),
        }


def column(
    path: str,
    n: int,
    dtype: str,
    shard_rows: int,
    dimension: str,
    names: Sequence[str] | None = None,
) -> ArraySpec:
    """Return the spec of a one-dimensional array of numbers or codes.

    Parameters
    ----------
    path : str
        The array's path in the store, such as ``rows/doc_idx``.
    n : int
        The number of elements.
    dtype : str
        The Zarr v3 data type.
    shard_rows : int
        Elements per shard.
    dimension : str
        The name of the axis.
    names : sequence of str, optional
        For categorical codes: the string that each code stands for. The array's attributes hold
        them.
    """
    return ArraySpec(
        path=path,
        shape=(n,),
        dtype=dtype,
        shard_rows=shard_rows,
        chunk_rows=min(layout.COLUMN_CHUNK_ROWS, shard_rows),
        compression=COLUMN_COMPRESSION,
        dimensions=(dimension,),
        attributes={} if names is None else {"names": list(names)},
    )
