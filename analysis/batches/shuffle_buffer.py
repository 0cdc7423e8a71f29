"""The shuffle buffer: threads read, check and decode whole blocks, one group ahead of its use."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.analysis.batches.batch_memory import BatchMemory
from actlas.analysis.batches.sampler import Request
from actlas.store.format.array_spec import ArraySpec
from actlas.store.shards.lazy_array import LazyArray

Integers = NDArray[np.int64]

Usable = Callable[[int], Integers]
"""The usable rows of a block, counted from its first, in order."""

Tag = TypeVar("Tag")

_Memory = list[NDArray[Any]]
"""The rows of a group, of each array; shape [rows, units]."""

_TORCH = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


class Group(NamedTuple):
    """The rows of a group in memory, batch after batch.

    Attributes
    ----------
    arrays : tuple of ndarray of int, each of shape [n, units]
        The stored bits of each array.
    rows : ndarray of int64, shape [n]
        The row numbers in the store.
    edges : list of int
        Where batches begin and end in ``rows``.
    dtypes : tuple of torch dtype
        The dtype whose bits each array holds.
    given : BatchMemory
        The memory that batches are given in.
    """

    arrays: tuple[NDArray[Any], ...]
    rows: Integers
    edges: list[int]
    dtypes: tuple[torch.dtype, ...]
    given: BatchMemory

    def cut(self, batch: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], Integers]:
        """Return a batch, in memory of its own.

        Parameters
        ----------
        batch : int
            Its number in the group.
        dtype : torch dtype
            The dtype to convert to.

        Returns
        -------
        list of Tensor, each of shape [rows, units]
            A tensor of each array.
        ndarray of int64, shape [rows]
            Row numbers in the store.
        """
        start, stop = self.edges[batch : batch + 2]
        each = zip(self.arrays, self.dtypes, strict=True)
        tensors = [
            self.given.converted(values[start:stop], stored, dtype) for values, stored in each
        ]
        return tensors, self.rows[start:stop].copy()


class _Arranged(NamedTuple):
    """Where the rows of a group's blocks go.

    Attributes
    ----------
    within : ndarray of int64, shape [n]
        For each row, in the order of reading: its number in its block, ascending in a block.
    place : ndarray of int64, shape [n]
        Its place in the order of the batches.
    first : ndarray of int64, shape [blocks + 1]
        Where the rows of each block begin.
    group : Group
        The group, whose rows are not read yet.
    """

    within: Integers
    place: Integers
    first: Integers
    group: Group


class _Scratch(threading.local):
    """Memory of a reading thread that stays in the processor's cache: a chunk, and its bytes.

    There is one of each for all arrays, and it is as large as the largest chunk.
    """

    def __init__(self) -> None:
        self.encoded = memoryview(bytearray())
        self.decoded = np.empty(0, dtype=np.uint8)

    def read(self, array: LazyArray, shard: int, chunk: int) -> NDArray[Any]:
        """Return the rows of a chunk, which are valid until the next call."""
        spec = array.spec
        n_bytes = spec.chunk_rows * spec.row_bytes
        if len(self.encoded) < n_bytes:
            self.encoded = memoryview(bytearray(n_bytes))
        out = None
        if spec.blosc is not None:
            if len(self.decoded) < n_bytes:
                self.decoded = np.empty(n_bytes, dtype=np.uint8)
            shape = (spec.chunk_rows, *spec.shape[1:])
            out = self.decoded[:n_bytes].view(spec.numpy_dtype).reshape(shape)
        return array.reader(shard).read_chunk(chunk, out, self.encoded)


class _Reading(NamedTuple, Generic[Tag]):
    """A group that threads are reading."""

    tag: Tag
    memory: _Memory
    chunks: list[Future[None]]
    arranged: Future[_Arranged]

    def result(self) -> Group:
        """Wait for the group and return it; raise the first error of its threads."""
        done, waiting = wait(self.chunks, return_when=FIRST_EXCEPTION)
        if waiting:
            for future in waiting:
                future.cancel()
        for future in done:
            future.result()
        return self.arranged.result().group


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
    rows : int
        The largest number of rows in a group.
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
        rows: int,
        usable: Usable | None,
        *,
        ahead: bool,
        threads: int,
    ) -> None:
        self.arrays = tuple(arrays)
        self.blocks = blocks
        self.rows = rows
        self.usable = usable
        self.ahead = ahead
        self.threads = threads
        self._kept: list[_Memory] = []
        self._given = BatchMemory(2 * len(self.arrays))

    @property
    def n_bytes(self) -> int:
        """Memory of the buffer in bytes; of two groups where it reads ahead."""
        return (1 + self.ahead) * self.rows * sum(array.spec.row_bytes for array in self.arrays)

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
        if first is not None:
            self._try(first[1])
            requests = itertools.chain([first], requests)
        # Bound here: when a generator is left open to the interpreter's end, modules are empty.
        getpid, ending = os.getpid, sys.is_finalizing
        process = getpid()
        free, self._kept = self._kept, []
        scratch = _Scratch()
        every = list(free)
        executor = ThreadPoolExecutor(self.threads, thread_name_prefix="actlas-batches")

        def begin() -> _Reading[Tag] | None:
            request = next(requests, None)
            if request is None:
                return None
            if not free:
                free.append(self._memory())
                every.append(free[0])
            return self._begin(executor, *request, free.pop(), scratch)

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

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which allocates memory of its own."""
        return {**self.__dict__, "_kept": []}

    def _try(self, request: Request) -> None:
        """Read a chunk of each array: one of another width fails before memory is allocated."""
        if not len(request.block):  # a rank's part of a group may be empty
            return
        shard, block = divmod(int(request.block.min()), self.blocks.chunks_per_shard)
        for array in self.arrays:
            each = self.blocks.chunk_rows // array.spec.chunk_rows
            array.reader(shard).read_chunk(block * each)

    def _memory(self) -> _Memory:
        """Return memory for a group."""
        specs = [array.spec for array in self.arrays]
        return [np.empty((self.rows, *spec.shape[1:]), dtype=spec.numpy_dtype) for spec in specs]

    def _begin(
        self,
        executor: ThreadPoolExecutor,
        tag: Tag,
        wanted: Request,
        memory: _Memory,
        scratch: _Scratch,
    ) -> _Reading[Tag]:
        arranged = executor.submit(self._arrange, wanted, memory)  # the first, so none waits for it
        chunks = [
            executor.submit(self._read, k, int(wanted.block[i]), i, arranged, scratch)
            for i in np.argsort(wanted.block).tolist()  # by shard: a file is read in one direction
            for k in range(len(self.arrays))
        ]
        return _Reading(tag, memory, chunks, arranged)

    def _read(
        self, k: int, block: int, i: int, arranged: Future[_Arranged], scratch: _Scratch
    ) -> None:
        """Read the i-th block of a group of the k-th array, and put its rows into their places."""
        within, place, first, group = arranged.result()
        array, out = self.arrays[k], group.arrays[k]
        within, place = within[first[i] : first[i + 1]], place[first[i] : first[i + 1]]
        size, each = array.spec.chunk_rows, self.blocks.chunk_rows // array.spec.chunk_rows
        shard, block = divmod(block, self.blocks.chunks_per_shard)
        edges = np.searchsorted(within, np.arange(each + 1) * size).tolist()
        for chunk, (start, stop) in enumerate(itertools.pairwise(edges)):
            if stop > start:
                rows = scratch.read(array, shard, block * each + chunk).view(out.dtype)
                wanted = within[start:stop] - chunk * size
                if wanted[-1] - wanted[0] == stop - start - 1:  # nearly always: no copy
                    rows = rows[wanted[0] : wanted[-1] + 1]
                else:
                    rows = rows[wanted]
                out[place[start:stop]] = rows

    def _arrange(self, wanted: Request, memory: _Memory) -> _Arranged:
        """Compute the place of each row of a group in the order of the batches."""
        spec = self.blocks
        counts = wanted.stop - wanted.start
        first = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(first[-1], dtype=np.int64) - np.repeat(first[:-1] - wanted.start, counts)
        if self.usable is not None:
            for i, (lo, n) in enumerate(zip(first.tolist(), counts.tolist(), strict=False)):
                within[lo : lo + n] = self.usable(int(wanted.block[i]))[within[lo : lo + n]]
        shard, block = np.divmod(wanted.block, spec.chunks_per_shard)
        row = np.repeat(shard * spec.shard_rows + block * spec.chunk_rows, counts) + within
        place = np.full(len(within), -1, dtype=np.int64)
        place[wanted.order] = np.arange(len(wanted.order), dtype=np.int64)
        given = place >= 0  # not those that drop_last leaves out
        rows = row[wanted.order]
        within, place = within[given], place[given]
        first = np.concatenate([[0], np.cumsum(given)])[first]
        group = Group(
            arrays=tuple(buffer.view(f"i{buffer.dtype.itemsize}") for buffer in memory),
            rows=rows,
            edges=wanted.edges.tolist(),
            dtypes=tuple(_TORCH[array.spec.dtype] for array in self.arrays),
            given=self._given,
        )
        return _Arranged(within, place, first, group)
