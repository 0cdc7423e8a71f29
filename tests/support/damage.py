"""Which rows a file of a store holds, and of what kind it is: by the format page alone."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

_KINDS = (
    ("plan", r"ledger/plan\.json"),
    ("copy of the plan", r"ledger/plan\.copy\.json"),
    ("receipts", r"ledger/(receipts|repairs)/(extract|pooled)/.*"),
    ("receipts of codes", r"ledger/receipts/encode\..*"),
    ("other receipts of derived data", r"ledger/receipts/.*"),
    ("description of features", r"ledger/features(\.copies)?/.*"),
    ("metadata of derived data", r"(features|extremes)(/.*)?/zarr\.json"),
    ("metadata", r"(.*/)?zarr\.json"),
    ("documents", r"documents/.*"),
    ("rows", r"rows/.*"),
    ("activations", r"activations/.*"),
    ("statistics", r"statistics/.*"),
    ("pooled rows", r"pooled/.*"),
    ("codes by token", r"features/.*/tokens/.*"),
    ("codes by feature", r"features/.*/index/.*"),
    ("tables of features", r"features/.*"),
    ("extremes", r"extremes/.*"),
)
KINDS = tuple(kind for kind, _ in _KINDS)
HOLDS_ROWS = ("rows", "activations", "statistics", "pooled rows")
"""Kinds whose files are a shard's arrays."""
READ = (*HOLDS_ROWS, "documents", "codes by token", "codes by feature", "tables of features")
"""Kinds whose files are read as arrays; the others describe or prove them."""
OUTSIDE = (
    *("ledger/lease/", "ledger/logs/", "ledger/quarantine/", "ledger/staging/"),
    "ledger/repairing/",
)


def kind_of(key: str) -> str:
    """Return the kind of file that a key is of."""
    return next(kind for kind, pattern in _KINDS if re.fullmatch(pattern, key))


def by_kind(keys: list[str]) -> dict[str, list[str]]:
    """Return a store's keys by kind; every kind must be there."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for key in sorted(keys):
        if not key.startswith(OUTSIDE):
            found[kind_of(key)].append(key)
    empty = [kind for kind, of_it in found.items() if not of_it]
    assert not empty, f"a store without {empty}"
    return found


class Span(NamedTuple):
    """Rows [start, stop), of tokens or of documents."""

    start: int
    stop: int
    of: str


def rows_of(files: Mapping[str, bytes], key: str, offset: int | None = None) -> Span | None:
    """Return the rows that a file holds, or that its byte at an offset belongs to.

    A byte of an inner chunk belongs to the chunk's rows, one of the shard's index to all of it.
    None for a file that holds none.
    """
    plan = json.loads(files["ledger/plan.json"])["record"]["plan"]
    match = re.fullmatch(r"(rows|activations|statistics|pooled)/(.*)/c/(\d+)[/0]*", key)
    if match is None:
        receipt = re.fullmatch(r"ledger/receipts/(extract|pooled|encode\.\w+)/(\d{8})\.json", key)
        codes = re.match(r"features/\w+/tokens/(\d{8})-", key)
        if receipt is None and codes is None:
            return None
        if receipt is not None and receipt[1] == "pooled":
            return _span(plan, int(receipt[2]), _documents_of_a_shard(files))
        return _span(plan, int(receipt[2] if receipt is not None else codes[1]))  # type: ignore[index]
    pooled = match[1] == "pooled"
    whole = _span(plan, int(match[3]), _documents_of_a_shard(files) if pooled else None)
    if match[1] == "statistics" or offset is None:
        return whole
    chunk = _chunk_at(files, f"{match[1]}/{match[2]}", files[key], offset)
    if chunk is None:
        return whole
    first = whole.start + chunk[0]
    return Span(first, min(first + chunk[1], whole.stop), whole.of)


def _documents_of_a_shard(files: Mapping[str, bytes]) -> int:
    key = next(k for k in files if re.fullmatch(r"pooled/.*/(mean|last|sum)/zarr\.json", k))
    shape: list[int] = json.loads(files[key])["chunk_grid"]["configuration"]["chunk_shape"]
    return shape[0]


def _span(plan: dict[str, Any], shard: int, documents: int | None = None) -> Span:
    size = documents or plan["shard_rows"]
    n = plan["n_documents"] if documents else plan["n_tokens"]
    of = "documents" if documents else "rows"
    return Span(shard * size, min((shard + 1) * size, n), of)


def _chunk_at(
    files: Mapping[str, bytes], array: str, data: bytes, offset: int
) -> tuple[int, int] | None:
    """Return the first row of the chunk at an offset, and a chunk's rows; None in the index."""
    metadata = json.loads(files[f"{array}/zarr.json"])
    shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    chunk_rows = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    n_chunks = shard_rows // chunk_rows
    index = struct.unpack(f"<{2 * n_chunks}Q", data[-16 * n_chunks - 4 : -4])
    for chunk in range(n_chunks):
        start, n_bytes = index[2 * chunk : 2 * chunk + 2]
        if start <= offset < start + n_bytes:
            return chunk * chunk_rows, chunk_rows
    return None


def flipped(data: bytes, rng: random.Random) -> tuple[bytes, int]:
    """Return the bytes with one bit flipped, and where."""
    offset = rng.randrange(len(data))
    bad = bytearray(data)
    bad[offset] ^= 1 << rng.randrange(8)
    return bytes(bad), offset
