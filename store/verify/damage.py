"""What is wrong with an object of a store, and what it takes to find that out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from actlas.store.errors import ActlasError, RunFaultError, of_one_object


@dataclass(frozen=True)
class Damage:
    """One object that is not what was written.

    Attributes
    ----------
    key : str
        The object.
    what : str
        What is wrong with it.
    start, stop : int or None
        The rows [start, stop) that it takes with it, where it holds rows.
    of : {"rows", "documents"}
        What these are: pooled rows are one per document.
    job, shard : str, int, or None
        The shard of a job that it belongs to, or the unit of derived data.
    stray : bool
        Whether nothing of this store has its name.
    """

    key: str
    what: str
    start: int | None = None
    stop: int | None = None
    of: str = "rows"
    job: str | None = None
    shard: int | None = None
    stray: bool = False

    def __str__(self) -> str:
        rows = f", {self.of} [{self.start}, {self.stop})" if self.start is not None else ""
        return f"{self.key}{rows}: {self.what}"


class Checked(NamedTuple):
    """One check's outcome: how much was read, and what is wrong."""

    n_objects: int
    n_bytes: int
    damages: list[Damage]


class Check(NamedTuple):
    """A check to do, and what is damaged if it cannot be done."""

    run: Callable[[], Checked]
    otherwise: Callable[[str], Damage]

    def __call__(self) -> Checked:
        """Do it. A fault that says nothing about the store is raised."""
        try:
            return self.run()
        except (ActlasError, OSError, ValueError) as error:
            raise_if_outside(error)
            return Checked(0, 0, [self.otherwise(f"cannot be checked: {error}")])


def raise_if_outside(error: Exception) -> None:
    """Raise what says nothing about the store: an outage, no credentials, too many open files.

    A file that cannot be read for a fault of its own is damaged.
    """
    if isinstance(error, RunFaultError) and not of_one_object(error):
        raise error


def size_words(size: int | None, expected: int) -> str:
    """Say how an object's size differs from the recorded one."""
    if size is None:
        return f"missing ({expected:,} bytes expected)"
    word = "empty" if size == 0 else "truncated" if size < expected else "too long"
    return f"{word} ({size:,} bytes, {expected:,} expected)"
