"""``LazyArray``: a stored array that is read when it is indexed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import table_html
from actlas.store.display.text import n_bytes
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.layout import ceil_div
from actlas.store.format.recorded import Recorded
from actlas.store.objects.base import Objects
from actlas.store.objects.threads import OncePerKey
from actlas.store.shards.reader import ShardReader
from actlas.store.shards.tensors import to_torch

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped

FEW = 8
"""Rows are read singly if fewer than one in this many of their chunks' rows are requested."""

LARGE_BYTES = 64 << 20
"""Before an array larger than this is allocated, the index of every shard is checked: 64 MiB."""


class ShardGuard(Protocol):
    """Decides which shards of an array may be read, and knows the records of their objects.

    A guard must survive pickling, since an array is sent to the processes that read it.
    """

    def require(self, shards: NDArray[np.int64]) -> None:
        """Raise ``NotExtractedError`` if one of these shards is not complete.

        If the job was finished, and the shard's receipt is lost since, raise ``CorruptDataError``.
        """

    def record(self, shard: int, key: str) -> Recorded | None:
        """Return the record of the object ``key``, which holds a shard of the array, if any.

        Raises
        ------
        CorruptDataError
            The receipt of the shard, or the plan, names no such object.
        """

    def repaired_since(self, shard: int) -> Callable[[], bool]:
        """Return a function that tells whether the shard was repaired after this call.

        Only repairs that changed the shard's bytes count.
        """


class LazyArray:
    """A stored array. Indexing it reads and checks the requested rows, and returns numpy.

    ``array[5]``, ``array[10:2000]``, ``array[[7, 3, 3]]`` and ``array[mask]`` select rows, in the
    given order; a second index selects units: ``array[10:20, [0, 5]]``. The result has the stored
    dtype.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    spec : ArraySpec
        The array's shape, shards, chunks and codecs.
    guard : ShardGuard, optional
        Decides which shards may be read, and has the records that their bytes are held against.
        Without it every shard may be read, and only checksums inside the objects are checked.
    check : bool
        Whether uncompressed chunks are checked; see :func:`actlas.store.store.open_store`.

    Raises
    ------
    NotExtractedError
        When indexed: a row lies in a shard that has no receipt.
    CorruptDataError
        When indexed: the stored bytes are not the ones that were written, or not in their place.
    IndexError
        When indexed: rows or units are out of range.
    """

    def __init__(
        self,
        objects: Objects,
        spec: ArraySpec,
        guard: ShardGuard | None = None,
        *,
        check: bool = True,
    ) -> None:
        self.objects = objects
        self.spec = spec
        self.guard = guard
        self.check = check
        self._reader = OncePerKey(self._open_reader, maxsize=64)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(LazyArray, check=self.check), (self.objects, self.spec, self.guard)

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis; rows come first."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored dtype."""
        return self.spec.numpy_dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.spec.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.spec.shape)

    @property
    def nbytes(self) -> int:
        """The size of all values in memory, in bytes; the stored size is smaller."""
        return self.spec.n_rows * self.spec.row_bytes

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of a chunk, the least that is read and decompressed."""
        return (min(self.spec.chunk_rows, self.spec.shard_rows), *self.spec.shape[1:])

    @property
    def shards(self) -> tuple[int, ...]:
        """The shape of a shard, which is one file or object."""
        return (self.spec.shard_rows, *self.spec.shape[1:])

    def __len__(self) -> int:
        return self.spec.n_rows

    def __repr__(self) -> str:
        return f"<{self.spec.path} {self.spec.dtype}{list(self.shape)}, read when indexed>"

    def _repr_html_(self) -> str:
        return table_html(
            [
                ("array", self.spec.path),
                ("shape", f"{' x '.join(map(str, self.shape))} {self.spec.dtype}"),
                ("size", n_bytes(self.nbytes)),
                ("chunks, shards", f"{self.chunks}, {self.shards}"),
                ("compression", self.spec.compression),
            ]
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self[:]
        return np.asarray(array, dtype=dtype)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), self.spec.chunk_rows):
            yield from self.read(start, min(start + self.spec.chunk_rows, len(self)))

    def __getitem__(self, index: Any) -> Any:
        rows, *rest = index if isinstance(index, tuple) else (index,)
        if len(rest) > self.ndim - 1:
            raise IndexError(f"{self!r}: got {1 + len(rest)} indices for {self.ndim} axes")
        picked = self._rows(rows)
        return picked[(..., *rest)] if rest else picked

    def torch(self, rows: Any = slice(None), *, dtype: Any = None, device: Any = None) -> Any:
        """Return rows as a torch tensor: see :func:`actlas.store.shards.tensors.to_torch`.

        Parameters
        ----------
        rows : int, slice, list, mask or tuple
            Anything that may stand between brackets. Default: all rows.
        dtype : torch dtype or str, optional
            The tensor's dtype. Default: the stored one.
        device : torch device or str, optional
            The tensor's device. Default: the CPU.

        Examples
        --------
        >>> store.activations["resid_post.3"].torch(slice(0, 8192))      # doctest: +SKIP
        """
        return to_torch(np.asarray(self[rows]), dtype, device)

    def _rows(self, rows: Any) -> Any:
        if rows is Ellipsis:
            rows = slice(None)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self.read(start, max(start, stop))
            return self.take(np.arange(start, stop, step))
        index = np.asarray(rows)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(
                    f"{self!r}: got a mask of shape {index.shape}, expected ({len(self)},)"
                )
            index = np.flatnonzero(index)
        if index.size == 0:
            index = index.astype(np.int64)
        if not np.issubdtype(index.dtype, np.integer) or index.ndim > 1:
            raise IndexError(
                f"{self!r}: got an index of type {type(rows).__name__} ({index.dtype}, "
                f"{index.ndim} axes), expected an integer, a slice, a list of integers or a mask"
            )
        taken = self.take(np.atleast_1d(index).astype(np.int64))
        return taken[0] if index.ndim == 0 else taken

    def read(self, start: int, stop: int) -> Shaped[NDArray[Any], "{stop-start} ..."]:
        """Return rows [start, stop); shape [stop - start, ...]."""
        spec = self.spec
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"{self!r}: rows [{start}, {stop}) are outside [0, {len(self)})")
        if (stop - start) * spec.row_bytes > LARGE_BYTES:
            self._require_there(start, stop)
        out = np.empty((stop - start, *spec.shape[1:]), dtype=self.dtype)
        if stop == start:
            return out
        shards = range(start // spec.shard_rows, ceil_div(stop, spec.shard_rows))
        self._check(np.asarray(shards, dtype=np.int64))
        for shard in shards:
            first = shard * spec.shard_rows
            lo, hi = max(start, first), min(stop, first + spec.shard_rows)
            self._reader(shard).read_rows(lo - first, hi - first, out[lo - start : hi - start])
        return out

    def take(self, index: Int64[NDArray[np.int64], " n"]) -> Shaped[NDArray[Any], "n ..."]:
        """Return the rows at ``index`` in that order; shape [len(index), ...]. Reads a chunk once.

        Parameters
        ----------
        index : ndarray of int64, shape [n]
            Row numbers; negative ones count from the end.
        """
        spec = self.spec
        n = len(self)
        if index.size and (index.min() < -n or index.max() >= n):
            bad = index[(index < -n) | (index >= n)][0]
            raise IndexError(f"{self!r}: row {bad} is outside [0, {n})")
        index = np.where(index < 0, index + n, index)
        out = np.empty((len(index), *spec.shape[1:]), dtype=self.dtype)
        order = np.argsort(index, kind="stable")
        sorted_index = index[order]
        shard_of = sorted_index // spec.shard_rows
        shards = np.unique(shard_of)
        self._check(shards)
        for shard in shards:
            lo, hi = np.searchsorted(shard_of, [shard, shard + 1])
            local = sorted_index[lo:hi] - shard * spec.shard_rows
            chunk_of = local // spec.chunk_rows
            chunks = np.unique(chunk_of)
            reader = self._reader(int(shard))
            if reader.row_by_row and len(local) * FEW < len(chunks) * spec.chunk_rows:
                out[order[lo:hi]] = reader.read_scattered(local)
                continue
            for chunk, rows in zip(chunks, reader.read_chunks(chunks.tolist()), strict=True):
                a, b = np.searchsorted(chunk_of, [chunk, chunk + 1])
                out[order[lo + a : lo + b]] = rows[local[a:b] - chunk * spec.chunk_rows]
        return out

    def reader(self, shard: int) -> ShardReader:
        """Return the reader of one shard's chunks, for callers that schedule their own reads."""
        self._check(np.array([shard], dtype=np.int64))
        return self._reader(shard)

    def _require_there(self, start: int, stop: int) -> None:
        """Open every shard of these rows before memory is allocated for them."""
        step = self.spec.shard_rows
        for shard in range(start // step, ceil_div(stop, step)):
            self._check(np.array([shard], dtype=np.int64))
            self._reader(shard)

    def _check(self, shards: NDArray[np.int64]) -> None:
        if self.guard is not None:
            self.guard.require(shards)

    def _open_reader(self, shard: int) -> ShardReader:
        if self.guard is None:
            return ShardReader(self.objects, self.spec, shard)
        repaired = self.guard.repaired_since(shard)
        recorded = self.guard.record(shard, self.spec.key(shard))
        if recorded is not None and not (self.check or self.spec.checksummed_chunks):
            recorded = recorded.unchecked()
        return ShardReader(self.objects, self.spec, shard, recorded, repaired)
