"""The result of one check of the environment."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Check(NamedTuple):
    """The result of a check.

    Attributes
    ----------
    name : str
        Name of the check.
    result : {"ok", "warning", "problem"}
        A warning is a limitation; a run would fail on a problem.
    found : str
        The finding.
    remedy : str
        What to do; empty if the result is ok.
    """

    name: str
    result: Literal["ok", "warning", "problem"]
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """Return a passed check."""
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    """Return a check that found a limitation."""
    return Check(name, "warning", found, remedy)


def problem(name: str, found: str, remedy: str) -> Check:
    """Return a check that found an error on which a run would fail."""
    return Check(name, "problem", found, remedy)
