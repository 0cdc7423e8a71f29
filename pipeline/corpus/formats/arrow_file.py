"""Arrow's own files (``.arrow``, ``.feather``), in the form of a file or of a stream.

Before the rows are read, the headers of all messages are: a stream that was cut between two
messages looks whole to Arrow's reader, and compressed buffers say their size only in themselves.
The headers are FlatBuffers (https://arrow.apache.org/docs/format/Columnar.html, ``Message.fbs``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from actlas.pipeline.corpus.formats.arrow_rows import field_paths, rows_of
from actlas.pipeline.corpus.formats.base import (
    Position,
    Raw,
    Wanted,
    damaged,
    oversized,
    select,
    unpacked_limit,
)
from actlas.store.display.text import counted

_MAGIC = b"ARROW1"

_DICTIONARY, _BATCH = 2, 3


class _Message(NamedTuple):
    """A message of a stream: its kind, its rows, its unpacked bytes, where the next begins."""

    kind: int
    n_rows: int
    n_unpacked: int
    stop: int


def arrow_rows(path: Path, wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield the rows of an Arrow file with the needed columns.

    Parameters
    ----------
    path : Path
        The file; it is mapped into memory.
    wanted : callable
        Selects the columns.
    position : Position
        Updated as the reading proceeds.

    Raises
    ------
    CorpusError
        The file is damaged, has no end, or a batch unpacks to more than is allowed; a needed
        column's name is that of several.
    """
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            n_rows = _check(file, path)
        index = 0
        for batch in _batches(path, wanted):
            for row in rows_of(batch):
                yield index, row
                index += 1
            position.fraction = index / n_rows if n_rows else 1.0
    except pa.ArrowException as error:
        raise damaged(path, str(error)) from error
    except OSError as error:  # Arrow's own has no number
        if error.errno is not None:
            raise
        raise damaged(path, str(error)) from error
    if index != n_rows:
        raise damaged(path, f"its messages state {counted(n_rows, 'row')}, and {index:,} were read")


def _batches(path: Path, wanted: Wanted) -> Iterator[Any]:
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as source:
        is_file = source.read(len(_MAGIC)) == _MAGIC
        source.seek(0)
        plain = ipc.open_file(source) if is_file else ipc.open_stream(source)
        schema = plain.schema
        try:
            names, paths = list(schema.names), field_paths(schema)
        except UnicodeDecodeError as error:
            raise damaged(path, f"the name of a column is not UTF-8: {error}") from error
        columns = select(wanted, names, paths, path, "its schema")
        places = [names.index(name) for name in columns]
        options = ipc.IpcReadOptions(included_fields=places or [0])
        source.seek(0)
        if is_file:
            reader = ipc.open_file(source, options=options)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(ipc.open_stream(source, options=options))
        for batch in batches:
            chosen = batch.select(columns)
            _validate(chosen, path)
            yield chosen


def _validate(batch: Any, path: Path) -> None:
    """Refuse a batch whose offsets or lengths contradict each other: reading it ends the process.

    Text that is not UTF-8 is left to the rows. Arrow looks at a text's offsets before its bytes.
    """
    import pyarrow as pa

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if not (is_text and "UTF8" in str(error)):
                raise damaged(path, f"column {name!r}: {error}") from error


def _check(file: BinaryIO, path: Path) -> int:
    """Return the rows that the messages of a file state, after a look at each message's header."""
    n_bytes = file.seek(0, 2)
    file.seek(0)
    at = 8 if file.read(len(_MAGIC)) == _MAGIC else 0
    n_rows = 0
    while True:
        message = _message(file, path, at, n_bytes)
        if message is None:
            return n_rows
        limit = unpacked_limit(message.stop - at)
        if message.n_unpacked > limit:
            advice = "Write it again with smaller batches, or as Parquet."
            raise oversized(path, "a batch", message.n_unpacked, limit, advice)
        n_rows += message.n_rows
        at = message.stop


def _message(file: BinaryIO, path: Path, at: int, n_bytes: int) -> _Message | None:
    """Return the message that begins at a byte; None for the mark of the end."""
    file.seek(at)
    head = file.read(8)
    prefix = 8 if head[:4] == b"\xff\xff\xff\xff" else 4  # before Arrow 0.15: the length alone
    if len(head) < prefix:
        raise damaged(path, "it ends without a mark of its end")
    (length,) = struct.unpack_from("<i", head, prefix - 4)
    if length == 0:
        return None
    if length < 0 or at + prefix + length > n_bytes:
        raise damaged(path, f"no message of Arrow's at byte {at:,}, or one cut short")
    file.seek(at + prefix)
    table = _Table(file.read(length))
    try:
        kind, body = table.number(1, "<B"), table.number(3, "<q")
        begin = at + prefix + length
        if body < 0 or begin + body > n_bytes:
            raise damaged(path, f"the message at byte {at:,} is cut short")
        n_rows = n_unpacked = 0
        if kind in (_DICTIONARY, _BATCH):
            batch = table.table(2)
            batch = batch.table(1) if kind == _DICTIONARY else batch
            n_rows = batch.number(0, "<q") if kind == _BATCH else 0
            n_unpacked = _unpacked(file, batch, begin)
    except (struct.error, IndexError) as error:
        raise damaged(path, f"no message of Arrow's at byte {at:,}") from error
    return _Message(kind, n_rows, n_unpacked, begin + body)


def _unpacked(file: BinaryIO, batch: _Table, begin: int) -> int:
    """Return the bytes that the compressed buffers of a batch unpack to."""
    if not batch.has(3):
        return 0
    total = 0
    for offset, length in batch.pairs(2):
        if length >= 8:
            file.seek(begin + offset)
            (n,) = struct.unpack("<q", file.read(8))
            total += max(n, 0)  # -1: stored as it is
    return total


class _Table:
    """A table of a FlatBuffer.

    Parameters
    ----------
    data : bytes
        The whole buffer.
    at : int or None
        Where the table begins; None for the root.
    """

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self._data = data
        self._at = struct.unpack_from("<I", data, 0)[0] if at is None else at

    def _place(self, field: int) -> int:
        """Return where a field's value lies; 0 where the table does not have it."""
        vtable = self._at - int(struct.unpack_from("<i", self._data, self._at)[0])
        (n_bytes,) = struct.unpack_from("<H", self._data, vtable)
        if 4 + 2 * field >= n_bytes:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, vtable + 4 + 2 * field)
        return self._at + int(offset) if offset else 0

    def has(self, field: int) -> bool:
        """Return whether the table has a field."""
        return bool(self._place(field))

    def number(self, field: int, form: str) -> int:
        """Return an integer; 0 is the default of all."""
        place = self._place(field)
        return int(struct.unpack_from(form, self._data, place)[0]) if place else 0

    def _target(self, field: int) -> int:
        place = self._place(field)
        if not place:
            raise IndexError(f"field {field} is missing")
        return place + int(struct.unpack_from("<I", self._data, place)[0])

    def table(self, field: int) -> _Table:
        """Return a table inside this one."""
        return _Table(self._data, self._target(field))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Yield a vector of pairs of integers."""
        at = self._target(field)
        (n,) = struct.unpack_from("<I", self._data, at)
        for i in range(n):
            first, second = struct.unpack_from("<qq", self._data, at + 4 + 16 * i)
            yield int(first), int(second)
