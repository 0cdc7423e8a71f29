"""Sequences one behind the other in one row, where a model is seen to tell them apart."""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections.abc import Iterable
from collections.abc import Sequence as Items
from itertools import pairwise
from typing import TYPE_CHECKING

from actlas.pipeline.forward.batching import Batch, Fed, cut_batches
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.invariants import difference, probe_tokens
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn

PROBE_LENGTHS = (21, 13)
"""Tokens of the two documents that a model is tried with."""


def pack_rows(
    fed: Iterable[Fed],
    tokens_per_batch: int,
    *,
    row_tokens: int | None = None,
    pass_tokens: int | None = None,
) -> list[Batch]:
    """Put sequences one behind the other into rows, and rows of like length together.

    Parameters
    ----------
    fed : iterable of Fed
    tokens_per_batch, pass_tokens : int
        As for :func:`pack`, of rows instead of sequences.
    row_tokens : int, optional
        Tokens of a row at most, and a pass for each row; a longer sequence has a row to itself.
        Default: the longest sequence, so that attention over a whole row costs no more than it does
        for that one, and as many rows in a pass as fit.

    Returns
    -------
    list of Batch
        With ``places``. Longest rows first.

    Notes
    -----
    Best fit, longest first: each sequence goes into the fullest row that has room for it.

    Examples
    --------
    >>> from actlas.store.format.layout import Sequence
    >>> lengths = [3, 9, 4, 2]
    >>> fed = [Fed(Sequence(i, 0, n, 0, n), 1, 0) for i, n in enumerate(lengths)]
    >>> [([f.length for f in b.fed], b.length, b.places) for b in pack_rows(fed, 32)]
    [([10, 5, 4], 10, (0, 10, 15)), ([3], 3, (0,))]
    """
    ordered = sorted(fed, key=lambda f: (-f.length, f.sequence.start))
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


def _fill(ordered: Items[Fed], row_tokens: int) -> list[list[Fed]]:
    """Put sequences, longest first, into the fewest rows that best fit finds."""
    rows: list[list[Fed]] = []
    room: list[tuple[int, int]] = []  # what is free in a row, and which row it is
    for fed in ordered:
        at = bisect_left(room, (fed.length, 0))
        if at < len(room):
            free, row = room.pop(at)
            rows[row].append(fed)
        else:
            free, row = max(row_tokens, fed.length), len(rows)
            rows.append([fed])
        if free > fed.length:
            insort(room, (free - fed.length, row))
    return rows


def _in_rows(rows: Items[Items[Fed]], length: int) -> Batch:
    fed, places = [], []
    for i, row in enumerate(rows):
        at = i * length
        for each in row:
            fed.append(each)
            places.append(at)
            at += each.length
    return Batch(tuple(fed), length, tuple(places))


def can_pack(
    model: nn.Module, hookpoints: Items[HookpointSpec], *, one_row: bool = False
) -> str | None:
    """Return why sequences cannot share a row of this model's input; None where they can.

    It is tried: two documents in one row, in either order, must give the rows that each gives
    alone, and changing one document must move no row of the other.

    Parameters
    ----------
    model : torch.nn.Module
        Loaded, with the attention it will run with.
    hookpoints : sequence of HookpointSpec
        All rows at these are compared.
    one_row : bool
        Try one row at a time: attention of variable length tells documents apart only so.

    Notes
    -----
    Of transformers' models those can that find several sequences in a row by their
    ``position_ids``: each counts from 0, and no attention mask is given.
    """
    import torch

    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no position_ids"
    n, m = PROBE_LENGTHS
    tokens = probe_tokens(model, 2 * (n + m))
    if tokens is None:
        return f"{type(model).__name__} knows too few tokens to try it with"
    first, second, other_first, other_second = torch.split(tokens, [n, m, n, m])
    counted = [torch.arange(length, device=tokens.device) for length in PROBE_LENGTHS]
    places = torch.stack([torch.cat(counted), torch.cat(counted[::-1])])

    with torch.inference_mode(), Capture(model, hookpoints) as capture:

        def run(*rows: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
            ids = torch.stack([torch.cat(row) for row in rows])
            return capture(ids, position_ids=places[: len(rows)])

        alone = [capture(document[None]) for document in (first, second)]
        try:
            if one_row:
                swapped_ids = torch.cat((second, first))[None]
                other_row = capture(swapped_ids, position_ids=places[1:])
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
