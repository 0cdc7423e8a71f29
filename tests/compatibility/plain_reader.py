"""A reader of stores written from ``docs/store-format.md`` alone: numpy, and nothing of actlas.

The fixture's oracle is made with it, and the tests compare stores with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

OUTSIDE = ("lease", "logs", "staging", "quarantine", "repairing")
"""Folders of the ledger that belong to a run and are under no checksum."""
_ABSENT = 2**64 - 1


def array(folder: Path) -> NDArray[Any]:
    """Decode an array and compare every checksum in its files."""
    about = json.loads((folder / "zarr.json").read_text())
    (sharding,) = about["codecs"]
    assert sharding["name"] == "sharding_indexed", folder
    name = about["data_type"]
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    shape = tuple(about["shape"])
    outer = tuple(about["chunk_grid"]["configuration"]["chunk_shape"])
    inner = tuple(sharding["configuration"]["chunk_shape"])
    codecs = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert outer[1:] == inner[1:] == shape[1:], folder
    values = np.empty((-(-shape[0] // outer[0]) * outer[0], *shape[1:]), dtype)
    for shard in range(-(-shape[0] // outer[0])):
        file = folder.joinpath("c", str(shard), *("0" for _ in shape[1:]))
        rows = min(shape[0] - shard * outer[0], outer[0])
        at = shard * outer[0]
        for first, chunk in _chunks(file.read_bytes(), codecs, rows, outer[0], inner[0]):
            part = np.frombuffer(chunk, dtype).reshape(inner)
            values[at + first : at + first + inner[0]] = part
    return values[: shape[0]]


def _chunks(
    data: bytes, codecs: list[str], rows: int, shard_rows: int, chunk_rows: int
) -> Iterator[tuple[int, bytes]]:
    """Yield the first row and the decoded bytes of a shard's chunks."""
    n_chunks = shard_rows // chunk_rows
    index = data[-16 * n_chunks - 4 : -4]
    assert google_crc32c.value(index) == int.from_bytes(data[-4:], "little"), "the index's crc32c"
    places = np.frombuffer(index, "<u8").reshape(n_chunks, 2).tolist()
    for i, (offset, n_bytes) in enumerate(places):
        if i * chunk_rows >= rows:
            assert offset == n_bytes == _ABSENT
            continue
        chunk = data[offset : offset + n_bytes]
        if codecs[-1] == "crc32c":
            assert google_crc32c.value(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")
            chunk = chunk[:-4]
        if "blosc" in codecs:
            chunk = bytes(Blosc().decode(chunk))
        yield i * chunk_rows, chunk


def arrays(store: Path, *folders: str) -> dict[str, NDArray[Any]]:
    """Decode every array below these folders of a store; return them by key."""
    found = {}
    for folder in folders:
        for file in sorted((store / folder).rglob("zarr.json")):
            if json.loads(file.read_text())["node_type"] == "array":
                found[file.parent.relative_to(store).as_posix()] = array(file.parent)
    return found


def attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes of a group or an array."""
    found: dict[str, Any] = json.loads((folder / "zarr.json").read_text()).get("attributes", {})
    return found


def record(file: Path) -> dict[str, Any]:
    """Return the body of a sealed record, whose seal must be right."""
    data = file.read_bytes()
    body = data[10:-78]
    assert hashlib.sha256(body).hexdigest() == seal(file), file
    found: dict[str, Any] = json.loads(body)
    return found


def seal(file: Path) -> str:
    """Return the sha256 that a sealed record ends with."""
    return file.read_bytes()[-67:-3].decode()


def plan(store: Path) -> dict[str, Any]:
    """Return a store's plan."""
    found: dict[str, Any] = record(store / "ledger/plan.json")["plan"]
    return found


def receipts(store: Path, job: str) -> dict[int, dict[str, Any]]:
    """Return the valid receipts of a job by shard: for each shard the highest generation."""
    found = {}
    files = sorted((store / "ledger/receipts" / job).glob("*.json"))
    files += sorted((store / "ledger/repairs" / job).glob("*.json"))
    for file in files:
        found[int(file.name[:8])] = record(file)
    return dict(sorted(found.items()))


def groups(store: Path, job: str) -> list[Path]:
    """Return the group folders that the receipts of a derived job name, in order of the units."""
    found = receipts(store, job).values()
    return [store / receipt["objects"][0]["key"].rpartition("/")[0] for receipt in found]


def elements(group: Path, name: str) -> NDArray[Any]:
    """Decode an array of a derived group; an array without elements has no file."""
    about = json.loads((group / name / "zarr.json").read_text())
    if about["shape"] == [0]:
        return np.zeros(0, about["data_type"])
    return array(group / name)


def features(store: Path, name: str) -> dict[str, NDArray[Any]]:
    """Return a set of features: dense activations [token, feature], and the index where it is done.

    ``t`` and ``value`` hold the index's entries in their stored order, feature after feature.
    """
    spec = record(store / f"ledger/features/{name}.json")
    dense = np.zeros((plan(store)["n_tokens"], spec["n_features"]), np.float32)
    tokens = groups(store, f"encode.{name}")
    edges = [0]
    for group in tokens:
        start = attributes(group)["actlas"]["token_start"]
        indptr, indices, data = (elements(group, each) for each in ("indptr", "indices", "data"))
        dense[start + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), indices] = data
        edges.append(edges[-1] + len(data))
    found: dict[str, NDArray[Any]] = {"codes": dense}
    if has(store, f"encoded.{name}"):
        (table,) = groups(store, f"encoded.{name}")
        assert attributes(table)["groups"] == [group.name for group in tokens]
        assert elements(table, "nnz_start").tolist() == edges
    if has(store, f"indexed.{name}"):
        (table,) = groups(store, f"indexed.{name}")
        blocks = groups(store, f"index.{name}")
        assert attributes(table)["groups"] == [group.name for group in blocks]
        starts = [attributes(group)["actlas"]["feature_start"] for group in blocks]
        assert elements(table, "block_start").tolist() == [*starts, spec["n_features"]]
        counts = [np.diff(elements(group, "indptr")) for group in blocks]
        found["count"] = np.concatenate(counts)
        assert (elements(table, "count") == found["count"]).all()
        found["t"] = np.concatenate([elements(group, "indices") for group in blocks])
        found["value"] = np.concatenate([elements(group, "data") for group in blocks])
        found |= {each: elements(table, each) for each in ("sum", "max")}
    return found


def extremes(store: Path, hookpoint: str) -> dict[str, NDArray[Any]]:
    """Return the top and bottom tokens of each unit of a hookpoint; arrays [unit, k]."""
    (group,) = groups(store, f"extremes.{hookpoint}")
    names = ("top_value", "top_t", "bottom_value", "bottom_t")
    return {name: elements(group, name) for name in names}


def has(store: Path, job: str) -> bool:
    """Whether a derived job of one unit is done."""
    return (store / "ledger/receipts" / job / "00000000.json").exists()


def files(store: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a store by key, ``OUTSIDE`` left out."""
    found = {p.relative_to(store).as_posix(): p for p in sorted(store.rglob("*")) if p.is_file()}
    outside = re.compile(rf"ledger/({'|'.join(OUTSIDE)})/")
    return {key: path.read_bytes() for key, path in found.items() if not outside.match(key)}


def digest(values: NDArray[Any]) -> dict[str, Any]:
    """Return an array's dtype, its shape, and the SHA-256 of its bytes."""
    sha256 = hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).tobytes()).hexdigest()
    return {"dtype": values.dtype.name, "shape": list(values.shape), "sha256": sha256}
