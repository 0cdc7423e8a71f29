"""The way of gathered activations into a shard's rows in memory.

On the CPU they are put where they are stored at once. From a CUDA device they are copied on a
stream of their own into pinned memory, and a thread puts them into place while the next batch
computes; there is only so much pinned memory, and who finds none free waits.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.pipeline.model.device import to_numpy, torch_dtype

MAX_STAGED_BYTES = 1 << 30
"""Pinned memory for copies under way. A tensor larger than all of it goes alone."""

_SMALLEST = 1 << 16


def scatter(buffer: NDArray[Any], rows: NDArray[np.int64], gathered: torch.Tensor) -> None:
    """Put rows where they are stored, as plain words of memory, in this thread.

    Torch's own ``index_copy_`` wakes all its threads for a copy of a few megabytes: on busy
    processors that was ten times slower.
    """
    words = f"u{buffer.dtype.itemsize}"
    buffer.view(words)[rows] = to_numpy(gathered).view(words)


class Staging:
    """Puts rows into place at once: for the CPU, and wherever copies cannot be had beside.

    Attributes
    ----------
    waited_s : float
        Seconds for which the forward pass has had to wait for room.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0

    def put(self, buffer: NDArray[Any], rows: NDArray[np.int64], gathered: torch.Tensor) -> None:
        """Round [n, units] to the buffer's dtype, and put it into these rows of it."""
        scatter(buffer, rows, gathered.to(torch_dtype(buffer.dtype)).cpu())

    def finish(self) -> None:
        """Return once all that was given is in place."""

    def close(self) -> None:
        """Let go of what is held."""


class _Copy(NamedTuple):
    """A copy under way: when it is there, where it is, and where it goes."""

    copied: Any
    block: torch.Tensor
    rows_there: torch.Tensor
    buffer: NDArray[Any]
    rows: NDArray[np.int64]


class PinnedStaging(Staging):
    """The same from CUDA devices, copied and put into place beside the computation.

    Raises
    ------
    RuntimeError
        From ``put`` and ``finish``: whatever went wrong in the background.
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
        """Begin to copy; wait only where there is no room."""
        if gathered.device.type != "cuda":
            super().put(buffer, rows, gathered)
            return
        rounded = gathered.to(torch_dtype(buffer.dtype)).contiguous()
        n_bytes = rounded.numel() * rounded.element_size()
        block = self._block(n_bytes)
        try:
            there = block[:n_bytes].view(rounded.dtype).view(rounded.shape)
            stream = self._streams.get(rounded.device)
            if stream is None:
                stream = self._streams[rounded.device] = torch.cuda.Stream(rounded.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(rounded.device))
            with torch.cuda.stream(stream):
                there.copy_(rounded, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(stream)
            rounded.record_stream(stream)  # its memory is nobody else's before that
            self._queue.put(_Copy(copied, block, there, buffer, rows))
        except BaseException:
            self._give_back(block, block.numel())
            raise

    def finish(self) -> None:
        """Wait for every copy."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_copies == 0)
        self._check()

    def close(self) -> None:
        """End the thread, and give the pinned memory back."""
        self._queue.put(None)
        self._thread.join()
        self._free.clear()

    def _check(self) -> None:
        error, self._error = self._error, None  # of this shard alone
        if error is not None:
            raise RuntimeError("activations were not copied from the device") from error

    def _block(self, n_bytes: int) -> torch.Tensor:
        """Return pinned memory of at least so many bytes, a power of two, free or new."""
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
        """Take a block back, or forget one that was never had."""
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
        return self._n_copies == 0 or in_use + size <= MAX_STAGED_BYTES

    def _drop_free(self, size: int) -> None:
        """Give free blocks of other sizes back where a new one would be over the limit."""
        for n, blocks in self._free.items():
            while blocks and self._n_bytes + size > MAX_STAGED_BYTES:
                blocks.pop()
                self._n_bytes -= n

    def _place(self) -> None:
        while (copy := self._queue.get()) is not None:
            try:
                if self._error is None:
                    copy.copied.synchronize()
                    scatter(copy.buffer, copy.rows, copy.rows_there)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that computes
                self._error = error
            self._give_back(copy.block, copy.block.numel())
            del copy


def staging_for(device: str) -> Staging:
    """Return the way from a device."""
    return PinnedStaging() if device.startswith("cuda") else Staging()
