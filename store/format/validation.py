"""Whether what a plan promises can be there: held against the objects that it names itself.

A store may come from a stranger, and whoever writes a plan can seal it. So counts are believed only
as far as there are objects for them, and edges and codes that are read are held against what they
point into, before memory is taken for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import CorruptDataError, FormatError
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import PlanFile

CHANGED = "The store was changed, or written wrongly."


def check_objects(plan_file: PlanFile, where: str) -> None:
    """Raise ``FormatError`` where a plan counts other documents than it has objects of.

    Tokens, texts and images lie in objects that the plan names one by one, so no count can be
    larger than the plan is long.
    """
    labels = () if "documents/label/zarr.json" in plan_file.objects else None
    specs = StoreArrays(plan_file.plan, labels).documents
    named = sum(k.startswith("documents/") and "/c/" in k for k in plan_file.objects)
    counted = sum(spec.n_shards for spec in specs.values())
    ends = (spec.key(spec.n_shards - 1) for spec in specs.values() if spec.n_shards)
    absent = next((key for key in ends if key not in plan_file.objects), None)
    if named != counted or absent is not None:
        missing = "" if absent is None else f" ({absent} is not among them)"
        raise FormatError(
            f"{where}: the plan's counts of documents, tokens and bytes need {counted:,} objects, "
            f"and it names {named:,}{missing}. {CHANGED}",
            path=where,
        )


def check_edges(edges: NDArray[np.int64], last: int, what: str) -> None:
    """Raise ``CorruptDataError`` where edges do not rise from 0 to the length of what they cut."""
    if not len(edges) or edges[0] != 0 or edges[-1] != last:
        raise CorruptDataError(
            f"{what}: expected edges from 0 to {last:,}, got {edges[:1]} to {edges[-1:]}. "
            + CHANGED,
            path=what,
        )
    check_rising(edges, last, what)


def check_rising(places: NDArray[np.integer], n: int, what: str) -> None:
    """Raise ``CorruptDataError`` where places fall, or lie outside [0, n]."""
    if len(places) and (places[0] < 0 or places[-1] > n or bool((places[1:] < places[:-1]).any())):
        raise CorruptDataError(
            f"{what}: expected numbers that rise within [0, {n}]; these do not. {CHANGED}",
            path=what,
        )


def check_codes(
    codes: NDArray[np.integer], names: Sequence[str], what: str, lowest: int = 0
) -> None:
    """Raise ``CorruptDataError`` where a code is of no name; -1 stands for none where it may."""
    if not len(codes):
        return
    first, last = int(codes.min()), int(codes.max())
    if first < lowest or last >= len(names):
        raise CorruptDataError(
            f"{what}: its codes go from {first} to {last}, and it has {len(names)} names. "
            + CHANGED,
            path=what,
        )


def check_span(lo: int, hi: int, n: int, what: str) -> None:
    """Raise ``CorruptDataError`` where stored edges [lo, hi) lie outside what they cut."""
    if not 0 <= lo <= hi <= n:
        raise CorruptDataError(
            f"{what}: [{lo}, {hi}) does not lie in [0, {n}). {CHANGED}", path=what
        )
