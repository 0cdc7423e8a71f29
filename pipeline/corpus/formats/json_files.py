"""JSON: an object per line, one array of objects, or objects one behind the other.

Python's limits are not the format's: an integer of any length is read, a number that a record does
not need spoils nothing, and a name that an object has twice is not resolved silently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from actlas.pipeline.corpus.formats.base import (
    MAX_LINE_BYTES,
    NOT_AN_OBJECT,
    NOT_JSON,
    NOT_UTF8,
    TOO_DEEP,
    TOO_LONG,
    Raw,
    Unreadable,
    damaged,
)
from actlas.pipeline.corpus.formats.streams import lines
from actlas.store.errors import CorpusError

MAX_MARKS_BYTES = 16 << 20
"""Most bytes outside of strings: two of them can become an object of 64 bytes."""

_TOO_MANY = Unreadable(f"JSON with more than {MAX_MARKS_BYTES >> 20} MiB outside of its strings")

_REPEATED = Unreadable("a field that is needed occurs several times in an object")

_INT_DIGITS = 640
"""Digits of an integer that any Python converts; longer ones become decimals."""

_BOM = b"\xef\xbb\xbf"

_WHOLE_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

_NO_MARK = re.compile(rb'[^"{}\[\],]*+')

_QUOTE, _OPEN, _CLOSE = ord('"'), b"[{", b"]}"


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _INT_DIGITS else Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, value in pairs:
            if fields[name] is not _REPEATED and value != fields[name]:
                fields[name] = _REPEATED
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def parse_json(line: bytes) -> Raw:
    """Return the object in some bytes, or the reason why they hold none.

    A field that the object has several times, with different values, has an ``Unreadable`` as its
    value. An integer of very many digits is a ``Decimal``.

    Parameters
    ----------
    line : bytes
        JSON in UTF-8, perhaps behind a byte-order mark.
    """
    if len(line) > MAX_MARKS_BYTES and len(_WHOLE_STRING.sub(b"", line)) > MAX_MARKS_BYTES:
        return _TOO_MANY
    try:
        value = _DECODER.decode(line.removeprefix(_BOM).decode())
    except UnicodeDecodeError:
        return NOT_UTF8
    except RecursionError:
        return _shallow(line.removeprefix(_BOM))
    except ValueError:
        return NOT_JSON
    return value if isinstance(value, dict) else NOT_AN_OBJECT


def _shallow(line: bytes) -> Raw:
    """Return an object whose nesting no parser on Python's stack can follow.

    Its members are parsed one by one; the value of one that is too deep is ``TOO_DEEP``.
    """
    members = _members(line.strip())
    if members is None:
        return NOT_JSON
    pairs: list[tuple[str, Any]] = []
    for member in members:
        try:
            pairs += _DECODER.decode(f"{{{member.decode()}}}").items()
        except RecursionError:
            name = _WHOLE_STRING.match(member.lstrip())
            if name is None:
                return NOT_JSON
            pairs.append((json.loads(name[0]), TOO_DEEP))
        except ValueError:
            return NOT_JSON
    return _object(pairs)


def _members(line: bytes) -> list[bytes] | None:
    """Return the members of an object, uncut at deeper levels; None if its brackets do not fit."""
    members: list[bytes] = []
    opened = bytearray()
    at = begin = 1
    while at < len(line) and line[:1] == b"{":
        at = _NO_MARK.match(line, at).end()  # type: ignore[union-attr]
        mark = line[at : at + 1]
        if mark == b'"':
            string = _WHOLE_STRING.match(line, at)
            if string is None:
                return None
            at = string.end()
            continue
        at += 1
        if mark in (b"{", b"["):
            opened += b"}" if mark == b"{" else b"]"
        elif mark == b"," and not opened:
            members.append(line[begin : at - 1])
            begin = at
        elif mark == b"}" and not opened:
            members.append(line[begin : at - 1])
            return members if at == len(line) else None
        elif mark in (b"}", b"]") and bytes((opened.pop() if opened else 0,)) != mark:
            return None
    return None


def json_lines(blocks: Iterable[bytes], _path: Path | None = None) -> Iterator[tuple[int, Raw]]:
    """Yield the object of every line that is not blank, with the line's index.

    Parameters
    ----------
    blocks : iterable of bytes
        The file's text.
    """
    for index, line in enumerate(lines(blocks)):
        if isinstance(line, Unreadable):
            yield index, line
        elif line.strip():
            yield index, parse_json(line)


def json_values(blocks: Iterator[bytes], path: Path) -> Iterator[tuple[int, Raw]]:
    """Yield the objects of a ``.json``: of an array, of lines, or printed over several lines.

    Parameters
    ----------
    blocks : iterator of bytes
        The file's text.
    path : Path
        The file, for messages.

    Raises
    ------
    CorpusError
        The file ends within a value, a string does not end in its line, or something follows the
        array: where the next record begins is then not known.
    """
    head = _head(blocks)
    whole = chain((head,), blocks)
    begin = head.lstrip()[:1]
    if begin == b"[":
        yield from enumerate(_Split(path, array=True).values(whole))
    elif begin == b"{" and not _has_line(head):
        yield from enumerate(_Split(path, array=False).values(whole))
    else:
        yield from json_lines(whole)


def _head(blocks: Iterator[bytes]) -> bytes:
    """Return the beginning of a file: two lines that are not blank, or what may be held."""
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        parts.append(block)
        held += len(block)
        if held > MAX_LINE_BYTES or (b"\n" in block and len(_first(b"".join(parts))) == 2):
            break
    return b"".join(parts)


def _first(head: bytes) -> list[bytes]:
    """Return the first two complete lines that are not blank."""
    complete = (line for line in head.split(b"\n")[:-1] if line.strip())
    return [line for line, _ in zip(complete, range(2), strict=False)]


def _has_line(head: bytes) -> bool:
    """Return whether one of the first two lines is a complete object."""
    found = _first(head) or [head]
    return any(parse_json(line) is not NOT_JSON for line in found if line.lstrip()[:1] == b"{")


class _Split:
    """Cuts JSON into the values of one array, or into objects one behind the other.

    Parameters
    ----------
    path : Path
        The file, for messages.
    array : bool
        Whether the values are those of one array.
    """

    def __init__(self, path: Path, *, array: bool) -> None:
        self._path, self._array = path, array
        self._depth = 0
        self._in_string = self._escaped = self._ended = False
        self._parts: list[bytes] = []
        self._held = self._n_values = 0
        self._line, self._column = 1, 1  # where the block begins
        self._begun = 1  # the line in which the value before ended

    def values(self, blocks: Iterable[bytes]) -> Iterator[Raw]:
        """Yield each value as it ends."""
        for block in blocks:
            yield from self._block(block)
            n_lines = block.count(b"\n")
            self._line += n_lines
            last = len(block) - 1 - block.rfind(b"\n")
            self._column = last + 1 if n_lines else self._column + last
        left = b"".join(self._parts)
        if self._depth or self._in_string:
            blank = left[: len(left) - len(left.lstrip())]
            line = self._begun + blank.count(b"\n")
            raise damaged(self._path, f"it ends within the value that begins in line {line}")
        if left.strip():
            yield NOT_JSON

    def _block(self, block: bytes) -> Iterator[Raw]:
        at = begin = 0
        while at < len(block):
            if self._in_string:
                at = self._string(block, at)
                continue
            at = _NO_MARK.match(block, at).end()  # type: ignore[union-attr]
            if at == len(block):
                break
            mark, at = block[at], at + 1
            ends = self._mark(mark, block, at)
            if ends is not None:
                self._keep(block[begin : at - 1 if self._array else at])
                begin = at
                yield from self._value(last=ends)
                self._begun = self._line + block.count(b"\n", 0, at)
            elif self._opens_array(mark, block[begin : at - 1]):
                self._parts, begin = [], at
        self._keep(block[begin:])
        if self._ended and b"".join(self._parts).strip():
            raise self._broken("something follows the end of the array", block, len(block))

    def _opens_array(self, mark: int, before: bytes) -> bool:
        """Return whether a mark is the bracket that opens the array."""
        if not self._array or self._depth != 1 or mark != _OPEN[0] or self._n_values:
            return False
        return not b"".join((*self._parts, before)).strip()

    def _string(self, block: bytes, at: int) -> int:
        """Advance to the end of a string, or of the block."""
        if self._escaped:
            self._escaped = False
            return at + 1
        end = _IN_STRING.match(block, at).end()  # type: ignore[union-attr]
        if (newline := block.find(b"\n", at, end)) >= 0:
            raise self._broken("a string does not end in its line", block, newline)
        if end < len(block):
            self._in_string = block[end] != _QUOTE
            self._escaped = self._in_string  # a backslash as the last byte of the block
            return end + 1
        return end

    def _mark(self, mark: int, block: bytes, at: int) -> bool | None:
        """Take a mark outside of strings; return False and True if a value and if all end here."""
        if self._ended:
            raise self._broken("something follows the end of the array", block, at - 1)
        if mark == _QUOTE:
            self._in_string = True
        elif mark in _OPEN:
            self._depth += 1
        elif mark in _CLOSE:
            if not self._depth:
                raise self._broken("a bracket closes that none opened", block, at - 1)
            self._depth -= 1
            if not self._depth:
                self._ended = self._array
                return self._array
        elif self._array and self._depth == 1:
            return False
        return None

    def _keep(self, part: bytes) -> None:
        self._held += len(part)
        if self._held <= MAX_LINE_BYTES:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _value(self, *, last: bool) -> Iterator[Raw]:
        value = b"".join(self._parts)
        too_long, self._held = self._held > MAX_LINE_BYTES, 0
        self._parts.clear()
        if last and not self._n_values and not too_long and not value.strip():
            return  # an empty array
        self._n_values += 1
        yield TOO_LONG if too_long else parse_json(value)

    def _broken(self, what: str, block: bytes, at: int) -> CorpusError:
        line = self._line + block.count(b"\n", 0, at)
        newline = block.rfind(b"\n", 0, at)
        column = at - newline if newline >= 0 else self._column + at
        return CorpusError(
            f"{self._path}, line {line}, column {column}: {what}, so it is not clear where the "
            "next record begins. Correct the file, or write one object per line as .jsonl.",
            path=str(self._path),
            line=line,
            column=column,
        )
