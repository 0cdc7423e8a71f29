"""Damage to an object of a store, and the checks that find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from actlas.store.errors import ActlasError, RunFaultError, of_one_object


@dataclass(frozen=True)
class Damage:
    """One object that differs from what was written.

    Attributes
    ----------
    key : str
        The object's key.
    what : str
        What is wrong with the object.
    start, stop : int or None
        The rows [start, stop) that are lost with it, where the object holds rows.
    of : {"rows", "documents"}
        What ``start`` and ``stop`` count: pooled rows are one per document.
    job : str or None
        The job that the object belongs to.
    shard : int or None
        The shard of that job, or the unit of a derived job.
    orphan : bool
        Whether nothing of this store has its name.
    """

    key: str
    what: str
    start: int | None = None
    stop: int | None = None
    of: str = "rows"
    job: str | None = None
    shard: int | None = None
    orphan: bool = False

    @property
    def stray(self) -> bool:
        """Former name of ``orphan``."""
        return self.orphan

    def __str__(self) -> str:
        rows = f", {self.of} [{self.start}, {self.stop})" if self.start is not None else ""
        return f"{self.key}{rows}: {self.what}"


class Checked(NamedTuple):
    """The outcome of one check: how much was read, and the damages found."""

    n_objects: int
    n_bytes: int
    damages: list[Damage]


class Check(NamedTuple):
    """A check, and the damage to report where the check itself cannot be done."""

    run: Callable[[], Checked]
    otherwise: Callable[[str], Damage]

    def __call__(self) -> Checked:
        """Run the check. A fault that says nothing about the store is raised."""
        try:
            return self.run()
        except (ActlasError, OSError, ValueError) as error:
            raise_if_outside(error)
            return Checked(0, 0, [self.otherwise(f"cannot be checked: {error}")])


def raise_if_outside(error: Exception) -> None:
    """Raise an error that says nothing about the store: an outage, no credentials, no descriptors.

    A file that cannot be read for a fault of its own counts as damaged.
    """
    if isinstance(error, RunFaultError) and not of_one_object(error):
        raise error


def size_words(size: int | None, expected: int) -> str:
    """Return in words how an object's size differs from the recorded one, in bytes."""
    if size is None:
        return f"missing ({expected:,} bytes expected)"
    word = "empty" if size == 0 else "truncated" if size < expected else "too long"
    return f"{word} ({size:,} bytes, {expected:,} expected)"
