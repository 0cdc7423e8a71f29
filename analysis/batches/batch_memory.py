"""The memory of batches: each is its holder's own, and is used again once nothing refers to it.

Large memory that is freed goes back to the operating system, and to touch it again for the first
time costs more than to fill it, most of all on virtual machines.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


class BatchMemory:
    """Gives tensors in memory that no tensor refers to any more, or in new memory.

    Parameters
    ----------
    n_kept : int
        The number of tensors whose memory is kept: those of two batches, since a loop holds one
        while the next is made.
    """

    def __init__(self, n_kept: int) -> None:
        self.n_kept = n_kept
        self._kept: list[tuple[NDArray[np.uint8], weakref.ref[Any]]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which allocates memory of its own."""
        return {"n_kept": self.n_kept, "_kept": []}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor with any content; nothing else refers to its memory.

        Parameters
        ----------
        shape : tuple of int
            The tensor's shape.
        dtype : torch dtype
            The tensor's dtype.
        """
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        free = [
            i
            for i, (memory, holder) in enumerate(self._kept)
            if holder() is None and len(memory) >= n_bytes
        ]
        memory = self._kept.pop(free[0])[0] if free else np.empty(n_bytes, np.uint8)
        # The tensor, its views and what numpy makes of them hold this view of the memory.
        view = memory[:n_bytes]
        if len(self._kept) < self.n_kept:
            self._kept.append((memory, weakref.ref(view)))
        return torch.from_numpy(view).view(dtype).view(shape)

    def converted(
        self, values: NDArray[Any], stored: torch.dtype, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return stored bits as a tensor of a dtype.

        Parameters
        ----------
        values : ndarray of int, shape [rows, units]
            The bits.
        stored : torch dtype
            The dtype whose bits they are.
        dtype : torch dtype
            The dtype of the tensor.
        """
        out = self.empty(values.shape, dtype)
        if dtype == stored:
            np.copyto(out.view(_BITS[dtype]).numpy(), values)
        elif stored == torch.bfloat16 and dtype == torch.float32:
            # On this thread alone: torch's own threads would wait actively, on the cores that
            # read and decode.
            np.copyto(out.numpy(), values.view(ml_dtypes.bfloat16))
        else:
            out.copy_(torch.from_numpy(values).view(stored))
        return out
