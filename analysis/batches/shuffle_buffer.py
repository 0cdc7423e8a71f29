"""The shuffle buffer: threads read, check and decode whole chunks, one group ahead of its use."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from actlas.analysis.batches.sampler import Request
from actlas.store.shards.lazy_array import LazyArray

Integers = NDArray[np.int64]

Usable = Callable[[int], Integers]
"""The usable rows of a chunk, counted from its first, in order."""

Tag = TypeVar("Tag")

CUT_BYTES = 1 << 19

_TORCH = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


class Block(NamedTuple):
    """The rows of a group in the shuffle buffer, with their random order.

    Attributes
    ----------
    values : ndarray of int, shape [rows of the buffer, units]
        The stored bits.
    places : ndarray of int64, shape [n]
        The index in ``values`` of each of the n rows, permuted.
    rows : ndarray of int64, shape [n]
        The row numbers in the store, in the same order.
    dtype : torch dtype
        The dtype whose bits ``values`` holds.
    """

    values: NDArray[Any]
    places: Integers
    rows: Integers
    dtype: torch.dtype

    def cut(self, start: int, stop: int, dtype: torch.dtype) -> tuple[torch.Tensor, Integers]:
        """Return rows [start, stop) of the permuted order.

        Parameters
        ----------
        start, stop : int
            A range of ``places``.
        dtype : torch dtype
            The dtype to convert to.

        Returns
        -------
        Tensor, shape [stop - start, units]
            A new tensor.
        ndarray of int64, shape [stop - start]
            Row numbers in the store.
        """
        places, rows = self.places[start:stop], self.rows[start:stop].copy()
        out = torch.empty((stop - start, self.values.shape[1]), dtype=dtype)
        if dtype == self.dtype:
            self._take(places, out.view(_BITS[dtype]).numpy())
            return out, rows
        # Through a small buffer that stays in the cache, and on this thread alone: torch's own
        # threads would wait actively, on the cores that read and decode.
        step = max(1, min(len(places), CUT_BYTES // max(1, self.values[0].nbytes)))
        picked = np.empty((step, self.values.shape[1]), dtype=self.values.dtype)
        for first in range(0, len(places), step):
            part = out[first : first + step]
            some = picked[: len(part)]
            self._take(places[first : first + step], some)
            if self.dtype == torch.bfloat16 and dtype == torch.float32:
                np.copyto(part.numpy(), some.view(ml_dtypes.bfloat16))
            else:
                part.copy_(torch.from_numpy(some).view(self.dtype))
        return out, rows

    def _take(self, places: Integers, out: NDArray[Any]) -> None:
        # "clip" lets numpy write into `out` at once; no place is outside the buffer.
        np.take(self.values, places, axis=0, mode="clip", out=out)


class _Reading(NamedTuple, Generic[Tag]):
    """A group that threads are reading."""

    tag: Tag
    chunks: list[Future[None]]
    block: Future[Block]

    def result(self) -> Block:
        """Wait for the group and return it; raise the first error of its threads."""
        done, waiting = wait(self.chunks, return_when=FIRST_EXCEPTION)
        if waiting:
            for future in waiting:
                future.cancel()
        for future in done:
            future.result()
        return self.block.result()


class ShuffleBuffer(Generic[Tag]):
    """Reads groups of chunks of one array into memory that is used again and again.

    Parameters
    ----------
    array : LazyArray, shape [row, unit]
        The array whose chunks are read.
    slots : int
        The largest number of chunks in a group.
    usable : callable, optional
        Returns the usable rows of a chunk. Default: all rows are usable.
    ahead : bool
        Whether to read the next group while one is being used: two groups in memory instead of
        one.
    threads : int
        Number of threads that read, check and decode.
    """

    def __init__(
        self, array: LazyArray, slots: int, usable: Usable | None, *, ahead: bool, threads: int
    ) -> None:
        self.array = array
        self.slots = slots
        self.usable = usable
        self.ahead = ahead
        self.threads = threads

    @property
    def n_bytes(self) -> int:
        """Memory of the buffer in bytes; of two groups where it reads ahead."""
        spec = self.array.spec
        return (1 + self.ahead) * self.slots * spec.chunk_rows * spec.row_bytes

    def blocks(self, requests: Iterator[tuple[Tag, Request]]) -> Generator[tuple[Tag, Block]]:
        """Yield the rows of each request. A block is valid until the next one is asked for.

        Closing or dropping the generator ends its threads.

        Parameters
        ----------
        requests : iterator of (tag, Request)
            Tags are yielded with their blocks.

        Raises
        ------
        CorruptDataError
            Stored bytes differ from the bytes that were written; the message names the rows.
        RuntimeError
            The generator is continued in a forked process, which does not have its threads.
        """
        first = next(requests, None)
        if first is not None:  # a chunk of another width fails here, before memory is allocated
            self._read(int(first[1].chunk.min()), None)
            requests = itertools.chain([first], requests)
        buffers = [self._buffer() for _ in range(1 + self.ahead)]
        # Bound here: when a generator is left open to the interpreter's end, modules are empty.
        getpid, ending = os.getpid, sys.is_finalizing
        process = getpid()
        executor = ThreadPoolExecutor(self.threads, thread_name_prefix="actlas-batches")
        try:
            begun = self._begin(executor, next(requests, None), buffers[0])
            while begun is not None:
                tag, block = begun.tag, begun.result()
                buffers.append(buffers.pop(0))
                if self.ahead:
                    begun = self._begin(executor, next(requests, None), buffers[0])
                yield tag, block
                if getpid() != process:
                    raise RuntimeError(
                        "iteration over the batches began before this process was forked, and "
                        "the threads stayed in the parent: start iterating in the process that "
                        "uses the batches."
                    )
                if not self.ahead:
                    begun = self._begin(executor, next(requests, None), buffers[0])
        finally:
            if not ending():  # then its threads have been joined already
                executor.shutdown(wait=getpid() == process, cancel_futures=True)

    def _buffer(self) -> NDArray[Any]:
        spec = self.array.spec
        shape = (self.slots * spec.chunk_rows, *spec.shape[1:])
        return np.empty(shape, dtype=spec.numpy_dtype)

    def _begin(
        self,
        executor: ThreadPoolExecutor,
        request: tuple[Tag, Request] | None,
        buffer: NDArray[Any],
    ) -> _Reading[Tag] | None:
        if request is None:
            return None
        tag, wanted = request
        rows = self.array.spec.chunk_rows
        # By shard, so that a file is opened once and read in one direction.
        chunks = [
            executor.submit(self._read, int(wanted.chunk[i]), buffer[i * rows : (i + 1) * rows])
            for i in np.argsort(wanted.chunk)
        ]
        return _Reading(tag, chunks, executor.submit(self._arrange, wanted, buffer))

    def _read(self, chunk: int, out: NDArray[Any] | None) -> None:
        shard, within = divmod(chunk, self.array.spec.chunks_per_shard)
        self.array.reader(shard).read_chunk(within, out)

    def _arrange(self, wanted: Request, buffer: NDArray[Any]) -> Block:
        """Compute the place of each row in the buffer, in the permuted order."""
        spec = self.array.spec
        counts = wanted.stop - wanted.start
        first = np.cumsum(counts) - counts
        slot = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        within = np.arange(len(slot), dtype=np.int64) - np.repeat(first - wanted.start, counts)
        if self.usable is not None:
            for i, (lo, n) in enumerate(zip(first.tolist(), counts.tolist(), strict=True)):
                within[lo : lo + n] = self.usable(int(wanted.chunk[i]))[within[lo : lo + n]]
        shard, chunk = np.divmod(wanted.chunk, spec.chunks_per_shard)
        row = np.repeat(shard * spec.shard_rows + chunk * spec.chunk_rows, counts) + within
        place = slot * spec.chunk_rows + within
        return Block(
            values=buffer.view(f"i{buffer.dtype.itemsize}"),
            places=place[wanted.order],
            rows=row[wanted.order],
            dtype=_TORCH[spec.dtype],
        )
