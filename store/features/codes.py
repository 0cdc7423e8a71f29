"""Codes of tokens: sparse activations of features, and how they are named and rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


def index_dtype(n_features: int) -> str:
    """Return the dtype of CSR indices: uint16 up to 65,536 features, else uint32."""
    return "uint16" if n_features <= 1 << 16 else "uint32"


def token_dtype(n_tokens: int) -> str:
    """Return the dtype of tokens in the index: int32 where they fit, else int64."""
    return "int32" if n_tokens < 1 << 31 else "int64"


def round_values(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 to the nearest bfloat16, ties to even; the result is float32 again.

    >>> round_values(np.array([1.001, 3.14159], np.float32)).tolist()
    [1.0, 3.140625]
    """
    words = values.view(np.uint32)
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    found = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    found[np.isnan(values)] = np.nan  # the sum above overflows for some of its bit patterns
    return found


class Codes(NamedTuple):
    """The codes of consecutive tokens: compressed sparse rows.

    Token ``start + i`` has ``data[indptr[i]:indptr[i + 1]]`` at the features
    ``indices[indptr[i]:indptr[i + 1]]``, ascending. ``scipy.sparse.csr_array((data, indices,
    indptr))`` takes it as it is.
    """

    start: int
    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[np.float32]

    def dense(self, feature: int) -> NDArray[np.float32]:
        """Return one feature's activation of each token; shape [tokens]."""
        hit = np.flatnonzero(self.indices == feature)
        values = np.zeros(len(self.indptr) - 1, np.float32)
        values[np.searchsorted(self.indptr, hit, side="right") - 1] = self.data[hit]
        return values
