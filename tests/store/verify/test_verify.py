"""Damage of every kind, in every file: found, and named with its rows."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.stores import fill, words_columns

from actlas.store.errors import CorruptDataError, FormatError, RunFaultError, StoreNotFoundError
from actlas.store.ledger.receipts import receipt_key
from actlas.store.objects.local import LocalObjects
from actlas.store.shards.reader import ShardReader
from actlas.store.shards.writer import ShardWriter
from actlas.store.store import Store, open_store
from actlas.store.verify.orphans import remove_orphan
from actlas.store.verify.verify import verify

Make = Callable[..., Store]


UNOPENABLE = {"zarr.json", "ledger/plan.json"}
"""Damaged, these may keep the store from being opened at all, with an error that says so."""


def files_of(store: Store) -> list[Path]:
    return sorted(p for p in Path(store.path).rglob("*") if p.is_file() and "lease" not in p.parts)


def test_a_good_store_is_ok(make: Make) -> None:
    store = make()
    fill(store)
    report = verify(open_store(store.path), full=True)
    assert report.ok and not report.missing and not report.unclaimed
    on_disk = [p for p in files_of(store) if "ledger" not in p.parts or p.name == "zarr.json"]
    assert report.n_objects == len(on_disk)
    assert report.n_bytes == sum(p.stat().st_size for p in on_disk)


def test_an_unfinished_store_is_ok_and_says_what_is_missing(make: Make) -> None:
    store = make()
    fill(store, shards=range(1))
    report = verify(open_store(store.path), full=True)
    assert report.ok and report.missing == tuple(range(1, store.plan.n_shards))


def without_receipt(make: Make) -> tuple[Store, str, str]:
    """A store whose shard 1 lost its receipt; the keys of its rows and of their statistics."""
    store = make(compression="fast")
    fill(store)
    Path(store.path, receipt_key("extract", 1)).unlink()
    name = next(iter(store.arrays.activations))
    rows, statistics = store.arrays.activations[name], store.arrays.statistics[name]
    return open_store(store.path), rows.key(1), statistics.key(1)


def test_statistics_whose_rows_are_gone_are_of_no_use(make: Make) -> None:
    store, rows, statistics = without_receipt(make)
    assert rows in verify(store, full=True).unclaimed
    Path(store.path, rows).unlink()
    report = verify(store, full=True)
    assert [(d.key, d.orphan) for d in report.damages] == [(statistics, True)]


def test_a_fault_of_one_file_without_receipt_ends_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows, statistics = without_receipt(make)
    read = LocalObjects.read

    def failing(self: LocalObjects, key: str, *where: int) -> bytes:
        if key == rows:
            raise RunFaultError("input/output error", errno=errno.EIO)
        return read(self, key, *where)

    monkeypatch.setattr(LocalObjects, "read", failing)
    assert {d.key for d in verify(store, full=True).damages} == {rows, statistics}


def test_what_has_a_receipt_by_now_is_not_removed(make: Make) -> None:
    """Another driver may have committed the shard since a file of it was found to be of no use."""
    store, rows, _ = without_receipt(make)
    path = Path(store.path, rows)
    path.write_bytes(path.read_bytes()[:-5])
    assert rows in {d.key for d in verify(store, full=True).damages}
    path.unlink()
    path.with_name("stray").write_text("?")
    fill(open_store(store.path), shards=[1])
    assert not remove_orphan(store, rows) and path.exists()
    assert remove_orphan(store, f"{rows[:-1]}stray") and not path.with_name("stray").exists()


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "fast"])
def test_a_flipped_bit_in_any_file_is_found(make: Make, compression: str) -> None:
    store = make(compression=compression, n_documents=30)
    fill(store)
    rng = np.random.default_rng(0)
    for path in files_of(store):
        good = path.read_bytes()
        for at in rng.integers(0, len(good), 3):
            bad = bytearray(good)
            bad[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            key = str(path.relative_to(store.path))
            if key in UNOPENABLE:
                try:
                    report = verify(open_store(store.path), full=True)
                except (CorruptDataError, FormatError, StoreNotFoundError) as error:
                    assert str(path.parent) in str(error)
                else:
                    assert key in {d.key for d in report.damages}
                continue
            damages = verify(open_store(store.path), full=True).damages
            assert [d for d in damages if d.key == key], (path, damages)
        path.write_bytes(good)
    assert verify(open_store(store.path), full=True).ok


def test_a_flipped_bit_is_located_to_the_rows_of_its_chunk(make: Make) -> None:
    store = make(n_documents=700, shard_rows=8192, compression="fast")
    fill(store)
    spec = store.arrays.rows["pos_idx"]
    assert spec.chunks_per_shard == 2
    path = Path(store.path) / spec.key(0)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # in the second chunk's body, before an index of 36 bytes
    path.write_bytes(data)
    (damage,) = verify(open_store(store.path), full=True).damages
    assert (damage.start, damage.stop) == (4096, 8192)
    assert damage.key in str(damage) and "[4096, 8192)" in str(damage)


def test_missing_truncated_empty_and_orphan_files_are_named_without_reading(make: Make) -> None:
    store = make()
    fill(store)
    spec = store.arrays.activations["mlp.1"]
    first, second, third = (Path(store.path) / spec.key(shard) for shard in range(3))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-7])
    third.write_bytes(b"")
    orphans = [f"{spec.path}/c/900/0", f"{spec.path}/c/0/7", "activations/foo/zarr.json"]
    orphans += ["documents/text/c/9", "ledger/receipts/extract/00000099.json"]
    orphans += ["ledger/receipts/extract/1.json", "ledger/receipts/extract/²1.json"]
    for key in orphans:
        (Path(store.path) / key).parent.mkdir(parents=True, exist_ok=True)
        (Path(store.path) / key).write_bytes(b"?")
    report = verify(open_store(store.path))
    found = {d.key: d for d in report.damages}
    assert "missing" in found[spec.key(0)].what
    assert "truncated" in found[spec.key(1)].what
    assert "empty" in found[spec.key(2)].what
    for key in orphans:
        assert "orphan" in found[key].what
    assert (found[spec.key(1)].start, found[spec.key(1)].stop) == (256, 512)
    assert len(report.damages) == 3 + len(orphans)
    for shard in range(3):
        with pytest.raises(CorruptDataError, match=r"rows \[|receipt"):
            open_store(store.path).activations["mlp.1"][shard * 256]


def test_a_receipt_of_another_shard_is_refused(make: Make) -> None:
    store = make()
    fill(store)
    ledger = Path(store.path)
    (ledger / receipt_key("extract", 1)).write_bytes(
        (ledger / receipt_key("extract", 0)).read_bytes()
    )
    report = verify(open_store(store.path))
    assert [d.key for d in report.damages] == [receipt_key("extract", 1)]
    assert "moved" in report.damages[0].what


@pytest.mark.parametrize("compression", ["none", "fast", "dense"])
def test_swapped_shards_are_found_by_full_verify(make: Make, compression: str) -> None:
    store = make(compression=compression)
    fill(store)
    spec = store.arrays.activations["mlp.1"]
    a, b = (Path(store.path) / spec.key(shard) for shard in (0, 1))
    bytes_a, bytes_b = a.read_bytes(), b.read_bytes()
    a.write_bytes(bytes_b)
    b.write_bytes(bytes_a)
    assert {d.key for d in verify(open_store(store.path), full=True).damages} == {
        spec.key(0),
        spec.key(1),
    }


@pytest.mark.parametrize("compression", ["none", "fast", "dense"])
def test_a_well_formed_forgery_of_equal_size_is_found(make: Make, compression: str) -> None:
    """Two rows change places and every checksum inside the file is right again.

    A crc32c of the whole file would not see it: that of bytes which end with their own crc32c is a
    constant.
    """
    store = make(compression=compression)
    fill(store)
    for spec in (store.arrays.activations["mlp.1"], store.arrays.rows["pos_idx"]):
        path = Path(store.path) / spec.key(1)
        good = path.read_bytes()
        rows = ShardReader(store.objects, spec, 1).read_rows(0, 256)
        rows[[3, 200]] = rows[[200, 3]]
        bad = b"".join(bytes(part) for part in ShardWriter(spec, rows).parts())
        path.write_bytes(bad)
        if len(bad) == len(good):
            assert zlib.crc32(bad) != zlib.crc32(good)
        found = {d.key for d in verify(open_store(store.path), full=True).damages}
        assert spec.key(1) in found
        path.write_bytes(good)


def test_damaged_documents_do_not_hide_other_damage(make: Make) -> None:
    store = make()
    fill(store)
    keys = ["documents/start/c/0", store.arrays.activations["mlp.1"].key(2)]
    for key in keys:
        path = Path(store.path) / key
        data = bytearray(path.read_bytes())
        data[5] ^= 4
        path.write_bytes(data)
    found = {d.key for d in verify(open_store(store.path), full=True).damages}
    assert set(keys) <= found


def test_changed_names_of_labels_are_refused(make: Make) -> None:
    columns = words_columns(
        1, 30, 20, label=np.arange(30, dtype=np.int32) % 2, label_names=("S", "N")
    )
    store = make(columns=columns)
    path = Path(store.path) / "documents/label/zarr.json"
    text = path.read_text()
    path.write_text(text.replace('"S"', '"X"').replace('"N"', '"S"').replace('"X"', '"N"'))
    with pytest.raises(CorruptDataError, match="its names were changed"):
        open_store(store.path).documents.label(0)


def test_a_receipt_of_another_plan_is_refused(make: Make) -> None:
    store, other = make(), make(name="other.zarr", seed=8)
    fill(store)
    fill(other)
    key = receipt_key("extract", 0)
    (Path(store.path) / key).write_bytes((Path(other.path) / key).read_bytes())
    (damage,) = verify(open_store(store.path)).damages
    assert damage.key == key and "another plan" in damage.what


def test_a_store_of_another_version_is_refused(make: Make) -> None:
    store = make()
    path = Path(store.path) / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["actlas"]["format_version"] = 99
    path.write_text(json.dumps(root))
    with pytest.raises(FormatError, match="version 99, this actlas reads version 1"):
        open_store(store.path)


def test_what_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no store here"):
        open_store(tmp_path / "nothing")
    with pytest.raises(StoreNotFoundError, match="ftp://"):
        open_store("ftp://bucket/run.zarr")
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(FormatError, match="expected a store of actlas"):
        open_store(tmp_path)
    (tmp_path / "zarr.json").write_text("[]")
    with pytest.raises(FormatError, match="JSON object"):
        open_store(tmp_path)


def test_a_plan_that_lies_about_sizes_cannot_exhaust_memory(make: Make) -> None:
    """A sealed plan of a stranger: it counts tokens that it names no objects for."""
    from actlas.store.format.schema import PlanFile
    from actlas.store.format.sealing import seal

    store = make()
    fill(store)
    huge = store.plan.model_copy(update={"n_tokens": 10**9})
    plan_file = PlanFile(plan=huge, objects=store.plan_file.objects, created_unix_s=0.0)
    (Path(store.path) / "ledger" / "plan.json").write_bytes(seal(plan_file))
    with pytest.raises(FormatError, match="counts of documents, tokens and bytes"):
        open_store(store.path)


def test_the_format_page_is_enough_to_check_a_seal_and_read_a_shard(make: Make) -> None:
    """docs/store-format.md by the letter: struct, hashlib and Blosc, and nothing of ours."""
    import hashlib
    import struct

    import google_crc32c
    import xxhash
    from numcodecs.blosc import Blosc

    store = make(compression="fast", dtype="float32")
    rows = fill(store)
    root = Path(store.path)
    for path in [root / "ledger/plan.json", *(root / "ledger/receipts/extract").iterdir()]:
        data = path.read_bytes()
        sealed = json.loads(data)
        assert hashlib.sha256(data[10:-78]).hexdigest() == sealed["sha256"]
    receipt = json.loads((root / "ledger/receipts/extract/00000001.json").read_bytes())["record"]
    assert receipt["plan_sha256"] == json.loads((root / "ledger/plan.json").read_bytes())["sha256"]
    for entry in receipt["objects"]:
        data = (root / entry["key"]).read_bytes()
        assert (len(data), xxhash.xxh3_128_hexdigest(data)) == (entry["n_bytes"], entry["xxh3"])
    data = (root / "activations/mlp.1/c/1/0").read_bytes()
    index = data[-20:]
    assert google_crc32c.value(index[:16]) == struct.unpack("<I", index[16:])[0]
    offset, n_bytes = struct.unpack("<QQ", index[:16])
    chunk = data[offset : offset + n_bytes]
    assert google_crc32c.value(chunk[:-4]) == struct.unpack("<I", chunk[-4:])[0]
    body = np.frombuffer(Blosc().decode(chunk[:-4]), dtype="<f4").reshape(256, 40)
    assert body.tobytes() == rows["mlp.1"][256:512].tobytes()
