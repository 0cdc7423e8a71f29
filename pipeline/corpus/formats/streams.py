"""From a file to UTF-8 bytes in blocks: decompression in bounded memory, byte-order marks, lines.

Every frame of a compressed file must end, and nothing but zeros may follow the last: the standard
library's ``BZ2File`` and ``LZMAFile`` end silently at the first frame that is not intact.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from actlas.pipeline.corpus.formats.base import (
    BLOCK_BYTES,
    MAX_LINE_BYTES,
    TOO_LONG,
    Position,
    Unreadable,
    damaged,
    unpacked_limit,
)

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_COMPRESSED_BYTES = 1 << 13
"""Compressed bytes read at a time: few, so that the position is that of the records."""

_ZSTD_BYTES = 1 << 10
"""Compressed bytes decompressed at a time: four of them can expand to 128 KiB."""

_ENCODINGS = {
    codecs.BOM_UTF8: "",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class _Frame(Protocol):
    """One frame of a compressed file."""

    ended: bool
    rest: bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what compressed bytes expand to, one block at most at a time."""


class _Inflated:
    """A frame of gzip, bzip2 or xz, by the standard library."""

    def __init__(self, decompressor: Any) -> None:
        self._decompressor, self.ended, self.rest = decompressor, False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what compressed bytes expand to, one block at most at a time."""
        while not self.ended:
            block = self._decompressor.decompress(data, BLOCK_BYTES)
            # zlib hands back the bytes that it did not use; the others keep them.
            data = getattr(self._decompressor, "unconsumed_tail", b"")
            self.ended, self.rest = self._decompressor.eof, self._decompressor.unused_data
            if block:
                yield block
            elif not data:
                return


class _Zstandard:
    """A frame of Zstandard."""

    def __init__(self, max_window: int) -> None:
        import zstandard

        library = zstandard.ZstdDecompressor(max_window_size=max_window)
        self._frame = library.decompressobj(write_size=BLOCK_BYTES)
        self._error = zstandard.ZstdError
        self.ended, self.rest = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what compressed bytes expand to, 32 MiB at most at a time.

        Raises
        ------
        EOFError
            The bytes are no Zstandard, or need a larger window.
        """
        for at in range(0, len(data), _ZSTD_BYTES):
            piece = data[at : at + _ZSTD_BYTES]
            try:
                block = self._frame.decompress(piece)
            except self._error as error:
                raise EOFError(str(error)) from error
            if block:
                yield block
            if self._frame.eof:
                self.ended, self.rest = True, self._frame.unused_data + data[at + len(piece) :]
                return


def _new_frame(compression: str, n_bytes: int) -> _Frame:
    """Return a decompressor for one frame of a file of ``n_bytes``."""
    limit = min(1 << 31, unpacked_limit(n_bytes))
    if compression == ".gz":
        return _Inflated(zlib.decompressobj(wbits=16 + zlib.MAX_WBITS))
    if compression == ".bz2":
        return _Inflated(bz2.BZ2Decompressor())
    if compression == ".xz":
        return _Inflated(lzma.LZMADecompressor(memlimit=limit))
    return _Zstandard(limit)


def open_blocks(path: Path, compression: str, position: Position) -> Iterator[bytes]:
    """Yield a file's text as UTF-8, in blocks, without a byte-order mark.

    Parameters
    ----------
    path : Path
        The file. One that begins with a byte-order mark of UTF-16 or UTF-32 is converted.
    compression : str
        ``.gz``, ``.bz2``, ``.xz``, ``.zst``; empty for none.
    position : Position
        Updated as the reading proceeds.

    Raises
    ------
    CorpusError
        The file is damaged or truncated, or not in the encoding that its mark says.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        blocks = _raw_blocks(file, position, _COMPRESSED_BYTES if compression else BLOCK_BYTES)
        if compression:
            blocks = _decompressed(blocks, compression, path)
        yield from _utf8(blocks, path)


def _raw_blocks(file: BinaryIO, position: Position, block_bytes: int) -> Iterator[bytes]:
    n_bytes = os.fstat(file.fileno()).st_size
    while block := file.read(block_bytes):
        position.fraction = min(1.0, file.tell() / max(n_bytes, 1))
        yield block


def _decompressed(blocks: Iterable[bytes], compression: str, path: Path) -> Iterator[bytes]:
    frame: _Frame | None = None
    n_frames = 0
    for block in blocks:
        data = block
        while data:
            if frame is None:
                data = data.lstrip(b"\0") if n_frames else data  # padding between frames
                if not data:
                    break
                frame = _new_frame(compression, path.stat().st_size)
            yield from _fed(frame, data, path)
            data = frame.rest if frame.ended else b""
            if frame.ended:
                frame, n_frames = None, n_frames + 1
    if frame is not None or not n_frames:
        what = "its last frame has no end" if frame else "it has not one byte"
        raise damaged(path, what)


def _fed(frame: _Frame, data: bytes, path: Path) -> Iterator[bytes]:
    try:
        yield from frame.feed(data)
    except (zlib.error, lzma.LZMAError, EOFError, OSError) as error:  # bz2 raises an OSError
        raise damaged(path, str(error)) from error


def _utf8(blocks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= 4:
            break
    mark = next((mark for mark in _ENCODINGS if head.startswith(mark)), b"")
    body = chain((head[len(mark) :],), blocks)
    encoding = _ENCODINGS.get(mark, "")
    if not encoding:
        yield from filter(None, body)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in body:
            yield decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        why = f"it begins with a mark of {encoding.upper()}, and is not: {error.reason}"  # type: ignore[attr-defined]
        raise damaged(path, why) from error


def lines(blocks: Iterable[bytes]) -> Iterator[bytes | Unreadable]:
    """Yield lines without their newline; one line and one block are in memory.

    A line of more than ``MAX_LINE_BYTES`` is yielded as ``TOO_LONG``.
    """
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        held += len(first)
        parts.append(first)
        if held > MAX_LINE_BYTES:
            parts.clear()
        if others:
            yield b"".join(parts) if held <= MAX_LINE_BYTES else TOO_LONG
            yield from others[:-1]
            parts, held = [others[-1]], len(others[-1])
    if held > MAX_LINE_BYTES:
        yield TOO_LONG
    elif any(parts):
        yield b"".join(parts)
