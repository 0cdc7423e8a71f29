"""Compressed files: every frame, to its end. The compressors are the oracle."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from actlas.pipeline.corpus.corpus import open_corpus
from actlas.pipeline.corpus.formats import base
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import CorpusError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}

TEXTS = [f"text {i} é🎉" * (1 + 37 * i) for i in range(60)]

HALVES = [
    b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    for texts in (TEXTS[:20], TEXTS[20:])
]


def texts_of(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    corpus: Any = open_corpus(PlanOptions(model="-", corpus=str(path)))
    return [record.text for record in corpus.records()]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_frame_is_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c4-train.00000-of-01024.JSON{suffix}"
    first, second = map(COMPRESS[suffix], HALVES)
    assert texts_of(path, first + second) == TEXTS
    for cut in (1, len(second) // 2, len(second) - 1):
        with pytest.raises(CorpusError, match="damaged or truncated"):
            texts_of(path, (first + second)[:-cut])
    for bad in (first + b"no frame", first + b"x" + second, b"", b"text"):
        with pytest.raises(CorpusError, match="damaged or truncated"):
            texts_of(path, bad)
    hurt = bytearray(first + second)
    hurt[len(first) + len(second) // 2] ^= 4
    if suffix != ".zst":  # whose frames have a checksum only where asked for
        with pytest.raises(CorpusError, match="damaged or truncated"):
            texts_of(path, bytes(hurt))


def test_padding_and_skippable_frames(tmp_path: Path) -> None:
    first, second = map(gzip.compress, HALVES)
    assert texts_of(tmp_path / "a.jsonl.gz", first + bytes(512) + second + bytes(3)) == TEXTS
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    first, second = map(COMPRESS[".zst"], HALVES)
    assert texts_of(tmp_path / "a.jsonl.zst", skippable + first + skippable + second) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_that_is_compressed(tmp_path: Path, suffix: str) -> None:
    data = "one\r\n\ntwo é".encode()
    assert texts_of(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](data)) == ["one\r\n\ntwo é"]


def test_a_window_that_a_small_file_cannot_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_UNPACKED_BYTES", 1 << 20)
    options = zstandard.ZstdCompressionParameters.from_level(1, window_log=24)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()
    data = stream.compress(HALVES[0]) + stream.flush()
    with pytest.raises(CorpusError, match="memory"):
        texts_of(tmp_path / "a.jsonl.zst", data)
    data = lzma.compress(HALVES[0], preset=9)
    with pytest.raises(CorpusError, match=r"[Mm]emory"):
        texts_of(tmp_path / "a.jsonl.xz", data)
