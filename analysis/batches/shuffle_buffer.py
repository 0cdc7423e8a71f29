"""The shuffle buffer: threads read, check and decode whole blocks, one group ahead of its use."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from actlas.analysis.batches.sampler import Request
from actlas.store.format.array_spec import ArraySpec
from actlas.store.shards.lazy_array import LazyArray

Integers = NDArray[np.int64]

Usable = Callable[[int], Integers]
"""The usable rows of a block, counted from its first, in order."""

Tag = TypeVar("Tag")

_Memory = list[NDArray[Any]]
"""The rows of a group, of each array; shape [rows, units]."""

CUT_BYTES = 1 << 19

_TORCH = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


class Group(NamedTuple):
    """The rows of a group in the shuffle buffer, with their random order.

    Attributes
    ----------
    arrays : tuple of ndarray of int, each of shape [rows of the buffer, units]
        The stored bits of each array.
    places : ndarray of int64, shape [n]
        The index in each array of the n rows, in the order of the batches.
    rows : ndarray of int64, shape [n]
        The row numbers in the store, in the same order.
    edges : list of int
        Where batches begin and end in ``places``.
    dtypes : tuple of torch dtype
        The dtype whose bits each array holds.
    """

    arrays: tuple[NDArray[Any], ...]
    places: Integers
    rows: Integers
    edges: list[int]
    dtypes: tuple[torch.dtype, ...]

    def cut(self, batch: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], Integers]:
        """Return a batch.

        Parameters
        ----------
        batch : int
            Its number in the group.
        dtype : torch dtype
            The dtype to convert to.

        Returns
        -------
        list of Tensor, each of shape [rows, units]
            A new tensor of each array.
        ndarray of int64, shape [rows]
            Row numbers in the store.
        """
        start, stop = self.edges[batch : batch + 2]
        places = self.places[start:stop]
        each = zip(self.arrays, self.dtypes, strict=True)
        taken = [_take(values, stored, places, dtype) for values, stored in each]
        return taken, self.rows[start:stop].copy()


def _take(
    values: NDArray[Any], stored: torch.dtype, places: Integers, dtype: torch.dtype
) -> torch.Tensor:
    """Return rows of a buffer as a new tensor, converted from the stored dtype."""
    out = torch.empty((len(places), values.shape[1]), dtype=dtype)
    # "clip" lets numpy write into `out` at once; no place is outside the buffer.
    if dtype == stored:
        np.take(values, places, axis=0, mode="clip", out=out.view(_BITS[dtype]).numpy())
        return out
    # Through a small buffer that stays in the cache, and on this thread alone: torch's own
    # threads would wait actively, on the cores that read and decode.
    step = max(1, min(len(places), CUT_BYTES // max(1, values[0].nbytes)))
    picked = np.empty((step, values.shape[1]), dtype=values.dtype)
    for first in range(0, len(places), step):
        part = out[first : first + step]
        some = picked[: len(part)]
        np.take(values, places[first : first + step], axis=0, mode="clip", out=some)
        if stored == torch.bfloat16 and dtype == torch.float32:
            np.copyto(part.numpy(), some.view(ml_dtypes.bfloat16))
        else:
            part.copy_(torch.from_numpy(some).view(stored))
    return out


class _Reading(NamedTuple, Generic[Tag]):
    """A group that threads are reading."""

    tag: Tag
    memory: _Memory
    chunks: list[Future[None]]
    group: Future[Group]

    def result(self) -> Group:
        """Wait for the group and return it; raise the first error of its threads."""
        done, waiting = wait(self.chunks, return_when=FIRST_EXCEPTION)
        if waiting:
            for future in waiting:
                future.cancel()
        for future in done:
            future.result()
        return self.group.result()


class ShuffleBuffer(Generic[Tag]):
    """Reads groups of blocks of arrays into memory that is used again and again.

    The memory is kept from one loop to the next: to touch it for the first time costs as much as
    to fill it.

    Parameters
    ----------
    arrays : sequence of LazyArray, each of shape [row, unit]
        The arrays that are read, which have the same rows.
    blocks : ArraySpec
        The layout of the arrays, with the rows of a block as those of a chunk; a block is one chunk
        of each array, or several.
    slots : int
        The largest number of blocks in a group.
    usable : callable, optional
        Returns the usable rows of a block. Default: all rows are usable.
    ahead : bool
        Whether to read the next group while one is being used: two groups in memory instead of
        one.
    threads : int
        Number of threads that read, check and decode.
    """

    def __init__(
        self,
        arrays: Sequence[LazyArray],
        blocks: ArraySpec,
        slots: int,
        usable: Usable | None,
        *,
        ahead: bool,
        threads: int,
    ) -> None:
        self.arrays = tuple(arrays)
        self.blocks = blocks
        self.slots = slots
        self.usable = usable
        self.ahead = ahead
        self.threads = threads
        self._kept: list[_Memory] = []

    @property
    def n_bytes(self) -> int:
        """Memory of the buffer in bytes; of two groups where it reads ahead."""
        rows = self.slots * self.blocks.chunk_rows
        return (1 + self.ahead) * rows * sum(array.spec.row_bytes for array in self.arrays)

    def groups(self, requests: Iterator[tuple[Tag, Request]]) -> Generator[tuple[Tag, Group]]:
        """Yield the rows of each request. A group is valid until the next one is asked for.

        Closing or dropping the generator ends its threads.

        Parameters
        ----------
        requests : iterator of (tag, Request)
            Tags are yielded with their groups.

        Raises
        ------
        CorruptDataError
            Stored bytes differ from the bytes that were written; the message names the rows.
        RuntimeError
            The generator is continued in a forked process, which does not have its threads.
        """
        first = next(requests, None)
        if first is not None:  # a chunk of another width fails here, before memory is allocated
            for array in self.arrays:
                self._read(array, *self._chunks_of(array, int(first[1].block.min()))[0], None)
            requests = itertools.chain([first], requests)
        # Bound here: when a generator is left open to the interpreter's end, modules are empty.
        getpid, ending = os.getpid, sys.is_finalizing
        process = getpid()
        free, self._kept = self._kept, []
        every = list(free)
        executor = ThreadPoolExecutor(self.threads, thread_name_prefix="actlas-batches")

        def begin() -> _Reading[Tag] | None:
            request = next(requests, None)
            if request is None:
                return None
            if not free:
                free.append(self._memory())
                every.append(free[0])
            return self._begin(executor, *request, free.pop())

        try:
            begun = begin()
            while begun is not None:
                now, group = begun, begun.result()
                begun = begin() if self.ahead else None
                yield now.tag, group
                if getpid() != process:
                    raise RuntimeError(
                        "iteration over the batches began before this process was forked, and "
                        "the threads stayed in the parent: start iterating in the process that "
                        "uses the batches."
                    )
                free.append(now.memory)
                if not self.ahead:
                    begun = begin()
        finally:
            if not ending():  # then its threads have been joined already
                executor.shutdown(wait=getpid() == process, cancel_futures=True)
                if getpid() == process:
                    self._kept = every

    def _memory(self) -> _Memory:
        rows = self.slots * self.blocks.chunk_rows
        specs = [array.spec for array in self.arrays]
        return [np.empty((rows, *spec.shape[1:]), dtype=spec.numpy_dtype) for spec in specs]

    def _begin(
        self, executor: ThreadPoolExecutor, tag: Tag, wanted: Request, memory: _Memory
    ) -> _Reading[Tag]:
        rows = self.blocks.chunk_rows
        # By shard, so that a file is opened once and read in one direction.
        chunks = []
        for array, buffer in zip(self.arrays, memory, strict=True):
            size = array.spec.chunk_rows
            for i in np.argsort(wanted.block).tolist():
                for k, (shard, chunk) in enumerate(self._chunks_of(array, int(wanted.block[i]))):
                    out = buffer[i * rows + k * size :][:size]
                    chunks.append(executor.submit(self._read, array, shard, chunk, out))
        return _Reading(tag, memory, chunks, executor.submit(self._arrange, wanted, memory))

    def _chunks_of(self, array: LazyArray, block: int) -> list[tuple[int, int]]:
        """Return the shard and the number in it of each chunk of an array that a block has."""
        shard, within = divmod(block, self.blocks.chunks_per_shard)
        each = self.blocks.chunk_rows // array.spec.chunk_rows
        stop = min((within + 1) * each, array.spec.n_chunks(shard))
        return [(shard, chunk) for chunk in range(within * each, stop)]

    def _read(self, array: LazyArray, shard: int, chunk: int, out: NDArray[Any] | None) -> None:
        array.reader(shard).read_chunk(chunk, out)

    def _arrange(self, wanted: Request, memory: _Memory) -> Group:
        """Compute the place of each row in the buffer, in the order of the batches."""
        spec = self.blocks
        counts = wanted.stop - wanted.start
        first = np.cumsum(counts) - counts
        slot = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        within = np.arange(len(slot), dtype=np.int64) - np.repeat(first - wanted.start, counts)
        if self.usable is not None:
            for i, (lo, n) in enumerate(zip(first.tolist(), counts.tolist(), strict=True)):
                within[lo : lo + n] = self.usable(int(wanted.block[i]))[within[lo : lo + n]]
        shard, block = np.divmod(wanted.block, spec.chunks_per_shard)
        row = np.repeat(shard * spec.shard_rows + block * spec.chunk_rows, counts) + within
        place = slot * spec.chunk_rows + within
        return Group(
            arrays=tuple(buffer.view(f"i{buffer.dtype.itemsize}") for buffer in memory),
            places=place[wanted.order],
            rows=row[wanted.order],
            edges=wanted.edges.tolist(),
            dtypes=tuple(_TORCH[array.spec.dtype] for array in self.arrays),
        )
