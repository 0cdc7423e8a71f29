"""``Codes``: the sparse feature activations of consecutive tokens; their dtypes and rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jaxtyping import Float32


def index_dtype(n_features: int) -> str:
    """Return the dtype of feature numbers: uint16 up to 65,536 features, else uint32."""
    return "uint16" if n_features <= 1 << 16 else "uint32"


def token_dtype(n_tokens: int) -> str:
    """Return the dtype of tokens in the index by feature: int32 if they fit, else int64."""
    return "int32" if n_tokens < 1 << 31 else "int64"


def round_values(
    values: Float32[NDArray[np.float32], "*shape"],
) -> Float32[NDArray[np.float32], "*shape"]:
    """Return float32 values rounded to the nearest bfloat16, ties to even; same shape and dtype.

    >>> round_values(np.array([1.001, 3.14159], np.float32)).tolist()
    [1.0, 3.140625]
    """
    words = values.view(np.uint32)
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    found = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    found[np.isnan(values)] = np.nan  # the sum above overflows for some bit patterns of NaN
    return found


class Codes(NamedTuple):
    """The feature activations of consecutive tokens, as compressed sparse rows.

    Token ``start + i`` has the activations ``data[indptr[i]:indptr[i + 1]]`` of the features
    ``indices[indptr[i]:indptr[i + 1]]``, which ascend; all others are 0.
    ``scipy.sparse.csr_array((data, indices, indptr))`` is the same matrix.

    Attributes
    ----------
    start : int
        The first token's index in the corpus.
    indptr : ndarray of int64, shape [tokens + 1]
        Where each token's entries begin in ``indices`` and ``data``.
    indices : ndarray of uint16 or uint32, shape [entries]
        The feature of each entry.
    data : ndarray of float32, shape [entries]
        The activation of each entry.
    """

    start: int
    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[np.float32]

    def __repr__(self) -> str:
        n_tokens, stop = len(self.indptr) - 1, self.start + len(self.indptr) - 1
        return (
            f"<feature activations of tokens [{self.start:,}, {stop:,}): {len(self.data):,} above "
            f"zero, {len(self.data) / max(n_tokens, 1):.1f} per token>"
        )

    @classmethod
    def joined(cls, start: int, parts: Sequence[Codes], n_features: int) -> Codes:
        """Return the activations of consecutive ranges of tokens as one.

        Parameters
        ----------
        start : int
            The first token's index in the corpus.
        parts : sequence of Codes
            The ranges in order; there may be none.
        n_features : int
            The number of features, which determines the dtype of ``indices``.
        """
        if not parts:
            empty = np.zeros(0, index_dtype(n_features))
            return cls(start, np.zeros(1, np.int64), empty, np.zeros(0, np.float32))
        offsets = np.cumsum([0, *(len(part.data) for part in parts)])
        pointers = [p.indptr[:-1] + offset for p, offset in zip(parts, offsets, strict=False)]
        indptr = np.concatenate([*pointers, offsets[-1:]]).astype(np.int64)
        indices = np.concatenate([part.indices for part in parts])
        return cls(start, indptr, indices, np.concatenate([part.data for part in parts]))

    def dense(self, feature: int) -> Float32[NDArray[np.float32], " tokens"]:
        """Return one feature's activation on each token; shape [tokens]."""
        hit = np.flatnonzero(self.indices == feature)
        values = np.zeros(len(self.indptr) - 1, np.float32)
        values[np.searchsorted(self.indptr, hit, side="right") - 1] = self.data[hit]
        return values
