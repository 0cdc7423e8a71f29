"""Readers of record files: one line or row at a time, never a whole file in memory.

The suffix gives the format: ``.jsonl`` (also ``.jsonl.gz`` and ``.jsonl.zst``) has one JSON object
per line, ``.csv`` has a header, ``.parquet`` is read in batches of rows, and a ``.txt`` file is
**one** document. A record that cannot be decoded is yielded as :class:`Unreadable` and counted.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

from actlas.store.errors import ActlasError, CorpusError
from actlas.store.objects.faults import run_fault

BLOCK_BYTES = 1 << 18

MAX_DOCUMENT_BYTES = 64 << 20
"""Largest document: the tokenizer needs some hundred bytes of memory per token."""

MAX_LINE_BYTES = 4 * MAX_DOCUMENT_BYTES

_ZSTD_BYTES = 1 << 10
"""Compressed bytes decompressed at a time: four of them can expand to 128 KiB."""

_PARQUET_ROWS = 256

_BOM = b"\xef\xbb\xbf"


class Unreadable(NamedTuple):
    """A record that cannot be decoded, and the reason."""

    reason: str


Raw: TypeAlias = Mapping[str, Any] | str | Unreadable
"""A record of a file: named fields, or plain text."""

NOT_UTF8 = Unreadable("not UTF-8")

NOT_JSON = Unreadable("not JSON")

NOT_AN_OBJECT = Unreadable("JSON, but not an object with named fields")

TOO_LONG = Unreadable(f"longer than {MAX_DOCUMENT_BYTES >> 20} MiB")

Wanted: TypeAlias = Callable[[list[str]], list[str]]
"""A function from the columns of a table to those that are needed."""


@dataclass
class Position:
    """The share of a file that a reader has covered, from 0 to 1."""

    fraction: float = 0.0


Reader: TypeAlias = Callable[[Path, Wanted, Position], Iterator[tuple[int, Raw]]]


def read_records(
    path: Path, wanted: Wanted = list, position: Position | None = None
) -> Iterator[tuple[int, Raw]]:
    """Yield each record of a file with its index: the line, or the row below the header.

    Parameters
    ----------
    path : Path
        A file with one of the known suffixes.
    wanted : callable
        Selects the columns to read from a Parquet file.
    position : Position, optional
        Updated as the reading proceeds.

    Raises
    ------
    CorpusError
        The file does not exist, may not be read, or is damaged.
    RunFaultError
        The disk fails.
    """
    reader = READERS[cast("str", suffix_of(path))]
    try:
        yield from reader(path, wanted, position or Position())
    except (ActlasError, GeneratorExit):
        raise
    except (EOFError, zlib.error, csv.Error, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from error
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


def _damaged(path: Path, why: str) -> CorpusError:
    return CorpusError(f"{path}: damaged or truncated ({why}). Get the file again.", path=str(path))


def read_text(path: Path, _wanted: Wanted, _position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield a file's whole text, with its newlines unchanged."""
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        yield 0, TOO_LONG
        return
    try:
        yield 0, path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        yield 0, NOT_UTF8


def read_csv(path: Path, _wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield the rows of a table with a header, every value a string."""
    # The library limits a field to 128 KiB, for the whole process; documents are longer.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_DOCUMENT_BYTES))
    n_bytes = path.stat().st_size
    with path.open("rb") as raw:
        file = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        for index, row in enumerate(csv.DictReader(file)):
            values = "".join(value for value in row.values() if isinstance(value, str))
            position.fraction = raw.tell() / n_bytes
            yield index, NOT_UTF8 if _has_surrogates(values) else row


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def read_jsonl(path: Path, _wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield the object of every line that is not blank."""
    with path.open("rb") as file:
        yield from _json_lines(_blocks(file, file, position))


def read_jsonl_gz(path: Path, _wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield the object of every line of a gzip file."""
    with path.open("rb") as file, gzip.open(file) as plain:
        yield from _json_lines(_blocks(plain, file, position))


def read_jsonl_zst(path: Path, _wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield the object of every line of a Zstandard file, of one frame or several."""
    import zstandard

    try:
        with path.open("rb") as file:
            yield from _json_lines(_unzstd(_blocks(file, file, position), path))
    except zstandard.ZstdError as error:
        raise _damaged(path, str(error)) from error


def _unzstd(blocks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    import zstandard

    library = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        for at in range(0, len(block), _ZSTD_BYTES):
            data = block[at : at + _ZSTD_BYTES]
            while data:
                frame = frame or library.decompressobj(write_size=BLOCK_BYTES)
                parts.append(frame.decompress(data))
                held += len(parts[-1])
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
                if held >= BLOCK_BYTES:
                    yield b"".join(parts)
                    parts, held = [], 0
    yield b"".join(parts)
    if frame is not None:  # The library's reader accepts truncated files.
        raise _damaged(path, "its last frame has no end")


def _blocks(plain: BinaryIO | gzip.GzipFile, file: BinaryIO, position: Position) -> Iterator[bytes]:
    n_bytes = os.fstat(file.fileno()).st_size
    while block := plain.read(BLOCK_BYTES):
        position.fraction = file.tell() / n_bytes
        yield block


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their newline; one line and one block are in memory.

    A line longer than any record is cut: a small compressed file can hold a line that no memory
    can.
    """
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        if held <= MAX_LINE_BYTES:
            parts.append(first)
            held += len(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts, held = [others[-1]], len(others[-1])
    if any(parts):
        yield b"".join(parts)


def _json_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, Raw]]:
    for index, line in enumerate(_lines(blocks)):
        body = line.removeprefix(_BOM) if index == 0 else line
        if not body.strip():
            continue
        yield index, TOO_LONG if len(body) > MAX_LINE_BYTES else parse_json(body)


def parse_json(line: bytes) -> Raw:
    """Return the object in a line, or the reason why the line holds none."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError):
        return NOT_JSON
    return value if isinstance(value, dict) else NOT_AN_OBJECT


def read_parquet(path: Path, wanted: Wanted, position: Position) -> Iterator[tuple[int, Raw]]:
    """Yield the rows of a Parquet file, reading only the needed columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK_BYTES) as file:
            columns = wanted(list(file.schema_arrow.names))
            index = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
                for row in _rows(batch):
                    yield index, row
                    index += 1
                position.fraction = index / file.metadata.num_rows
    except pa.ArrowException as error:
        raise _damaged(path, str(error)) from error


def _rows(batch: Any) -> Iterator[Raw]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield NOT_UTF8


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl_gz,
    ".jsonl.zst": read_jsonl_zst,
    ".parquet": read_parquet,
    ".txt": read_text,
    ".csv": read_csv,
}
"""The reader of each suffix."""


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file below a folder, in no order, without hidden files and folders.

    Links to folders are followed, since subsets of a data set are often made of links; a folder
    that is reached twice, as through a link to a folder above it, is read once.
    """
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(root, followlinks=True):
        state = Path(where).stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(where, name)
            if not name.startswith(".") and file.is_file():
                yield file
