"""Counting rows by the published format alone: zarr reads the arrays, xxhash the receipts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray

from actlas.store.store import open_store
from actlas.store.verify.verify import verify


class Rows(NamedTuple):
    """Rows that are gone, there twice, and not what they should be."""

    lost: int
    doubled: int
    wrong: int

    def __add__(self, other: object) -> Rows:
        assert isinstance(other, Rows)
        return Rows(*(a + b for a, b in zip(self, other, strict=True)))


NONE = Rows(0, 0, 0)


class Oracle:
    """A store that nothing happened to, and what others of the same plan are held against.

    Parameters
    ----------
    path : path
        Of that store.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        self.arrays = arrays(self.root)

    def count(self, path: str | Path, ignore: tuple[str, ...] = ()) -> Rows:
        """Count another store's rows: bit for bit, of all arrays but those under ``ignore``."""
        root, got = Path(path), arrays(Path(path))
        lost, wrong = np.zeros((2, len(self.arrays["rows/doc_idx"])), dtype=bool)
        for name, expected in self.arrays.items():
            if name.startswith(ignore):
                continue
            differ = bits(got[name]) != bits(expected)
            wrong |= differ.reshape(len(differ), -1).any(1)
        for start, stop, fault in unfinished(root):
            (lost if fault == "missing" else wrong)[start:stop] = True
        pairs = zip(got["rows/doc_idx"].tolist(), got["rows/pos_idx"].tolist(), strict=True)
        there = Counter(pair for pair, gone in zip(pairs, lost, strict=True) if not gone)
        doubled = sum(n - 1 for n in there.values())
        return Rows(int(lost.sum()), doubled, int((wrong & ~lost).sum()))


def arrays(root: Path) -> dict[str, NDArray[Any]]:
    """Read every array that has a row per token."""
    found = {}
    for folder in (*(root / "rows").iterdir(), *(root / "activations").iterdir()):
        if folder.is_dir():
            array = zarr.open_array(folder, mode="r")
            found[f"{folder.parent.name}/{folder.name}"] = np.asarray(array[:])
    assert len(found) > 3
    return found


def bits(values: NDArray[Any]) -> NDArray[Any]:
    """Return values by their bits, so that NaN equals itself."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def unfinished(root: Path) -> list[tuple[int, int, str]]:
    """Return the shards, as rows, that have no receipt or whose files are not what it says."""
    plan = json.loads((root / "ledger/plan.json").read_text())["record"]["plan"]
    found = []
    for shard, start in enumerate(range(0, plan["n_tokens"], plan["shard_rows"])):
        stop = min(start + plan["shard_rows"], plan["n_tokens"])
        file = root / f"ledger/receipts/extract/{shard:08d}.json"
        if not file.exists():
            found.append((start, stop, "missing"))
            continue
        objects = json.loads(file.read_text())["record"]["objects"]
        if any(not (root / o["key"]).exists() for o in objects):
            found.append((start, stop, "missing"))
        elif mismatches(root, objects):
            found.append((start, stop, "wrong"))
    return found


def mismatches(root: Path, objects: list[dict[str, Any]]) -> list[str]:
    """Return the objects of a receipt whose bytes at the final names are others."""
    bad = []
    for entry in objects:
        data = (root / entry["key"]).read_bytes()
        if (len(data), xxhash.xxh3_128_hexdigest(data)) != (entry["n_bytes"], entry["xxh3"]):
            bad.append(entry["key"])
    return bad


def complaints(path: str) -> list[str]:
    """Return all that ``actlas verify --full`` says of a store that should be whole."""
    report = verify(open_store(path), full=True)
    said = [str(damage) for damage in report.damages]
    said += [f"{key}: no receipt names it" for key in report.unclaimed]
    return said + [f"shard {shard} is missing" for shard in report.missing]
