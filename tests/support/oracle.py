"""What lies in a store, by the format page and nothing of actlas: bytes, seals, digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
import zarr

_MARK = re.compile(r"(?<=[0-9a-z.])-[0-9a-f]{12}(?=[/\"])")
_NOT_CONTENT = ("ledger/lease/", "ledger/logs/", "ledger/quarantine/")
_OF_ITS_OWN = ("created_unix_s", "host", "attempt", "versions", "run", "inputs", "plan_sha256")
"""What two runs that did the same may differ in."""


class Tally(NamedTuple):
    """Rows that are gone, there twice, and not what they should be."""

    lost: int = 0
    doubled: int = 0
    wrong: int = 0

    def __add__(self, other: object) -> Tally:
        assert isinstance(other, Tally)
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


def files(root: Path) -> dict[str, Path]:
    """Return every file of a store by its key."""
    return {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}


def contents(root: Path) -> dict[str, Any]:
    """Return what lies in a store, by key, the marks of attempts and their times taken out.

    Two stores of the same content have equal contents. Leases, logs and quarantine are not content,
    nor is what :func:`leftovers` returns.
    """
    found: dict[str, Any] = {}
    named = _named(root)
    for key, path in files(root).items():
        if key.startswith(_NOT_CONTENT) or (_MARK.search(key) and key not in named):
            continue
        name = _MARK.sub("-*", key)
        assert name not in found, f"two of {name}"
        found[name] = _content(key, path)
    return found


def leftovers(root: Path) -> list[tuple[str, Any]]:
    """Return what lies in the groups of attempts that no receipt names, as :func:`contents` does.

    A killed or beaten attempt's; they are never read.
    """
    named = _named(root)
    marked = {key: path for key, path in files(root).items() if _MARK.search(key)}
    return [
        (_MARK.sub("-*", key), _content(key, path))
        for key, path in marked.items()
        if key not in named
    ]


def _named(root: Path) -> set[str]:
    receipts = (root / "ledger/receipts").rglob("*.json")
    records = [json.loads(path.read_bytes())["record"] for path in receipts]
    return {entry["key"] for record in records for entry in record["objects"]}


def _content(key: str, path: Path) -> Any:
    data = path.read_bytes()
    if key.startswith("ledger/") and not key.endswith("zarr.json"):
        return _record(data)
    return _MARK.sub("-*", data.decode()) if key.endswith("zarr.json") else data


def _record(data: bytes) -> Any:
    record = json.loads(data)["record"]
    kept = {field: value for field, value in record.items() if field not in _OF_ITS_OWN}
    for entry in kept.get("objects", ()):
        if isinstance(entry, dict):
            entry.pop("attempt")
            if _MARK.search(entry["key"]):  # its metadata may name other marked groups
                entry.pop("xxh3")
            entry["key"] = _MARK.sub("-*", entry["key"])
    return kept


def broken_promises(root: Path) -> list[str]:
    """Return what a reader was promised and is not so, at this moment.

    Every record in the ledger is whole, and every object that a standing receipt names has the size
    and the digest that it says.
    """
    complaints = []
    standing: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for key, path in files(root).items():
        if not re.match(r"ledger/(plan|receipts/|repairs/|features/)", key):
            continue
        data = path.read_bytes()
        try:
            sealed = json.loads(data)
            assert hashlib.sha256(data[10:-78]).hexdigest() == sealed["sha256"]
        except (ValueError, KeyError, AssertionError):
            complaints.append(f"{key}: not a whole record")
            continue
        if key.startswith(("ledger/receipts/", "ledger/repairs/")):
            job, shard = key.split("/")[2], key.split("/")[3][:8]
            generation = sealed["record"].get("generation", 0)
            if generation >= standing.get((job, shard), ("", {"generation": 0}))[1]["generation"]:
                standing[job, shard] = key, {**sealed["record"], "generation": generation}
    for key, receipt in standing.values():
        for entry in receipt["objects"]:
            path = root / entry["key"]
            data = path.read_bytes() if path.is_file() else b""
            if (len(data), xxhash.xxh3_128_hexdigest(data)) != (entry["n_bytes"], entry["xxh3"]):
                complaints.append(f"{key}: {entry['key']} is not what it says")
    return complaints


def tally(root: Path, expected: dict[str, Any]) -> Tally:
    """Count the rows of a finished store that are lost, doubled or wrong.

    Parameters
    ----------
    root : path
        Of the store.
    expected : dict
        :func:`contents` of a store that nothing happened to.
    """
    plan = expected["ledger/plan.json"]["plan"]
    got = contents(root)
    n_tokens, shard_rows = plan["n_tokens"], plan["shard_rows"]
    lost = wrong = 0
    for shard in range(-(-n_tokens // shard_rows)):
        n = min(shard_rows, n_tokens - shard * shard_rows)
        receipt = f"ledger/receipts/extract/{shard:08d}.json"
        if receipt not in expected:
            continue
        of_shard = re.compile(rf"(rows|activations|statistics)/[^/]+/c/{shard}(/0)*")
        keys = [key for key in expected if of_shard.fullmatch(key)]
        if receipt not in got or any(key not in got for key in keys):
            lost += n
        elif any(got[key] != expected[key] for key in keys):
            wrong += n
    return Tally(lost, _doubled(root, plan, got), wrong)


def _doubled(root: Path, plan: dict[str, Any], got: dict[str, Any]) -> int:
    """Count tokens that more than one row of the finished shards claims to be."""
    doc, pos = (np.asarray(zarr.open_array(f"{root}/rows/{n}", mode="r")[:]) for n in _COLUMNS)
    shard_rows = plan["shard_rows"]
    claimed: Counter[tuple[int, int]] = Counter()
    for shard in range(-(-plan["n_tokens"] // shard_rows)):
        if f"ledger/receipts/extract/{shard:08d}.json" in got:
            part = slice(shard * shard_rows, (shard + 1) * shard_rows)
            claimed.update(zip(doc[part].tolist(), pos[part].tolist(), strict=True))
    return sum(n - 1 for n in claimed.values())


_COLUMNS = ("doc_idx", "pos_idx")
