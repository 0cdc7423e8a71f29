"""Valid files in one another's places, and receipts that are gone: refused, named, mended.

Every file that is swapped is whole, with right checksums inside; the long form tries all pairs.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import state_machine as machine
from support.crash import copy_store, overwrite, ram_folder
from support.damage import by_kind
from support.oracle import contents, files
from support.readers import READERS

from actlas.store.errors import ActlasError, CorruptDataError
from actlas.store.format import layout
from actlas.store.format.schema import Compression
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify

pytestmark = pytest.mark.chaos

PROFILES: dict[Compression, str] = {"none": "float32", "fast": "bfloat16", "dense": "float16"}
TWO = [
    {"name": f"resid_post.{i}", "module": f"layers.{i}", "side": "output", "width": 8}
    for i in range(2)
]


class Whole:
    """A whole store with two hookpoints, another of the same plan's shape, and all their files."""

    def __init__(self, folder: Path, compression: Compression) -> None:
        self.path, self.other = folder / "run.zarr", folder / "other.zarr"
        machine.save_dictionary(self.path)
        fields = {"compression": compression, "dtype": PROFILES[compression], "hookpoints": TWO}
        machine.live(self.path, **fields)
        machine.plan_store(str(self.other), "other", seed=8, **fields)  # another order of the rows
        machine.commit_all(str(self.other), "other")
        self.files, self.others = files(self.path), files(self.other)
        self.arrays = [key for key in self.files if "/c/" in key]
        self.well = copy_store(self.path, folder / "well.zarr")

    def pairs(self) -> list[tuple[str, bytes]]:
        """Return each file of an array with each other one's bytes, of this store and the other."""
        found = [
            (key, self.files[source])
            for key, source in itertools.permutations(self.arrays, 2)
            if self.files[key] != self.files[source]
        ]
        found += [
            (key, data)
            for key, data in self.others.items()
            if key in self.arrays and self.files[key] != data
        ]
        return found


@pytest.fixture(scope="module", params=PROFILES)
def whole(request: pytest.FixtureRequest) -> Iterator[Whole]:
    with ram_folder() as ram, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 256)
        patch.setattr(machine, "BLOCK_CODES", 1 << 22)  # as a repair cuts them
        whole = Whole(ram, request.param)
        machine.planned_again(patch, whole.path)
        yield whole


def read(store: Store, key: str) -> None:
    """Read all of the array that a key is part of, as a user does."""
    kind, name, *_ = key.split("/")
    if kind == "rows":
        assert len(store.rows.columns[name][:])
    elif kind == "activations":
        assert len(store.activations[name][:])
    elif kind == "statistics":
        store.statistics(name)
    elif kind == "pooled":
        assert len(store.pooled[name]["mean"][:])
    elif kind == "documents":
        assert len(store.documents.columns[name][:])
    elif kind == "extremes":
        READERS["extremes"].read(store)
    else:
        for question in ("codes", "top", "feature table"):
            READERS[question].read(store)


def test_a_valid_file_in_anothers_place_is_never_read(chaos: Any, whole: Whole) -> None:
    pairs = whole.pairs()
    n = min(len(pairs), chaos.count(40, len(pairs)))
    believed, unnamed = [], []
    for i, (key, data) in enumerate(chaos.rng.sample(pairs, n)):
        overwrite(whole.path / key, data)
        try:
            read(open_store(whole.path), key)
            believed.append((key, len(data)))
        except CorruptDataError as error:
            assert key in str(error)
        if i % 10 == 0 and key not in {d.key for d in verify(open_store(whole.path), True).damages}:
            unnamed.append(key)
        overwrite(whole.path / key, whole.files[key])
    chaos.record("a valid file in another's place", n, refused=n - len(believed))
    assert not believed, believed[:3]
    assert not unnamed, unnamed
    assert contents(whole.path) == contents(whole.well)


def test_two_swapped_files_are_put_right(chaos: Any, whole: Whole) -> None:
    kinds = by_kind(list(whole.files))
    n = chaos.count(2, 20)
    for _ in range(n):
        kind = chaos.rng.choice(("rows", "activations", "statistics", "pooled rows", "documents"))
        one, two = chaos.rng.sample([key for key in kinds[kind] if "/c/" in key], 2)
        overwrite(whole.path / one, whole.files[two])
        overwrite(whole.path / two, whole.files[one])
        mended(whole)
    chaos.record("two files swapped, and repaired", n, repaired=n)


def test_a_lost_receipt_is_named_refused_and_written_again(chaos: Any, whole: Whole) -> None:
    receipts = [
        key
        for key in sorted(whole.files)
        if key.startswith("ledger/receipts/") and "finished." not in key
    ]
    n = chaos.count(2, 3 * len(receipts))
    for i in range(n):
        lost = chaos.rng.sample(receipts, 1 + i % 3)
        for key in lost:
            (whole.path / key).unlink()
        for full in (False, True):
            said = [str(damage) for damage in verify(open_store(whole.path), full).damages]
            assert all(any(key in damage for damage in said) for key in lost), (lost, said)
        asked = [name for name in READERS if name != "gather extremes"]  # it makes them again
        silent = [name for name in asked if not refuses(whole, name, lost)]
        assert not silent, (lost, silent)
        mended(whole)
    chaos.record("a lost receipt", n, refused=n, repaired=n)


def refuses(whole: Whole, name: str, lost: list[str]) -> bool:
    """Whether a reader raises that rests on a lost receipt; every other one may read."""
    jobs = READERS[name].jobs
    rests = any(key.startswith(f"ledger/receipts/{job}/") for key in lost for job in jobs)
    try:
        READERS[name].read(open_store(whole.path))
    except ActlasError as error:
        return isinstance(error, CorruptDataError)
    return not rests


def mended(whole: Whole) -> None:
    """Repair the store, and compare it with what it was."""
    try:
        made, _ = machine.mend(str(whole.path))
        assert made.exit_code == 0, made
        machine.gather(str(whole.path), "again")  # a repair drops extremes, and makes none
        assert verify(open_store(whole.path), full=True).ok
        assert contents(whole.path) == contents(whole.well)
    finally:
        shutil.rmtree(whole.path)
        copy_store(whole.well, whole.path)
