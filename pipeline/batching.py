"""Which sequences go through the model together. Pure: integers in, integers out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.layout import Sequence

PASS_SHARE = 16
"""What a forward pass costs beside its tokens: the token budget divided by this."""


class Fed(NamedTuple):
    """A sequence, and how many tokens of special kinds the model sees before and after it."""

    sequence: Sequence
    n_prefix: int
    n_suffix: int

    @property
    def length(self) -> int:
        """Tokens that the model sees, special ones included."""
        return self.n_prefix + self.sequence.stop - self.sequence.start + self.n_suffix


class Batch(NamedTuple):
    """Sequences for one forward pass, longest first, each padded to ``length`` tokens."""

    fed: tuple[Fed, ...]
    length: int

    @property
    def n_fed(self) -> int:
        """Tokens that are no padding."""
        return sum(fed.length for fed in self.fed)

    @property
    def n_padded(self) -> int:
        """Tokens that the model computes, padding included."""
        return len(self.fed) * self.length


def feed(sequences: Iterable[Sequence], n_prefix: int, n_suffix: int) -> Iterator[Fed]:
    """Say how every sequence is fed.

    The suffix is left out (``n_suffix`` 0) where no earlier token can see it.
    """
    for sequence in sequences:
        yield Fed(sequence, n_prefix, n_suffix)


def pack(fed: Iterable[Fed], tokens_per_batch: int) -> list[Batch]:
    """Put sequences of like length together, within a budget of tokens.

    Parameters
    ----------
    fed : iterable of Fed
    tokens_per_batch : int
        Sequences times the longest of them, special tokens and padding included. A sequence that
        is longer than this goes alone.

    Returns
    -------
    list of Batch
        Longest sequences first, so that the largest memory is needed at once and not hours later.
        The same sequences give the same batches, in whatever order they come.

    Notes
    -----
    Of all ways to cut the sorted sequences into batches within the budget, it takes the one with
    the least cost: the tokens computed, padding included, and for each pass a sixteenth of the
    budget, since a pass of few tokens costs more than its tokens. Exact, by dynamic programming.

    Examples
    --------
    >>> lengths = [3, 9, 4, 2]
    >>> fed = [Fed(Sequence(i, 0, n, 0, n), 1, 0) for i, n in enumerate(lengths)]
    >>> [[f.length for f in batch.fed] for batch in pack(fed, 32)]
    [[10], [5, 4, 3]]
    """
    ordered = sorted(fed, key=lambda f: (-f.length, f.sequence.start))
    edges = _cut(np.array([f.length for f in ordered], dtype=np.int64), tokens_per_batch)
    return [
        Batch(tuple(ordered[first:stop]), ordered[first].length) for first, stop in pairwise(edges)
    ]


def _cut(lengths: NDArray[np.int64], budget: int) -> list[int]:
    """Return where the cheapest batches of sequences, longest first, begin and end."""
    n = len(lengths)
    a_pass = max(1, budget // PASS_SHARE)
    cost = np.full(n + 1, np.iinfo(np.int64).max, dtype=np.int64)
    cost[0] = 0
    first = np.zeros(n + 1, dtype=np.int64)
    for start in range(n):
        most = min(n - start, max(1, budget // int(lengths[start])))
        reached = slice(start + 1, start + 1 + most)
        here = cost[start] + a_pass + np.arange(1, most + 1) * lengths[start]
        better = here < cost[reached]
        cost[reached][better] = here[better]
        first[reached][better] = start
    edges = [n]
    while edges[-1]:
        edges.append(int(first[edges[-1]]))
    return edges[::-1]


def padding_share(batches: Items[Batch]) -> float:
    """Return the share of computed tokens that are padding, from 0 to 1."""
    n_padded = sum(batch.n_padded for batch in batches)
    return 1 - sum(batch.n_fed for batch in batches) / n_padded if n_padded else 0.0


class Inputs(NamedTuple):
    """What one forward pass is given, and which of its positions are kept.

    Attributes
    ----------
    arrays : dict of str to ndarray
        What the model takes, by the names of its own ``forward``: ``input_ids`` [batch, position]
        padded on the right, ``pixel_values`` [image, channel, height, width]. There is an
        ``attention_mask`` (1 for tokens, 0 for padding) only where something is padded and the
        model is not causal: no token of a causal one can see the padding on its right, and
        without a mask it runs the same kernels as a single sequence does.
    shape : tuple of int
        Sequences and positions: how every hookpoint's tensor begins.
    kept : ndarray of int64, shape [rows]
        Positions of the flattened ``[batch * position]`` whose rows are stored.
    token : ndarray of int64, shape [rows]
        Which token of the corpus each of them is.
    """

    arrays: dict[str, NDArray[Any]]
    shape: tuple[int, int]
    kept: NDArray[np.int64]
    token: NDArray[np.int64]


def assemble(
    batch: Batch,
    tokens: NDArray[np.int32],
    first_token: int,
    *,
    prefix_ids: Items[int],
    suffix_ids: Items[int],
    pad_id: int,
    causal: bool,
) -> Inputs:
    """Lay the tokens of a batch out in rows.

    Parameters
    ----------
    batch : Batch
    tokens : ndarray of int32
        The corpus' tokens from ``first_token`` on, as far as the batch needs them.
    first_token : int
    prefix_ids, suffix_ids : sequence of int
        What the tokenizer adds around a window; as many are used as each sequence says.
    pad_id : int
        What stands in for no token.
    causal : bool
        Whether a position sees only earlier ones.
    """
    input_ids = np.full((len(batch.fed), batch.length), pad_id, dtype=np.int64)
    kept, token = [], []
    for i, fed in enumerate(batch.fed):
        start, stop = fed.sequence.start, fed.sequence.stop
        end = fed.n_prefix + stop - start
        input_ids[i, : fed.n_prefix] = prefix_ids[: fed.n_prefix]
        input_ids[i, fed.n_prefix : end] = tokens[start - first_token : stop - first_token]
        input_ids[i, end : fed.length] = suffix_ids[: fed.n_suffix]
        rows = np.arange(fed.sequence.keep_start, fed.sequence.keep_stop, dtype=np.int64)
        kept.append(i * batch.length + fed.n_prefix + rows - start)
        token.append(rows)
    arrays: dict[str, NDArray[Any]] = {"input_ids": input_ids}
    if not causal and batch.n_padded > batch.n_fed:
        lengths = np.array([fed.length for fed in batch.fed])
        arrays["attention_mask"] = (np.arange(batch.length) < lengths[:, None]).astype(np.int64)
    return Inputs(arrays, input_ids.shape, np.concatenate(kept), np.concatenate(token))
