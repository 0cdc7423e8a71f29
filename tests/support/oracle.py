"""What lies in a store, by the format page and nothing of actlas: bytes, seals, digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numcodecs.blosc import Blosc

_MARK = re.compile(r"(?<=[0-9a-z.])-[0-9a-f]{12}(?=[/\"])")
_REPAIRED = re.compile(r"ledger/repairs/(.*/[0-9]{8})\.[0-9]{4}\.json")
_NOT_CONTENT = ("ledger/lease/", "ledger/logs/", "ledger/quarantine/", "ledger/repairing/")
_RECORDS = ("ledger/plan", "ledger/receipts/", "ledger/repairs/", "ledger/features/")
_OF_ITS_OWN = (
    "created_unix_s",
    "host",
    "attempt",
    "versions",
    "run",
    "inputs",
    "plan_sha256",
    "sae_path",
    "generation",
)
"""What two runs that did the same may differ in."""


class Tally(NamedTuple):
    """Rows that are gone, there twice, and not what they should be."""

    lost: int = 0
    doubled: int = 0
    wrong: int = 0

    def __add__(self, other: object) -> Tally:
        assert isinstance(other, Tally)
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


def files(root: Path) -> dict[str, bytes]:
    """Return every file of a store by its key."""
    found = {}
    for folder, _, names in os.walk(root):
        prefix = os.path.relpath(folder, root)
        for name in names:
            data = Path(folder, name).read_bytes()
            found[name if prefix == "." else f"{prefix}/{name}"] = data
    return found


class Snapshot:
    """All that lies in a store at one moment.

    Parameters
    ----------
    root : path
        Of the store.

    Attributes
    ----------
    contents : dict
        By key, with the marks of attempts and their times taken out: two stores of the same content
        have equal ones. Leases, logs and quarantine are not content, nor are leftovers.
    leftovers : list of (key, content)
        What lies in the groups of killed and beaten attempts, which no receipt names.
    """

    def __init__(self, root: Path) -> None:
        self.files = files(root)
        self.contents: dict[str, Any] = {}
        self.leftovers: list[tuple[str, Any]] = []
        named = {
            entry["key"]
            for key, data in self.files.items()
            if key.startswith(("ledger/receipts/", "ledger/repairs/"))
            for entry in json.loads(data)["record"]["objects"]
        }
        for key, data in sorted(self.files.items()):
            if key.startswith(_NOT_CONTENT):
                continue
            name = _MARK.sub("-*", key)
            if name != key and key not in named:
                self.leftovers.append((name, _content(key, data)))
                continue
            if (repaired := _REPAIRED.fullmatch(key)) is not None:
                name = f"ledger/receipts/{repaired[1]}.json"  # sorted: the last one stands
            else:
                assert name not in self.contents, f"two of {name}"
            self.contents[name] = _content(key, data)

    def broken_promises(self) -> list[str]:
        """Return what a reader was promised and is not so, at this moment.

        Every record in the ledger is whole, and every object that a standing receipt names has the
        size and the digest that it says.
        """
        return broken_promises(self.files)


def unmarked(key: str) -> str:
    """Return a key without the mark of the attempt that wrote it."""
    return _MARK.sub("-*", key)


def contents(root: Path) -> dict[str, Any]:
    """Return the contents of a store; none where there is no store."""
    return Snapshot(root).contents


def _content(key: str, data: bytes) -> Any:
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


def broken_promises(found: Mapping[str, bytes]) -> list[str]:
    """Return what :meth:`Snapshot.broken_promises` does, of files by key."""
    complaints = []
    standing: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for key, data in found.items():
        if not key.startswith(_RECORDS):
            continue
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
            data = found.get(entry["key"], b"")
            if (len(data), xxhash.xxh3_128_hexdigest(data)) != (entry["n_bytes"], entry["xxh3"]):
                complaints.append(f"{key}: {entry['key']} is not what it says")
    return complaints


def tally(got: dict[str, Any], expected: dict[str, Any]) -> Tally:
    """Count the rows of a finished store that are lost, doubled or wrong.

    Parameters
    ----------
    got, expected : dict
        The contents of the store, and of one that nothing happened to.
    """
    if got == expected:
        return Tally()
    plan = expected["ledger/plan.json"]["plan"]
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
    return Tally(lost, n_doubled(got), wrong)


def n_doubled(got: dict[str, Any]) -> int:
    """Count the rows of finished shards whose token another row is already."""
    plan = got["ledger/plan.json"]["plan"]
    claimed: Counter[tuple[int, int]] = Counter()
    for shard in range(-(-plan["n_tokens"] // plan["shard_rows"])):
        keys = f"rows/doc_idx/c/{shard}", f"rows/pos_idx/c/{shard}"
        if f"ledger/receipts/extract/{shard:08d}.json" in got and all(key in got for key in keys):
            n = min(plan["shard_rows"], plan["n_tokens"] - shard * plan["shard_rows"])
            doc, pos = _column(got, keys[0], "<i8"), _column(got, keys[1], "<i4")
            claimed.update(zip(doc[:n], pos[:n], strict=True))
    return sum(n - 1 for n in claimed.values())


def _column(got: dict[str, Any], key: str, dtype: str) -> list[int]:
    """Decode a shard of a column of rows: chunks of Blosc, each with its checksum, and an index."""
    metadata, data = json.loads(got[key.partition("/c/")[0] + "/zarr.json"]), got[key]
    shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    n_chunks = shard_rows // metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    index = struct.unpack(f"<{2 * n_chunks}Q", data[-16 * n_chunks - 4 : -4])
    values: list[int] = []
    for offset, n_bytes in zip(index[::2], index[1::2], strict=True):
        if offset < len(data):  # the last shard's last chunks are none
            body = Blosc().decode(data[offset : offset + n_bytes - 4])
            values += np.frombuffer(body, dtype).tolist()
    return values
