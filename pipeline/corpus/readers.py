"""The reader of each suffix: records of a file, one at a time, never a whole file in memory.

``.jsonl`` has one JSON object per line; ``.json`` that, or one array of objects, or objects printed
over several lines; ``.csv`` and ``.tsv`` have a header; a ``.txt`` is **one** document, unless a
:class:`~actlas.pipeline.corpus.formats.base.TextForm` says that it is a table or has one document
per line. Each of these may be compressed. A record that cannot be read is yielded as
:class:`~actlas.pipeline.corpus.formats.base.Unreadable` and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

from actlas.pipeline.corpus.formats import base
from actlas.pipeline.corpus.formats.arrow_file import arrow_rows
from actlas.pipeline.corpus.formats.base import (
    NOT_UTF8,
    TOO_LONG,
    Position,
    Raw,
    TextForm,
    Unreadable,
    Wanted,
)
from actlas.pipeline.corpus.formats.csv_table import csv_rows
from actlas.pipeline.corpus.formats.json_files import json_lines, json_values
from actlas.pipeline.corpus.formats.parquet import parquet_rows
from actlas.pipeline.corpus.formats.streams import COMPRESSIONS, lines, open_blocks
from actlas.store.errors import ActlasError, CorpusError
from actlas.store.objects.faults import run_fault

Reader: TypeAlias = Callable[[Path, Wanted, Position, TextForm], Iterator[tuple[int, Raw]]]


def _all(names: list[str], _fields: list[str]) -> list[str]:
    return names


def read_records(
    path: Path,
    wanted: Wanted = _all,
    position: Position | None = None,
    form: TextForm | None = None,
) -> Iterator[tuple[int, Raw]]:
    """Yield each record of a file with its index: the line, the row, or the place in an array.

    Parameters
    ----------
    path : Path
        A file with one of the known suffixes.
    wanted : callable
        Selects the columns to read from a table.
    position : Position, optional
        Updated as the reading proceeds.
    form : TextForm, optional
        The form of a text file.

    Raises
    ------
    CorpusError
        The file does not exist, may not be read, is damaged, or is not what its suffix says.
    RunFaultError
        The disk fails.
    """
    reader = READERS[cast("str", suffix_of(path))]
    try:
        yield from reader(path, wanted, position or Position(), form or TextForm())
    except (ActlasError, GeneratorExit):
        raise
    except OSError as error:
        fault = None if isinstance(error, PermissionError) else run_fault(error, str(path))
        raise fault or CorpusError(
            f"{path}: {error.strerror or error}. Expected a corpus file that this user may read.",
            path=str(path),
        ) from error


def suffix_of(path: Path) -> str | None:
    """Return the known suffix of a file, or None."""
    name = path.name.lower()
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def _json_lines(
    compression: str, path: Path, _wanted: Wanted, position: Position, _form: TextForm
) -> Iterator[tuple[int, Raw]]:
    return json_lines(open_blocks(path, compression, position))


def _json(
    compression: str, path: Path, _wanted: Wanted, position: Position, _form: TextForm
) -> Iterator[tuple[int, Raw]]:
    return json_values(open_blocks(path, compression, position), path)


def _csv(
    compression: str, path: Path, wanted: Wanted, position: Position, form: TextForm
) -> Iterator[tuple[int, Raw]]:
    return csv_rows(open_blocks(path, compression, position), path, wanted, b",", form)


def _tsv(
    compression: str, path: Path, wanted: Wanted, position: Position, form: TextForm
) -> Iterator[tuple[int, Raw]]:
    return csv_rows(open_blocks(path, compression, position), path, wanted, b"\t", form)


def _text(
    compression: str, path: Path, wanted: Wanted, position: Position, form: TextForm
) -> Iterator[tuple[int, Raw]]:
    """Yield a file's whole text, with its newlines unchanged; or its lines, or rows."""
    if form.delimiter is not None:
        yield from _csv(compression, path, wanted, position, form)
        return
    if form.lines:
        yield from _text_lines(open_blocks(path, compression, position))
        return
    parts: list[bytes] = []
    held = 0
    for block in open_blocks(path, compression, position):
        held += len(block)
        if held > base.MAX_DOCUMENT_BYTES:
            yield 0, TOO_LONG
            return
        parts.append(block)
    try:
        yield 0, b"".join(parts).decode()
    except UnicodeDecodeError:
        yield 0, NOT_UTF8


def _text_lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, Raw]]:
    """Yield each line that is not blank, with its number in the file from 0."""
    for number, line in enumerate(lines(blocks)):
        if isinstance(line, Unreadable):
            yield number, line
            continue
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            yield number, NOT_UTF8._replace(where=f"line {number + 1}")
            continue
        if text.strip():
            yield number, text


def _parquet(
    path: Path, wanted: Wanted, position: Position, _form: TextForm
) -> Iterator[tuple[int, Raw]]:
    return parquet_rows(path, wanted, position)


def _arrow(
    path: Path, wanted: Wanted, position: Position, _form: TextForm
) -> Iterator[tuple[int, Raw]]:
    return arrow_rows(path, wanted, position)


_TEXT_FORMATS = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _text,
}

READERS: dict[str, Reader] = {
    **{
        suffix + compression: partial(reader, compression)
        for suffix, reader in _TEXT_FORMATS.items()
        for compression in ("", *COMPRESSIONS)
    },
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}
"""The reader of each suffix."""

_WITH = f"(also with {', '.join(COMPRESSIONS)})"
KNOWN = f"{', '.join(_TEXT_FORMATS)} {_WITH}, .parquet, .arrow, .feather"
"""The suffixes, for messages."""
