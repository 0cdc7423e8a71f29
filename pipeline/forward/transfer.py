"""Transfer of gathered activations from the model's device into a shard's buffer.

On the CPU, rows are written to their final places directly. From a CUDA device they are copied into
pinned memory on a stream of their own, and a thread writes them to their places while the next
batch computes; the amount of pinned memory is limited, and a copy waits until it has room.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.pipeline.model.device import to_numpy, torch_dtype

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped

MAX_PINNED_BYTES = 1 << 30
"""Largest amount of pinned memory for running copies. A larger tensor is copied alone."""

_SMALLEST = 1 << 16


def scatter(
    buffer: Shaped[NDArray[Any], "_ units"],
    rows: Int64[NDArray[np.int64], " rows"],
    gathered: Float[torch.Tensor, "rows units"],
) -> None:
    """Write rows to their places in a buffer, as plain integers, in this thread.

    Torch's own ``index_copy_`` wakes all its threads for a copy of a few megabytes, which was ten
    times slower on busy processors.

    Parameters
    ----------
    buffer : ndarray, shape [rows of the shard, units]
        Written to.
    rows : ndarray of int64, shape [n]
        Rows of the buffer.
    gathered : Tensor, shape [n, units]
        On the CPU, in the buffer's dtype.
    """
    words = f"u{buffer.dtype.itemsize}"
    buffer.view(words)[rows] = to_numpy(gathered).view(words)


class Transfer:
    """Transfer without overlap: for the CPU, and for devices without asynchronous copies.

    Attributes
    ----------
    waited_s : float
        Seconds for which the forward pass has waited for pinned memory.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0

    def put(self, buffer: NDArray[Any], rows: NDArray[np.int64], gathered: torch.Tensor) -> None:
        """Round rows to the buffer's dtype and write them to their places.

        Parameters
        ----------
        buffer : ndarray, shape [rows of the shard, units]
            Written to.
        rows : ndarray of int64, shape [n]
            Rows of the buffer.
        gathered : Tensor, shape [n, units]
            In any dtype, on any device.
        """
        scatter(buffer, rows, gathered.to(torch_dtype(buffer.dtype)).cpu())

    def finish(self) -> None:
        """Wait until all rows are in their places."""

    def close(self) -> None:
        """Release all resources."""


class _Copy(NamedTuple):
    """A running copy: its event, its pinned memory, its rows in it, and their destination."""

    copied: Any
    block: torch.Tensor
    pinned: torch.Tensor
    buffer: NDArray[Any]
    rows: NDArray[np.int64]


class PinnedTransfer(Transfer):
    """Transfer from CUDA devices that overlaps with the computation.

    Raises
    ------
    RuntimeError
        In ``put`` and ``finish``: an earlier copy failed in the background.
    """

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[torch.device, Any] = {}
        self._free: dict[int, list[torch.Tensor]] = {}
        self._n_bytes = 0
        self._n_copies = 0
        self._changed = threading.Condition()
        self._queue: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._place, name="actlas-staging", daemon=True)
        self._thread.start()

    def put(self, buffer: NDArray[Any], rows: NDArray[np.int64], gathered: torch.Tensor) -> None:
        """Start to copy rows; wait only where pinned memory has no room.

        Parameters
        ----------
        buffer : ndarray, shape [rows of the shard, units]
            Written to.
        rows : ndarray of int64, shape [n]
            Rows of the buffer.
        gathered : Tensor, shape [n, units]
            In any dtype, on any device.
        """
        if gathered.device.type != "cuda":
            super().put(buffer, rows, gathered)
            return
        rounded = gathered.to(torch_dtype(buffer.dtype)).contiguous()
        n_bytes = rounded.numel() * rounded.element_size()
        block = self._block(n_bytes)
        try:
            pinned = block[:n_bytes].view(rounded.dtype).view(rounded.shape)
            stream = self._streams.get(rounded.device)
            if stream is None:
                stream = self._streams[rounded.device] = torch.cuda.Stream(rounded.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(rounded.device))
            with torch.cuda.stream(stream):
                pinned.copy_(rounded, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(stream)
            rounded.record_stream(stream)  # its memory is not reused before the copy ends
            self._queue.put(_Copy(copied, block, pinned, buffer, rows))
        except BaseException:
            self._give_back(block, block.numel())
            raise

    def finish(self) -> None:
        """Wait for all copies."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_copies == 0)
        self._check()

    def close(self) -> None:
        """End the thread and release the pinned memory."""
        self._queue.put(None)
        self._thread.join()
        self._free.clear()

    def _check(self) -> None:
        error, self._error = self._error, None  # an error is reported once
        if error is not None:
            raise RuntimeError("activations were not copied from the device") from error

    def _block(self, n_bytes: int) -> torch.Tensor:
        """Return a free or new block of pinned memory; its size is a power of two."""
        size = max(_SMALLEST, 1 << (n_bytes - 1).bit_length())
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._has_room(size))
            self._check()
            self._n_copies += 1
            free = self._free.get(size)
            block = free.pop() if free else None
            if block is None:
                self._drop_free(size)
                self._n_bytes += size
        self.waited_s += time.perf_counter() - began
        if block is not None:
            return block
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except BaseException:
            self._give_back(None, size)
            raise

    def _give_back(self, block: torch.Tensor | None, size: int) -> None:
        """Return a block to the free ones; None for a block that could not be allocated."""
        with self._changed:
            if block is None:
                self._n_bytes -= size
            else:
                self._free.setdefault(size, []).append(block)
            self._n_copies -= 1
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        n_free = sum(n * len(blocks) for n, blocks in self._free.items())
        in_use = self._n_bytes - n_free
        return self._n_copies == 0 or in_use + size <= MAX_PINNED_BYTES

    def _drop_free(self, size: int) -> None:
        """Release free blocks until a new block of a size is within the limit."""
        for n, blocks in self._free.items():
            while blocks and self._n_bytes + size > MAX_PINNED_BYTES:
                blocks.pop()
                self._n_bytes -= n

    def _place(self) -> None:
        while (copy := self._queue.get()) is not None:
            try:
                if self._error is None:
                    copy.copied.synchronize()
                    scatter(copy.buffer, copy.rows, copy.pinned)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that computes
                self._error = error
            self._give_back(copy.block, copy.block.numel())
            del copy


def transfer_for(device: str) -> Transfer:
    """Return the transfer for a device."""
    return PinnedTransfer() if device.startswith("cuda") else Transfer()
