"""Every reader of the API refuses a valid file in another's place, and rows whose receipt is lost.

The files are those of the store itself: each is whole, with right checksums inside, and lies at the
wrong name. The oracle is the control: undamaged, each reader reads.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import state_machine as machine
from support.oracle import files
from support.readers import READERS

from actlas.store.errors import CorruptDataError, NotExtractedError
from actlas.store.format import layout, recorded
from actlas.store.ledger import guards
from actlas.store.objects.local import LocalObjects
from actlas.store.store import open_store
from actlas.store.write import create

pytest.importorskip("dask", reason="dask is not installed")

TWO = [
    {"name": f"resid_post.{i}", "module": f"layers.{i}", "side": "output", "width": 8}
    for i in range(2)
]


class Ward:
    """A whole store, and its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        machine.save_dictionary(path)
        machine.live(path, hookpoints=TWO)
        self.files = files(path)

    def array(self, name: str) -> list[str]:
        """Return the keys of an array's objects; names of derived arrays stand for a pattern."""
        pattern = re.escape(name).replace("features/", "features/made/")
        for word, folder in (("TOKENS", r"tokens/\d+"), ("INDEXED", "indexed")):
            pattern = pattern.replace(word, rf"{folder}-\w+")
        pattern = pattern.replace("INDEX", r"index/\d+-\w+")
        pattern = re.sub(r"extremes/", rf"extremes/{machine.HOOKPOINT}-\\w+/", pattern)
        found = [key for key in self.files if re.fullmatch(pattern + r"/c/\d+[/0]*", key)]
        assert found, name
        return sorted(found)

    def another(self, key: str) -> str:
        """Return the key of another valid file: of the same size if there is one, else any."""
        data = self.files[key]
        others = [k for k in self.files if "/c/" in k and self.files[k] != data]
        size, folder = len(data), key.split("/")[0]
        return min(others, key=lambda k: (len(self.files[k]) != size, not k.startswith(folder)))


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 256)
        patch.setattr(layout, "COLUMN_CHUNK_ROWS", 8)
        yield Ward(tmp_path_factory.mktemp("ward") / "run.zarr")


@pytest.mark.parametrize("name", READERS)
def test_a_valid_file_in_anothers_place_is_refused(ward: Ward, name: str) -> None:
    reader = READERS[name]
    reader.read(open_store(ward.path))
    for array in reader.arrays:
        key = ward.array(array)[0]
        (ward.path / key).write_bytes(ward.files[ward.another(key)])
        try:
            with pytest.raises(CorruptDataError) as refused:
                reader.read(open_store(ward.path))
        finally:
            (ward.path / key).write_bytes(ward.files[key])
        assert key in str(refused.value)


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.jobs])
def test_rows_whose_receipt_is_lost_are_never_left_out(ward: Ward, name: str) -> None:
    reader = READERS[name]
    for job in reader.jobs:
        key = max(key for key in ward.files if key.startswith(f"ledger/receipts/{job}/"))
        (ward.path / key).unlink()
        try:
            with pytest.raises(CorruptDataError, match=r"actlas\.repair") as refused:
                reader.read(open_store(ward.path))
        finally:
            (ward.path / key).write_bytes(ward.files[key])
        assert key in str(refused.value)


def test_receipts_are_read_once_for_each_shard_and_not_at_open(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    read = LocalObjects.read

    def counted(objects: LocalObjects, key: str, *part: Any) -> bytes:
        asked[key] += key.startswith("ledger/receipts/")
        return read(objects, key, *part)

    monkeypatch.setattr(LocalObjects, "read", counted)
    store = open_store(ward.path)
    assert len(store.activations[machine.HOOKPOINT]) and not asked.total()
    for name in ("batches", "batches", "rows", "activations of documents", "statistics"):
        READERS[name].read(store)
    assert {k: n for k, n in asked.items() if n} == {
        f"ledger/receipts/extract/{shard:08d}.json": 1 for shard in range(store.plan.n_shards)
    }


def test_the_description_of_another_set_of_features_is_refused(ward: Ward, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    shutil.copytree(ward.path, path)
    for key in ("ledger/features/made.json", "ledger/features.copies/made.json"):
        shutil.copy(path / key, path / key.replace("made", "other"))
    with pytest.raises(ValueError, match="description of features 'made', expected"):
        open_store(path).features("other")


def test_a_store_half_extracted_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    machine.plan_store(str(path), "first")
    machine.commit_one(str(path), "first")
    store = open_store(path)
    for name in ("batches", "statistics", "info"):
        READERS[name].read(store)
    assert store.statistics(machine.HOOKPOINT).n.max() == store.plan.shard_rows
    for name in ("rows", "activations", "a Dask array", "encode", "localize, rows of tokens"):
        with pytest.raises(NotExtractedError):
            READERS[name].read(store) if name != "encode" else store.activations["resid_post.0"][:]


def test_chunks_of_large_documents_are_held_against_checksums_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (recorded, create):
        monkeypatch.setattr(module, "WHOLE_BYTES", 64)  # without the index
    path = tmp_path / "run.zarr"
    store = machine.plan_store(str(path), "first")
    found = files(path)
    kept = {k.removeprefix(f"{guards.CHECKSUMS}/") for k in found if k.startswith(guards.CHECKSUMS)}
    assert {"documents/token_id/c/0", "documents/char_start/c/0", "documents/text/c/0"} <= kept
    column, other = (f"documents/{name}/c/0" for name in ("token_id", "char_start"))
    assert store.documents.token_ids(0, 5).tolist() == machine.documents().token_ids(0, 5).tolist()
    for key, instead in ((column, other), (f"{guards.CHECKSUMS}/{column}", column)):
        (path / key).write_bytes(found[instead])
        with pytest.raises(CorruptDataError, match="plan"):
            open_store(path).documents.token_ids(0, 5)
        (path / key).write_bytes(found[key])
