"""From a batch of sequences and the corpus' tokens to what the model is given. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.batching import Batch, Fed, Inputs, Piece


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
    if batch.piece is not None:
        return _assemble_piece(batch.fed[0], batch.piece, tokens, first_token, prefix_ids)
    places = batch.places or range(0, batch.n_padded, batch.length)
    input_ids = np.full(batch.n_padded, pad_id, dtype=np.int64)
    positions = np.zeros(batch.n_padded, dtype=np.int64)
    kept, token = [], []
    for place, fed in zip(places, batch.fed, strict=True):
        start, stop = fed.sequence.start, fed.sequence.stop
        begin, end = place + fed.n_prefix, place + fed.n_prefix + stop - start
        input_ids[place:begin] = prefix_ids[: fed.n_prefix]
        input_ids[begin:end] = tokens[start - first_token : stop - first_token]
        input_ids[end : place + fed.length] = suffix_ids[: fed.n_suffix]
        positions[place : place + fed.length] = np.arange(fed.length)
        rows = np.arange(fed.sequence.keep_start, fed.sequence.keep_stop, dtype=np.int64)
        kept.append(begin + rows - start)
        token.append(rows)
    shape = batch.n_rows, batch.length
    arrays: dict[str, NDArray[Any]] = {"input_ids": input_ids.reshape(shape)}
    if batch.places:
        arrays["position_ids"] = positions.reshape(shape)
    elif not causal and batch.n_padded > batch.n_fed:
        lengths = np.array([fed.length for fed in batch.fed])
        arrays["attention_mask"] = (np.arange(batch.length) < lengths[:, None]).astype(np.int64)
    return Inputs(arrays, shape, np.concatenate(kept), np.concatenate(token))


def _assemble_piece(
    fed: Fed, piece: Piece, tokens: NDArray[np.int32], first_token: int, prefix_ids: Items[int]
) -> Inputs:
    """Lay out the positions of one piece; of its rows, those of the shard are kept."""
    sequence = fed.sequence
    at = sequence.start - fed.n_prefix  # the token that would stand at position 0
    start, stop = max(piece.start + at, sequence.start), max(piece.stop + at, sequence.start)
    prefix = np.array(prefix_ids[: fed.n_prefix][piece.start : piece.stop], dtype=np.int64)
    input_ids = np.concatenate([prefix, tokens[start - first_token : stop - first_token]])
    rows = np.arange(max(start, sequence.keep_start), min(stop, sequence.keep_stop), dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": input_ids.astype(np.int64)[None],
        "position_ids": np.arange(piece.start, piece.stop, dtype=np.int64)[None],
    }
    return Inputs(arrays, (1, len(input_ids)), rows - at - piece.start, rows, piece)
