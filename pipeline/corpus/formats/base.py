"""What all readers share: records, reasons, limits, and the error for a damaged file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from actlas.store.errors import CorpusError

BLOCK_BYTES = 1 << 18

MAX_DOCUMENT_BYTES = 64 << 20
"""Largest document: the tokenizer needs some hundred bytes of memory per token."""

MAX_LINE_BYTES = 2 * MAX_DOCUMENT_BYTES
"""Largest line or object: a small compressed file can hold one that no memory can."""

MAX_UNPACKED_BYTES = 512 << 20
"""Most bytes that a small part of a file may unpack to at once: a page of a Parquet file, a batch
of an Arrow file, the window of a compressed one."""

_MAX_RATIO = 16
"""Larger parts are read too where they unpack to no more than so many times their size."""


def unpacked_limit(n_packed: int) -> int:
    """Return how many bytes a part of a file that has ``n_packed`` bytes may unpack to."""
    return max(MAX_UNPACKED_BYTES, _MAX_RATIO * n_packed)


class Unreadable(NamedTuple):
    """A record that is no document.

    Attributes
    ----------
    reason : str
        The reason, the same for all records of the kind.
    where : str
        The place in the file, where that is more than the record's number.
    """

    reason: str
    where: str = ""


Raw: TypeAlias = Mapping[str, Any] | str | Unreadable
"""A record of a file: named fields, or plain text."""

NOT_UTF8 = Unreadable("not UTF-8")

NOT_JSON = Unreadable("not JSON")

NOT_AN_OBJECT = Unreadable("JSON, but not an object with named fields")

TOO_DEEP = Unreadable("JSON nested too deeply (about a thousand levels are read)")

TOO_LONG = Unreadable(f"longer than {MAX_DOCUMENT_BYTES >> 20} MiB")

Wanted: TypeAlias = Callable[[list[str], list[str]], list[str]]
"""A function that selects a table's columns: of its columns, and of all fields as dotted paths."""


class RepeatedNameError(LookupError):
    """A column that is needed has a name that several columns have.

    Parameters
    ----------
    name : str
        The name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass
class Position:
    """The share of a file that a reader has covered, from 0 to 1."""

    fraction: float = 0.0


@dataclass
class TextForm:
    """The form of text files, as far as their suffix leaves it open.

    Attributes
    ----------
    delimiter : bytes or None
        The byte between two cells of a table. None: it is found in each table's header.
    lines : bool
        Whether each line of a ``.txt`` is a document.
    fits : callable
        Returns how many of the fields that are read a header's columns have.
    found : dict of str to str
        The delimiter of each table, by its path, where it is not its suffix's own.
    """

    delimiter: bytes | None = None
    lines: bool = False
    fits: Callable[[list[str]], int] = len
    found: dict[str, str] = field(default_factory=dict)


def select(
    wanted: Wanted, names: list[str], fields: list[str], path: Path, where: str
) -> list[str]:
    """Return the columns to read.

    Parameters
    ----------
    wanted : callable
        Selects them.
    names, fields : list of str
        The names of the columns; and of all fields, nested ones as dotted paths.
    path : Path
        The file, for the message.
    where : str
        Where the names stand in it, for the message.

    Raises
    ------
    CorpusError
        A needed name is that of several columns.
    """
    try:
        return wanted(names, fields)
    except RepeatedNameError as error:
        places = [str(i + 1) for i, name in enumerate(names) if name == error.name]
        raise CorpusError(
            f"{path}, {where}: {len(places)} columns have the name {error.name!r} (columns "
            f"{', '.join(places)}), so it is not clear which one to read. Rename them.",
            path=str(path),
            columns=places,
        ) from error


def damaged(path: Path, why: str) -> CorpusError:
    """Return the error for a file that breaks off or is corrupt."""
    return CorpusError(f"{path}: damaged or truncated ({why}). Get the file again.", path=str(path))


def oversized(path: Path, what: str, n_bytes: int, limit: int, advice: str) -> CorpusError:
    """Return the error for a part of a file that unpacks to more than is read at once.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        The part.
    n_bytes, limit : int
        Its size and the largest one, in bytes.
    advice : str
        How the file can be made readable.
    """
    return CorpusError(
        f"{path}: {what} takes {n_bytes / (1 << 20):,.0f} MiB of memory, and at most "
        f"{limit >> 20:,} MiB are unpacked at once. {advice}",
        path=str(path),
        n_bytes=n_bytes,
    )
