"""Tables of text: ``.csv`` and ``.tsv`` with a header, by RFC 4180, and no row of them guessed.

The bytes are split here and not by a library: Python's ``csv`` joins lines and drops cells silently
where a quote is missing, where a row has too many cells and where a name stands twice in the
header. Here a row that does not fit the header is yielded as ``Unreadable`` with its line, and
quotes that contradict each other are an error, since no one can know where the next row begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from actlas.pipeline.corpus.formats.base import (
    MAX_LINE_BYTES,
    NOT_UTF8,
    Raw,
    TextForm,
    Unreadable,
    Wanted,
    oversized,
    select,
)
from actlas.store.errors import CorpusError

MAX_HEADER_BYTES = 1 << 20
"""Largest header."""

_MORE = "a row with more cells than the header"

_FEWER = "a row with fewer cells than the header"


DELIMITERS = (b",", b";", b"\t", b"|")
"""The bytes between two cells that are looked for in a header."""

_SEP = re.compile(rb"\"?sep=([^\"\r\n])\"?[\r\n]*")
"""The first line of a table in which spreadsheets name the delimiter."""


def csv_rows(
    blocks: Iterable[bytes],
    path: Path,
    wanted: Wanted,
    delimiter: bytes = b",",
    form: TextForm | None = None,
) -> Iterator[tuple[int, Raw]]:
    """Yield the rows below the header, every value a string; blank lines are no rows.

    A header may have another delimiter than the suffix says. It is the one under which the header
    has more of the fields that are read; where several have as many, it is the suffix's own.

    Parameters
    ----------
    blocks : iterable of bytes
        The file's text.
    path : Path
        The file, for messages.
    wanted : callable
        Selects the columns.
    delimiter : bytes
        The byte between two cells that the suffix stands for.
    form : TextForm, optional
        The delimiter, where it is given; and which fields are read. Default: the delimiter is the
        suffix's.

    Raises
    ------
    CorpusError
        A quoted cell does not end, something follows its closing quote, or quotes inside cells
        contradict cells that span lines; a needed name stands twice in the header; the header or
        a cell is too large.
    """
    n_before = 0
    if form is not None:
        first, blocks = _first_line(blocks)
        if match := _SEP.fullmatch(first):
            n_before, blocks = 1, _without(len(first), blocks)
            delimiter = _note_found(form, path, delimiter, form.delimiter or match[1])
        else:
            chosen = form.delimiter or _found(first, path, delimiter, form)
            delimiter = _note_found(form, path, delimiter, chosen)
    rows = _Rows(blocks, path, delimiter, n_before)
    header = next(rows, None)
    if header is None:
        return
    names = [cell.decode(errors="backslashreplace") for cell in header]
    where = f"line {rows.line}"
    rows.n_cells = len(names)
    columns = select(wanted, names, names, path, where)
    places = [(name, names.index(name)) for name in columns]
    for index, row in enumerate(rows):
        n = len(row)
        if n != len(names):
            found = f"more than {len(names)}" if n > len(names) else str(n)
            place = f"line {rows.line}: {found} cells, the header has {len(names)}"
            yield index, Unreadable(_MORE if n > len(names) else _FEWER, place)
            continue
        try:
            yield index, {name: row[i].decode() for name, i in places}
        except UnicodeDecodeError:
            yield index, NOT_UTF8._replace(where=f"line {rows.line}")


def _first_line(blocks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first line that is not blank, with all line ends around it, and all blocks."""
    held, rest = b"", iter(blocks)
    for block in rest:
        held += block
        line = held.lstrip(b"\r\n")
        if len(held) > MAX_HEADER_BYTES or b"\n" in line or b"\r" in line[:-1]:
            break
    n_blank = len(held) - len(held.lstrip(b"\r\n"))
    ends = [at for end in (b"\n", b"\r") if (at := held.find(end, n_blank)) >= 0]
    stop = min(ends, default=len(held))
    stop += len(held[stop : stop + 2]) if held[stop : stop + 2] == b"\r\n" else min(1, len(ends))
    return held[:stop], chain((held,), rest)


def _without(n_bytes: int, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield blocks without the first bytes, which lie in the first block."""
    rest = iter(blocks)
    yield next(rest)[n_bytes:]
    yield from rest


def _found(line: bytes, path: Path, own: bytes, form: TextForm) -> bytes:
    """Return the delimiter of the table whose header begins with a line."""
    found = [
        (form.fits(names), len(names), each)
        for each in (own, *DELIMITERS)
        if (names := _names(line, path, each))
    ]
    most = max((n_fitting for n_fitting, *_ in found), default=0)
    if most:
        return next(each for n_fitting, _, each in found if n_fitting == most)
    # No field is there: the columns are for a message.
    return max(found, key=lambda pair: pair[1], default=(0, 0, own))[2]


def _names(line: bytes, path: Path, delimiter: bytes) -> list[str]:
    """Return the columns of a header under a delimiter; none if its quotes contradict that."""
    try:
        cells = next(_Rows((line,), path, delimiter), [])
    except CorpusError:
        return []
    return [cell.decode(errors="backslashreplace") for cell in cells]


def _note_found(form: TextForm, path: Path, own: bytes, delimiter: bytes) -> bytes:
    if delimiter != own:
        form.found[str(path)] = delimiter.decode(errors="replace")
    return delimiter


class _Rows:
    """The rows of a table as lists of cells; of too long a row only the first cells.

    Parameters
    ----------
    blocks : iterable of bytes
        The file's text.
    path : Path
        The file, for messages.
    delimiter : bytes
        The byte between two cells.
    n_before : int
        Lines of the file in front of these.

    Attributes
    ----------
    line : int
        The line in which the latest row begins, from 1.
    n_cells : int or None
        Cells of the header, once it was read.
    """

    def __init__(
        self, blocks: Iterable[bytes], path: Path, delimiter: bytes, n_before: int = 0
    ) -> None:
        self._path, self._delimiter = path, delimiter
        self._lines = physical_lines(blocks, path)
        self._n_lines = self.line = n_before
        self.n_cells: int | None = None
        self._stray: tuple[int, int] | None = None
        self._spanning: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[list[bytes]]:
        return self

    def __next__(self) -> list[bytes]:
        for line in self._lines:
            self._n_lines += 1
            self.line = self._n_lines
            body = line.rstrip(b"\r\n")
            if not body:
                continue
            if self.n_cells is None and len(line) > MAX_HEADER_BYTES:
                advice = "Expected a header with the names of the columns."
                raise oversized(self._path, "its header", len(line), MAX_HEADER_BYTES, advice)
            if b'"' not in body:
                # A line of delimiters alone would take eight times its size.
                most = -1 if self.n_cells is None else self.n_cells
                return body.split(self._delimiter, most)
            return self._quoted_row(line)
        raise StopIteration

    def _quoted_row(self, line: bytes) -> list[bytes]:
        cells: list[bytes] = []
        most = MAX_HEADER_BYTES if self.n_cells is None else self.n_cells + 1
        at = 0
        while True:
            body = line.rstrip(b"\r\n")
            if body[at : at + 1] == b'"':
                cell, line, at = self._quoted_cell(line, at)
                body = line.rstrip(b"\r\n")
            else:
                end = body.find(self._delimiter, at)
                end = len(body) if end < 0 else end
                if (quote := body.find(b'"', at, end)) >= 0:
                    self._note(stray=self._place(body, quote))
                cell, at = body[at:end], end
            if len(cells) < most:
                cells.append(cell)
            if at == len(body):
                return cells
            if body[at : at + 1] != self._delimiter:
                why = "something follows a closing quote"
                raise self._broken(why, *self._place(body, at))
            at += 1

    def _quoted_cell(self, line: bytes, at: int) -> tuple[bytes, bytes, int]:
        """Return a quoted cell, the line in which it ends, and the place behind its quote."""
        opened = self._place(line, at)
        parts: list[bytes] = []
        held, at = 0, at + 1
        while True:
            end = line.find(b'"', at)
            part = line[at:] if end < 0 else line[at:end]
            parts.append(part)
            held += len(part)
            if held > MAX_LINE_BYTES:
                raise self._broken(
                    f"a quoted cell is longer than {MAX_LINE_BYTES >> 20} MiB", *opened
                )
            if end < 0:
                following = next(self._lines, None)
                if following is None:
                    raise self._broken("a quoted cell does not end", *opened)
                self._note(spanning=opened)
                line, at = following, 0
                self._n_lines += 1
            elif line[end + 1 : end + 2] == b'"':
                parts.append(b'"')
                at = end + 2
            else:
                return b"".join(parts), line, end + 1

    def _note(
        self, stray: tuple[int, int] | None = None, spanning: tuple[int, int] | None = None
    ) -> None:
        """Refuse a table with quotes inside unquoted cells and with cells that span lines.

        Either alone is read as it stands. Together they are what a missing quote looks like: the
        cell that spans lines has swallowed rows up to the quote of another.
        """
        self._stray, self._spanning = self._stray or stray, spanning or self._spanning
        if self._stray and self._spanning:
            line, column = self._stray
            also = f"a quote stands inside an unquoted cell (line {line}, column {column})"
            raise self._broken(f"a quoted cell spans lines, and {also}", *self._spanning)

    def _place(self, line: bytes, at: int) -> tuple[int, int]:
        return self._n_lines, len(line[:at].decode(errors="replace")) + 1

    def _broken(self, what: str, line: int, column: int) -> CorpusError:
        return CorpusError(
            f"{self._path}, line {line}, column {column}: {what}, so it is not clear where the "
            "next row begins. Expected cells with a delimiter, quote or newline in quotes, and a "
            'quote inside them doubled (""): correct the file, or convert it to .jsonl.',
            path=str(self._path),
            line=line,
            column=column,
        )


def physical_lines(blocks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    r"""Yield lines with the ``\n``, ``\r\n`` or ``\r`` that ends them.

    Parameters
    ----------
    blocks : iterable of bytes
        The file's text.
    path : Path
        The file, for messages.

    Raises
    ------
    CorpusError
        A line is longer than ``MAX_LINE_BYTES``.
    """
    parts: list[bytes] = []
    held, carry = 0, b""
    for block in blocks:
        data = carry + block
        carry = b"\r" if data.endswith(b"\r") else b""  # perhaps the half of a \r\n
        for piece in data[: len(data) - len(carry)].splitlines(keepends=True):
            parts.append(piece)
            held += len(piece)
            if held > MAX_LINE_BYTES:
                advice = "Expected a table with one row per line."
                raise oversized(path, "a line", held, MAX_LINE_BYTES, advice)
            if piece.endswith((b"\n", b"\r")):
                yield b"".join(parts)
                parts, held = [], 0
    if carry or parts:
        yield b"".join((*parts, carry))
