"""How much memory the pages of a Parquet file unpack to, read from their headers before they are.

Arrow decodes a batch of rows whole: 256 rows that all name one dictionary value of 10 MB take
2.6 GB, from a file of 7 kB, and so does one row with a list that names it as often. A column of
which that may be true is read as indices into its dictionary, which is in memory once. The headers
are Thrift in its compact protocol (https://github.com/apache/parquet-format, ``PageHeader``), of
which three integers are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from actlas.pipeline.corpus.formats.base import (
    MAX_UNPACKED_BYTES,
    damaged,
    oversized,
    unpacked_limit,
)

BATCH_ROWS = 256
"""Most rows that are decoded at once."""

_BATCH_BYTES = 64 << 20
"""Bytes that the rows decoded at once may take, where one row does not take more."""

_HEADER_BYTES = 1 << 16
"""Bytes read for a page's header; one with long statistics is read again, larger."""

_REPEATED_BYTES = 8
"""Bytes per value of a list, with its levels."""

_DICTIONARY_PAGE = 2

_ADVICE = "Write it again with smaller pages and row groups, or as .jsonl."


class Batches(NamedTuple):
    """How a row group is decoded.

    Attributes
    ----------
    n_rows : int
        Rows to decode at once.
    shared : tuple of str
        The paths of the columns to read as indices into their dictionaries.
    """

    n_rows: int
    shared: tuple[str, ...]


class Page(NamedTuple):
    """A page's header.

    Attributes
    ----------
    kind : int
        The type of the page; 2 is a dictionary.
    n_unpacked, n_packed : int
        Bytes of the page after and before decompression.
    n_header : int
        Bytes of the header.
    """

    kind: int
    n_unpacked: int
    n_packed: int
    n_header: int


def batches(file: BinaryIO, path: Path, group: Any, columns: list[str]) -> Batches:
    """Return how a row group is decoded within the memory that is allowed.

    Parameters
    ----------
    file : file
        The Parquet file.
    path : Path
        Its path, for messages.
    group : pyarrow.parquet.RowGroupMetaData
        The row group.
    columns : list of str
        The columns that will be read.

    Raises
    ------
    CorpusError
        A page or a row may need more memory than is allowed, or a page's header is damaged.
    """
    total, shared = 0, []
    for i in range(group.num_columns):
        chunk = group.column(i)
        head = chunk.path_in_schema
        if any(head == name or head.startswith(name + ".") for name in columns):
            row_bytes, by_index = _row_bytes(file, path, chunk, group.num_rows)
            total += row_bytes
            shared += [head] if by_index else []
    return Batches(max(1, min(BATCH_ROWS, _BATCH_BYTES // max(total, 1))), tuple(shared))


def _row_bytes(file: BinaryIO, path: Path, chunk: Any, n_rows: int) -> tuple[int, bool]:
    """Return a bound of the bytes of one row in a chunk of a column, and whether to share values.

    Values are shared, that is read as indices, if those of one batch may take more than a batch
    should, whatever their distribution over the rows.
    """
    column = f"column {chunk.path_in_schema!r}"
    plain = dictionary = 0
    for page in pages(file, path, chunk):
        limit = unpacked_limit(page.n_packed)
        if page.n_unpacked > limit:
            raise oversized(path, f"a page of {column}", page.n_unpacked, limit, _ADVICE)
        if page.kind == _DICTIONARY_PAGE:
            dictionary = page.n_unpacked
        else:
            plain = max(plain, page.n_unpacked)
    if "DELTA_BYTE_ARRAY" in chunk.encodings:  # a value repeats that before, and is copied often
        dictionary = max(dictionary, 8 * chunk.total_uncompressed_size)
        can_share = False
    else:
        can_share = chunk.physical_type == "BYTE_ARRAY" and dictionary > 0
    per_row = -(-chunk.num_values // max(n_rows, 1))
    most = chunk.num_values if per_row > 1 else min(BATCH_ROWS, chunk.num_values)
    shared = can_share and dictionary * most > _BATCH_BYTES
    if shared:
        dictionary = 0  # in memory once, whatever the number of rows
    if per_row > 1:
        values = chunk.num_values * _REPEATED_BYTES
        if chunk.physical_type == "BYTE_ARRAY":
            values = max(values, dictionary * per_row)
        if values > MAX_UNPACKED_BYTES:
            what = f"a row group's lists in {column}"
            raise oversized(path, what, values, MAX_UNPACKED_BYTES, _ADVICE)
        plain = max(plain, values)
    return max(plain, dictionary), shared


def pages(file: BinaryIO, path: Path, chunk: Any) -> Iterator[Page]:
    """Yield the headers of a column chunk's pages.

    Parameters
    ----------
    file : file
        The Parquet file.
    path : Path
        Its path, for messages.
    chunk : pyarrow.parquet.ColumnChunkMetaData
        The chunk.

    Raises
    ------
    CorpusError
        A header is none.
    """
    begins = (chunk.dictionary_page_offset, chunk.data_page_offset)
    at = min(offset for offset in begins if offset)
    stop = at + chunk.total_compressed_size
    while at < stop:
        page = _page_at(file, path, at, stop)
        yield page
        at += page.n_header + page.n_packed


def _page_at(file: BinaryIO, path: Path, at: int, stop: int) -> Page:
    n_bytes = _HEADER_BYTES
    while True:
        file.seek(at)
        head = file.read(min(n_bytes, stop - at))
        try:
            page = _parse(head)
        except IndexError as error:
            if len(head) < stop - at and n_bytes < MAX_UNPACKED_BYTES:
                n_bytes *= 16
                continue
            raise damaged(path, f"no page's header at byte {at:,}") from error
        except ValueError as error:
            raise damaged(path, f"no page's header at byte {at:,}") from error
        if page.n_packed < 0 or page.n_unpacked < 0:
            raise damaged(path, f"a page of negative size at byte {at:,}")
        return page


def _parse(data: bytes) -> Page:
    found: dict[int, int] = {}
    at, field = 0, 0
    while True:
        byte = data[at]
        if byte == 0:
            break
        field, at = _field(data, at, field)
        if byte & 15 == 5:
            number, at = _varint(data, at)
            found[field] = (number >> 1) ^ -(number & 1)
        else:
            at = _skip(data, at, byte & 15)
    if not {1, 2, 3} <= found.keys():
        raise ValueError("no header of a page")
    return Page(found[1], found[2], found[3], at + 1)


def _field(data: bytes, at: int, before: int) -> tuple[int, int]:
    """Return a field's number, and where its value begins."""
    delta = data[at] >> 4
    if delta:
        return before + delta, at + 1
    number, at = _varint(data, at + 1)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("an integer of more than ten bytes")


def _skip(data: bytes, at: int, kind: int, depth: int = 0) -> int:
    """Return where a value of a compact type ends."""
    if depth > 8:
        raise ValueError("nested too deeply for a page's header")
    if kind in (1, 2):  # a boolean, in the field's own byte
        return at
    if kind == 3:
        return at + 1
    if kind in (4, 5, 6):
        return _varint(data, at)[1]
    if kind == 7:
        return at + 8
    if kind == 8:
        n, at = _varint(data, at)
        if at + n > len(data):
            raise IndexError("the string goes on")
        return at + n
    if kind == 12:
        field = 0
        while data[at]:
            inner = data[at] & 15
            field, at = _field(data, at, field)
            at = _skip(data, at, inner, depth + 1)
        return at + 1
    raise ValueError(f"a value of type {kind} in a page's header")
