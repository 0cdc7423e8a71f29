"""Validation of counts, edges and codes that come from a store's files.

A store may come from an untrusted source, and anyone can seal a plan. Therefore the counts in a
plan are checked against the objects that it lists, and edges and codes are checked against the
arrays that they index, before memory is allocated for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConfigError, CorruptDataError, FormatError
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import LINE, PlanFile

if TYPE_CHECKING:
    from jaxtyping import Int64, Integer

CHANGED = "The store was changed, or written wrongly."
"""The explanation that messages about invalid values end with."""


def check_objects(plan_file: PlanFile, where: str) -> None:
    """Check that a plan's counts fit the objects that it lists.

    The plan lists every object of the documents' text, tokens and images, so no count can exceed
    what these objects hold.

    Parameters
    ----------
    plan_file : PlanFile
        The plan and its list of objects.
    where : str
        The plan's location, for messages.

    Raises
    ------
    FormatError
        The counts need other objects than the plan lists.
    """
    labels = () if "documents/label/zarr.json" in plan_file.objects else None
    specs = StoreArrays(plan_file.plan, labels).documents
    named = sum(k.startswith("documents/") and "/c/" in k for k in plan_file.objects)
    counted = sum(spec.n_shards for spec in specs.values())
    ends = (spec.key(spec.n_shards - 1) for spec in specs.values() if spec.n_shards)
    absent = next((key for key in ends if key not in plan_file.objects), None)
    if named != counted or absent is not None:
        missing = "" if absent is None else f" (without {absent})"
        raise FormatError(
            f"{where}: the plan lists {named:,} objects{missing}, and its counts of documents, "
            f"tokens and bytes need {counted:,}. {CHANGED}",
            path=where,
        )


def check_edges(edges: Int64[NDArray[np.int64], " edges"], last: int, what: str) -> None:
    """Check that edges rise from 0 to ``last``.

    Parameters
    ----------
    edges : ndarray of int64, shape [n + 1]
        The edges of n ranges.
    last : int
        The length of the array that the edges divide.
    what : str
        The array's path, for messages.

    Raises
    ------
    CorruptDataError
        The edges decrease, or do not start at 0 and end at ``last``.
    """
    if not len(edges) or edges[0] != 0 or edges[-1] != last:
        raise CorruptDataError(
            f"{what}: expected edges from 0 to {last:,}, got {edges[:1]} to {edges[-1:]}. "
            + CHANGED,
            path=what,
        )
    check_rising(edges, last, what)


def check_rising(places: Integer[NDArray[np.integer], " places"], n: int, what: str) -> None:
    """Check that indices never decrease and lie within [0, n].

    Parameters
    ----------
    places : ndarray of int, shape [k]
        The indices.
    n : int
        The largest allowed index.
    what : str
        The array's path, for messages.

    Raises
    ------
    CorruptDataError
        An index decreases, or is out of range.
    """
    if len(places) and (places[0] < 0 or places[-1] > n or bool((places[1:] < places[:-1]).any())):
        raise CorruptDataError(
            f"{what}: got numbers that decrease or leave [0, {n}]. {CHANGED}",
            path=what,
        )


def check_codes(
    codes: Integer[NDArray[np.integer], " codes"],
    names: Sequence[str],
    what: str,
    lowest: int = 0,
) -> None:
    """Check that every code indexes a name.

    Parameters
    ----------
    codes : ndarray of int, shape [k]
        Categorical codes.
    names : sequence of str
        The name of each code.
    what : str
        The array's path, for messages.
    lowest : int
        The lowest allowed code: -1 if -1 stands for "no value", else 0.

    Raises
    ------
    CorruptDataError
        A code has no name.
    """
    if not len(codes):
        return
    first, last = int(codes.min()), int(codes.max())
    if first < lowest or last >= len(names):
        raise CorruptDataError(
            f"{what}: got codes from {first} to {last}, expected codes of {len(names)} names. "
            + CHANGED,
            path=what,
        )


def check_span(lo: int, hi: int, n: int, what: str) -> None:
    """Check that the range [lo, hi) lies within [0, n).

    Parameters
    ----------
    lo, hi : int
        A stored range, half-open.
    n : int
        The length of the array that it indexes.
    what : str
        The array's path, for messages.

    Raises
    ------
    CorruptDataError
        The range is reversed, or out of bounds.
    """
    if not 0 <= lo <= hi <= n:
        raise CorruptDataError(
            f"{what}: got the range [{lo}, {hi}), expected one within [0, {n}). {CHANGED}",
            path=what,
        )


def check_line(text: str, what: str) -> None:
    """Raise ``ConfigError`` for a name that no record of a store can hold.

    Parameters
    ----------
    text : str
        The name.
    what : str
        What it names, for the message.
    """
    if not re.fullmatch(LINE, text) or len(text) > 4096:
        raise ConfigError(
            f"{what} {text!r}: expected at most 4,096 characters, none of them a control "
            f"character, since a store records this name; got {len(text):,} characters. Rename "
            "or link it.",
            field=what,
        )
