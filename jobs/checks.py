"""What ``actlas doctor`` finds: one value per check."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Check(NamedTuple):
    """A check: its name, how it came out, what was found, and what to do where it is not well."""

    name: str
    result: Literal["ok", "warning", "problem"]
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """Return that all is well."""
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    """Return what works, but not as it should."""
    return Check(name, "warning", found, remedy)


def problem(name: str, found: str, remedy: str) -> Check:
    """Return what a run would fail on."""
    return Check(name, "problem", found, remedy)
