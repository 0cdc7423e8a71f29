"""Packing: several sequences in one row, for models that are seen to keep them apart."""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections.abc import Iterable
from collections.abc import Sequence as Items
from itertools import pairwise
from typing import TYPE_CHECKING

from actlas.pipeline.forward.batching import Batch, InputSequence, cut_batches
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.invariants import difference, probe_tokens
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn

PROBE_LENGTHS = (21, 13)
"""Tokens of the two documents that a model is tested with."""


def pack_rows(
    sequences: Iterable[InputSequence],
    tokens_per_batch: int,
    *,
    row_tokens: int | None = None,
    pass_tokens: int | None = None,
) -> list[Batch]:
    """Pack sequences into rows, and batch rows of similar length.

    Parameters
    ----------
    sequences : iterable of InputSequence
        In any order.
    tokens_per_batch, pass_tokens : int
        See :func:`actlas.pipeline.forward.batching.pack`, with rows instead of sequences.
    row_tokens : int, optional
        The largest number of tokens of a row, with one row per pass; a longer sequence has a row of
        its own. Default: the longest sequence, so that attention over a whole row costs no more
        than for that sequence, with as many rows per pass as fit.

    Returns
    -------
    list of Batch
        Batches with ``offsets``, longest rows first.

    Notes
    -----
    Best fit decreasing: each sequence, longest first, goes into the fullest row with room for it.

    Examples
    --------
    >>> from actlas.store.format.layout import Sequence
    >>> lengths = [3, 9, 4, 2]
    >>> sequences = [InputSequence(Sequence(i, 0, n, 0, n), 1, 0) for i, n in enumerate(lengths)]
    >>> [([f.length for f in b.sequences], b.length, b.offsets) for b in pack_rows(sequences, 32)]
    [([10, 5, 4], 10, (0, 10, 15)), ([3], 3, (0,))]
    """
    ordered = sorted(sequences, key=lambda f: (-f.length, f.content.start))
    if not ordered:
        return []
    rows = _fill(ordered, row_tokens or ordered[0].length)
    filled = sorted(((sum(f.length for f in row), row) for row in rows), key=lambda r: -r[0])
    edges = list(range(len(filled) + 1))
    if row_tokens is None:
        edges = cut_batches([length for length, _ in filled], tokens_per_batch, pass_tokens)
    return [
        _in_rows([row for _, row in filled[first:stop]], filled[first][0])
        for first, stop in pairwise(edges)
    ]


def _fill(ordered: Items[InputSequence], row_tokens: int) -> list[list[InputSequence]]:
    """Distribute sequences, longest first, over rows by best fit."""
    rows: list[list[InputSequence]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for each in ordered:
        at = bisect_left(room, (each.length, 0))
        if at < len(room):
            free, row = room.pop(at)
            rows[row].append(each)
        else:
            free, row = max(row_tokens, each.length), len(rows)
            rows.append([each])
        if free > each.length:
            insort(room, (free - each.length, row))
    return rows


def _in_rows(rows: Items[Items[InputSequence]], length: int) -> Batch:
    sequences, offsets = [], []
    for i, row in enumerate(rows):
        at = i * length
        for each in row:
            sequences.append(each)
            offsets.append(at)
            at += each.length
    return Batch(tuple(sequences), length, tuple(offsets))


def packing_obstacle(
    model: nn.Module, hookpoints: Items[HookpointSpec], *, one_row: bool = False
) -> str | None:
    """Return the reason why a model cannot take packed rows, or None where it can.

    The model is tested: two documents in one row, in either order, must give the activations that
    each gives alone, and a change of one document must not change the other's activations.

    Parameters
    ----------
    model : torch.nn.Module
        The loaded model, with the attention implementation of the run.
    hookpoints : sequence of HookpointSpec
        The hookpoints whose activations are compared.
    one_row : bool
        Whether to test single rows: variable-length attention keeps documents apart only there.

    Notes
    -----
    The models of transformers that can are those that infer sequence boundaries from
    ``position_ids``, which count from 0 in each sequence, where no attention mask is given.
    """
    import torch

    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no position_ids"
    n, m = PROBE_LENGTHS
    tokens = probe_tokens(model, 2 * (n + m))
    if tokens is None:
        return f"{type(model).__name__} has too few tokens in its vocabulary to be tested"
    first, second, other_first, other_second = torch.split(tokens, [n, m, n, m])
    counted = [torch.arange(length, device=tokens.device) for length in PROBE_LENGTHS]
    position_ids = torch.stack([torch.cat(counted), torch.cat(counted[::-1])])

    with torch.inference_mode(), Capture(model, hookpoints) as capture:

        def run(*rows: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
            ids = torch.stack([torch.cat(row) for row in rows])
            return capture(ids, position_ids=position_ids[: len(rows)])

        alone = [capture(document[None]) for document in (first, second)]
        try:
            if one_row:
                swapped_ids = torch.cat((second, first))[None]
                other_row = capture(swapped_ids, position_ids=position_ids[1:])
                two = {
                    name: torch.cat([rows, other_row[name]])
                    for name, rows in run((first, second)).items()
                }
            else:
                two = run((first, second), (second, first))
            one = run((first, second))
            after, before = run((first, other_second)), run((other_first, second))
        except (TypeError, ValueError, RuntimeError) as error:
            return f"{type(model).__name__} was given two documents in a row: {error}"
    for name in one:
        truth = torch.cat([alone[0][name][0], alone[1][name][0]])
        swapped = torch.cat([two[name][1, m:], two[name][1, :m]])
        for found in (two[name][0], swapped, one[name][0]):
            if reason := difference(found, truth, by_row=True):
                return f"at {name} documents in one row differ from each alone by {reason}"
        for changed, kept in ((after, slice(0, n)), (before, slice(n, n + m))):
            if reason := difference(changed[name][0, kept], one[name][0, kept], by_row=True):
                return f"at {name} rows change with another document in their row by {reason}"
    return None
