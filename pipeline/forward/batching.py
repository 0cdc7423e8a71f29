"""Batches: sequences that go through the model together. Pure: integers in, integers out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.layout import Sequence

if TYPE_CHECKING:
    from jaxtyping import Int32

Batching = Literal["padded", "equal", "single"]
"""Which sequences share a forward pass: any, padded to the longest; those of equal length; none."""

PASS_SHARE = 16
"""Default cost of a forward pass beside its tokens, in tokens: the token budget over this."""


class InputSequence(NamedTuple):
    """A sequence with its special tokens, as the model sees it.

    Attributes
    ----------
    content : Sequence
        Kept tokens of a document.
    n_prefix, n_suffix : int
        Special tokens before and after them.
    """

    content: Sequence
    n_prefix: int
    n_suffix: int

    @property
    def length(self) -> int:
        """Number of tokens, special ones included."""
        return self.n_prefix + self.content.stop - self.content.start + self.n_suffix


class PrefillChunk(NamedTuple):
    """A chunk of a causal sequence that is prefilled chunk by chunk.

    Attributes
    ----------
    doc_idx, window : int
        The sequence: its document and its first kept token.
    start, stop : int
        Positions [start, stop) of the sequence, special tokens included; the positions before
        ``start`` are in the key-value cache.
    continues : bool
        Whether another chunk of the sequence follows, in this shard or in the next, so that the
        cache is kept.
    """

    doc_idx: int
    window: int
    start: int
    stop: int
    continues: bool


class Batch(NamedTuple):
    """The sequences of one forward pass, in rows of ``length`` tokens.

    Attributes
    ----------
    sequences : tuple of InputSequence
        Longest first; with ``offsets``, in the order of the rows.
    length : int
        Tokens of a row, padding included.
    offsets : tuple of int
        For packed sequences, several one after the other in a row: the index of each sequence's
        first token in the flattened ``[row * position]``. Empty where each sequence has a row of
        its own.
    chunk : PrefillChunk, optional
        The chunk of the only sequence; None where sequences are whole.
    """

    sequences: tuple[InputSequence, ...]
    length: int
    offsets: tuple[int, ...] = ()
    chunk: PrefillChunk | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows of the model's input."""
        return max(self.offsets) // self.length + 1 if self.offsets else len(self.sequences)

    @property
    def n_input_tokens(self) -> int:
        """Number of tokens without padding."""
        if self.chunk is not None:
            return self.chunk.stop - self.chunk.start
        return sum(each.length for each in self.sequences)

    @property
    def n_padded(self) -> int:
        """Number of tokens that the model computes, padding included."""
        return self.n_rows * self.length


def input_sequences(
    sequences: Iterable[Sequence], n_prefix: int, n_suffix: int
) -> Iterator[InputSequence]:
    """Yield sequences with their special tokens.

    Parameters
    ----------
    sequences : iterable of Sequence
        Kept tokens.
    n_prefix, n_suffix : int
        Special tokens before and after each; 0 for a suffix that no earlier token can see.
    """
    for sequence in sequences:
        yield InputSequence(sequence, n_prefix, n_suffix)


def pack(
    sequences: Iterable[InputSequence],
    tokens_per_batch: int,
    *,
    pass_tokens: int | None = None,
    batching: Batching = "padded",
) -> list[Batch]:
    """Batch sequences of similar length, within a budget of tokens.

    Parameters
    ----------
    sequences : iterable of InputSequence
        In any order.
    tokens_per_batch : int
        The budget: sequences of a batch times the longest of them, special tokens and padding
        included. A longer sequence has a batch of its own.
    pass_tokens : int, optional
        The cost of a pass beside its tokens, in tokens. Default: a sixteenth of the budget.
    batching : {"padded", "equal", "single"}
        Which sequences may share a pass.

    Returns
    -------
    list of Batch
        Longest sequences first, so that the peak of memory comes at the beginning and not hours
        later. The batches do not depend on the order of ``sequences``.

    Notes
    -----
    Of all partitions of the sorted sequences into batches within the budget, the result has the
    least cost: the tokens computed, padding included, plus ``pass_tokens`` for each pass, since a
    pass of few tokens costs more than its tokens. Dynamic programming finds it exactly.

    Examples
    --------
    >>> lengths = [3, 9, 4, 2]
    >>> sequences = [InputSequence(Sequence(i, 0, n, 0, n), 1, 0) for i, n in enumerate(lengths)]
    >>> [[f.length for f in batch.sequences] for batch in pack(sequences, 32)]
    [[10], [5, 4, 3]]
    """
    ordered = sorted(sequences, key=lambda f: (-f.length, f.content.start))
    if batching == "single":
        return [Batch((each,), each.length) for each in ordered]
    groups = [ordered]
    if batching == "equal":
        groups = [list(group) for _, group in groupby(ordered, key=lambda f: f.length)]
    return [
        Batch(tuple(group[first:stop]), group[first].length)
        for group in groups
        for first, stop in pairwise(
            cut_batches([f.length for f in group], tokens_per_batch, pass_tokens)
        )
    ]


def cut_batches(lengths: Items[int], budget: int, pass_tokens: int | None) -> list[int]:
    """Return the edges of the cheapest batches of rows; see :func:`pack`.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row, longest first.
    budget : int
        Rows of a batch times the longest of them.
    pass_tokens : int or None
        The cost of a pass beside its tokens, in tokens. None: a sixteenth of the budget.

    Returns
    -------
    list of int
        From 0 to the number of rows; batch i has the rows [edges[i], edges[i + 1]).
    """
    n = len(lengths)
    a_pass = max(1, budget // PASS_SHARE if pass_tokens is None else pass_tokens)
    cost = np.full(n + 1, np.iinfo(np.int64).max, dtype=np.int64)
    cost[0] = 0
    first = np.zeros(n + 1, dtype=np.int64)
    for start in range(n):
        most = min(n - start, max(1, budget // lengths[start]))
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
    return 1 - sum(batch.n_input_tokens for batch in batches) / n_padded if n_padded else 0.0


class Inputs(NamedTuple):
    """The input of one forward pass, and the positions whose rows are kept.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Arguments of the model's ``forward``, by name: ``input_ids`` [batch, position], padded on
        the right; ``pixel_values`` [image, channel, height, width]. ``position_ids`` are given
        where several sequences share a row, each counting from 0 (0 for padding), and for a chunk
        of a sequence. An ``attention_mask`` (1 for tokens, 0 for padding) is given only where a
        model that is not causal has padding: no token of a causal model can see the padding on its
        right, and without a mask the model runs the same kernels as for a single sequence.
    shape : tuple of int
        Sequences and positions: the first two axes of every hookpoint's tensor.
    kept : ndarray of int64, shape [rows]
        Positions of the flattened ``[batch * position]`` whose rows are kept.
    token : ndarray of int64, shape [rows]
        The token of the corpus at each of them.
    chunk : PrefillChunk, optional
        The chunk that these positions are; the model needs the cache of the chunks before
        (:class:`actlas.pipeline.forward.prefill.Prefill`).
    """

    arrays: dict[str, NDArray[Any]]
    shape: tuple[int, int]
    kept: NDArray[np.int64]
    token: NDArray[np.int64]
    chunk: PrefillChunk | None = None


def assemble(
    batch: Batch,
    tokens: Int32[NDArray[np.int32], " tokens"],
    first_token: int,
    *,
    prefix_ids: Items[int],
    suffix_ids: Items[int],
    pad_id: int,
    causal: bool,
) -> Inputs:
    """Return the model's input for a batch.

    Parameters
    ----------
    batch : Batch
        The sequences.
    tokens : ndarray of int32, shape [tokens]
        The corpus' tokens from ``first_token`` on, at least to the end of the batch.
    first_token : int
        The token of the corpus at ``tokens[0]``.
    prefix_ids, suffix_ids : sequence of int
        Special tokens around a window; each sequence takes its ``n_prefix`` and ``n_suffix``.
    pad_id : int
        The padding token.
    causal : bool
        Whether a position sees only earlier positions.
    """
    if batch.chunk is not None:
        return _assemble_chunk(batch.sequences[0], batch.chunk, tokens, first_token, prefix_ids)
    offsets = batch.offsets or range(0, batch.n_padded, batch.length)
    input_ids = np.full(batch.n_padded, pad_id, dtype=np.int64)
    positions = np.zeros(batch.n_padded, dtype=np.int64)
    kept, token = [], []
    for offset, each in zip(offsets, batch.sequences, strict=True):
        start, stop = each.content.start, each.content.stop
        begin, end = offset + each.n_prefix, offset + each.n_prefix + stop - start
        input_ids[offset:begin] = prefix_ids[: each.n_prefix]
        input_ids[begin:end] = tokens[start - first_token : stop - first_token]
        input_ids[end : offset + each.length] = suffix_ids[: each.n_suffix]
        positions[offset : offset + each.length] = np.arange(each.length)
        rows = np.arange(each.content.keep_start, each.content.keep_stop, dtype=np.int64)
        kept.append(begin + rows - start)
        token.append(rows)
    shape = batch.n_rows, batch.length
    arrays: dict[str, NDArray[Any]] = {"input_ids": input_ids.reshape(shape)}
    if batch.offsets:
        arrays["position_ids"] = positions.reshape(shape)
    elif not causal and batch.n_padded > batch.n_input_tokens:
        lengths = np.array([each.length for each in batch.sequences])
        arrays["attention_mask"] = (np.arange(batch.length) < lengths[:, None]).astype(np.int64)
    return Inputs(arrays, shape, np.concatenate(kept), np.concatenate(token))


def _assemble_chunk(
    each: InputSequence,
    chunk: PrefillChunk,
    tokens: NDArray[np.int32],
    first_token: int,
    prefix_ids: Items[int],
) -> Inputs:
    """Return the model's input for a chunk; rows of other shards are not kept."""
    sequence = each.content
    at = sequence.start - each.n_prefix  # the token of the corpus at position 0
    start, stop = max(chunk.start + at, sequence.start), max(chunk.stop + at, sequence.start)
    prefix = np.array(prefix_ids[: each.n_prefix][chunk.start : chunk.stop], dtype=np.int64)
    input_ids = np.concatenate([prefix, tokens[start - first_token : stop - first_token]])
    rows = np.arange(max(start, sequence.keep_start), min(stop, sequence.keep_stop), dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": input_ids.astype(np.int64)[None],
        "position_ids": np.arange(chunk.start, chunk.stop, dtype=np.int64)[None],
    }
    return Inputs(arrays, (1, len(input_ids)), rows - at - chunk.start, rows, chunk)
