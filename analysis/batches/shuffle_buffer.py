"""The bounded pool: whole chunks read, checked and decoded by threads, the next group ahead."""

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
    """A group's rows in the pool, and the order in which they are given.

    Attributes
    ----------
    values : ndarray of int, shape [rows of the pool, width]
        The stored bits.
    places : ndarray of int64, shape [n]
        Where in ``values`` the n rows lie, permuted.
    rows : ndarray of int64, shape [n]
        Their row numbers in the store, permuted alike.
    dtype : torch dtype
        What the bits mean.
    """

    values: NDArray[Any]
    places: Integers
    rows: Integers
    dtype: torch.dtype

    def cut(self, start: int, stop: int, dtype: torch.dtype) -> tuple[torch.Tensor, Integers]:
        """Return rows [start, stop) in the given order: a fresh tensor, and the row numbers."""
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
        # "clip" lets numpy write into `out` at once; no place is outside the pool.
        np.take(self.values, places, axis=0, mode="clip", out=out)


class _Reading(NamedTuple, Generic[Tag]):
    """A group that threads are reading."""

    tag: Tag
    chunks: list[Future[None]]
    block: Future[Block]

    def result(self) -> Block:
        """Wait for it; raise the first error of its threads."""
        done, waiting = wait(self.chunks, return_when=FIRST_EXCEPTION)
        if waiting:
            for future in waiting:
                future.cancel()
        for future in done:
            future.result()
        return self.block.result()


class Pool(Generic[Tag]):
    """Reads groups of chunks of one array into memory that is used again and again.

    Parameters
    ----------
    array : LazyArray, shape [row, unit]
        Whose chunks are read.
    slots : int
        The most chunks of a group.
    usable : callable, optional
        The usable rows of a chunk; all of them where none is given.
    ahead : bool
        Read the next group while one is being consumed: two groups in memory instead of one.
    threads : int
        That read, check and decode.
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
        """Memory of the pool, both groups where it reads ahead."""
        spec = self.array.spec
        return (1 + self.ahead) * self.slots * spec.chunk_rows * spec.row_bytes

    def blocks(self, requests: Iterator[tuple[Tag, Request]]) -> Generator[tuple[Tag, Block]]:
        """Yield each request's rows. A block's memory is used again when the next is asked for.

        Closing the generator, or dropping it, ends its threads.

        Raises
        ------
        CorruptDataError
            Stored bytes are not the ones that were written; the message names the rows.
        RuntimeError
            It goes on in a forked process, where its threads are not.
        """
        first = next(requests, None)
        if first is not None:  # proves that rows are as wide as they are said to be
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
                        "batches were begun before this process was forked, and their threads "
                        "stayed behind: begin to iterate in the process that uses them."
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
        """Work out where each row lies in the pool, in the order in which they are given."""
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
