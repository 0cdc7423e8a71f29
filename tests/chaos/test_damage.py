"""Damage of every kind in every kind of file: found, named with its rows, never read, repaired."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import state_machine as machine
from support.crash import copy_store, overwrite, ram_folder
from support.damage import HOLDS_ROWS, KINDS, READ, by_kind, flipped, rows_of
from support.oracle import Snapshot, Tally, contents, files, tally

from actlas.store.errors import ActlasError, CorruptDataError
from actlas.store.format import layout
from actlas.store.format.schema import Compression
from actlas.store.ledger.job_kind import receipts_of
from actlas.store.store import Store, open_store
from actlas.store.verify.damage import Damage
from actlas.store.verify.verify import verify

pytestmark = pytest.mark.chaos

PROFILES: dict[Compression, str] = {"none": "float32", "fast": "bfloat16", "dense": "float16"}


class Patient:
    """A whole store of many files, with several chunks in a shard."""

    def __init__(self, path: Path, compression: Compression) -> None:
        self.path = path
        machine.save_dictionary(path)
        machine.live(path, compression=compression, dtype=PROFILES[compression])
        self.contents = contents(path)
        self.files = files(path)
        self.by_kind = by_kind(list(self.files))
        self.well = copy_store(path, path.with_name("well.zarr"))

    def mend(self, kind: str) -> tuple[list[tuple[str, int]], Tally]:
        """Repair, go on, and return what was computed again, and what is still not as it was.

        What a set of features is, its description alone says: that is named, and stays damaged.
        """
        try:
            made, attempted = machine.mend(str(self.path))
            if kind == "description of features" and made.exit_code:
                assert {d.key for d in made.left} == {f"ledger/features/{machine.FEATURES}.json"}
                return attempted, Tally()
            assert made.exit_code == 0, made
            machine.go_on(str(self.path))
            damages, others = self.verified(full=True)
            assert not damages and not others
            found = Snapshot(self.path)
            assert found.broken_promises() == []
            differ = [k for k in {*found.contents, *self.contents} if self.unlike(found, k)]
            assert not differ, differ
            return attempted, tally(found.contents, self.contents)
        finally:
            shutil.rmtree(self.path)
            copy_store(self.well, self.path)

    def put(self, key: str, data: bytes | None) -> None:
        """Put bytes at a key; None removes it."""
        file = self.path / key
        if data is None:
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            overwrite(file, data)

    def unlike(self, found: Snapshot, key: str) -> bool:
        """Whether a key's content is not what it was."""
        return found.contents.get(key) != self.contents.get(key)

    def verified(self, *, full: bool) -> tuple[list[Damage], set[str]]:
        """Return the damages, and all else that verify names: missing shards and the unclaimed.

        A store that cannot be opened says why: that names the plan, or the root's metadata.
        """
        try:
            report = verify(open_store(self.path), full=full)
        except ActlasError as error:
            assert str(self.path) in str(error)
            return [Damage("", str(error))], {"zarr.json", "ledger/plan.json"}
        missing = {f"ledger/receipts/extract/{shard:08d}.json" for shard in report.missing}
        missing |= {f"ledger/receipts/pooled/{shard:08d}.json" for shard in report.missing_pooled}
        return list(report.damages), missing | set(report.unclaimed)


@pytest.fixture(scope="module", params=PROFILES)
def patient(request: pytest.FixtureRequest) -> Iterator[Patient]:
    with ram_folder() as ram, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 256)
        patch.setattr(layout, "COLUMN_CHUNK_ROWS", 8)
        patch.setattr(machine, "BLOCK_CODES", 1 << 22)  # as a repair cuts them
        patient = Patient(ram / "run.zarr", request.param)
        machine.planned_again(patch, patient.path)
        yield patient


def test_a_flipped_bit_is_found_and_named(chaos: Any, patient: Patient) -> None:
    """In any file, each kind having its share; the rows named are those of the flipped chunk."""
    n = chaos.count(100, 5000) // len(PROFILES) + 1
    found, flips = Counter[str](), Counter[str]()
    missed = []
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        key = chaos.rng.choice(patient.by_kind[kind])
        bad, offset = flipped(patient.files[key], chaos.rng)
        patient.put(key, bad)
        damages, others = patient.verified(full=True)
        patient.put(key, patient.files[key])
        flips[kind] += 1
        if not is_named(patient, key, offset, damages, others):
            missed.append((key, offset, [str(d) for d in damages]))
            continue
        found[kind] += 1
    notes = {f"in_{kind.replace(' ', '_')}": flips[kind] for kind in KINDS}
    chaos.record("a flipped bit", n, found=sum(found.values()), missed=len(missed), **notes)
    assert not missed, missed[0]
    damages, others = patient.verified(full=True)
    assert not damages and not others
    assert contents(patient.path) == patient.contents


def test_a_flipped_bit_is_repaired(chaos: Any, patient: Patient) -> None:
    """Only the shard that was hit is computed again, and all is as it was to the last byte."""
    counted, n = Tally(), chaos.count(len(KINDS), 5 * len(KINDS))
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        key = chaos.rng.choice(patient.by_kind[kind])
        patient.put(key, flipped(patient.files[key], chaos.rng)[0])
        attempted, after = patient.mend(kind)
        counted += after
        assert attempted == shard_of(key), key
    chaos.record("a flipped bit, repaired", n, **counted._asdict())


def shard_of(key: str) -> list[tuple[str, int]]:
    """Return the shards that must be computed again for a damaged file: one, or none."""
    match = re.fullmatch(r"(rows|activations|statistics|pooled)/.*?/c/(\d+)[/0]*", key)
    match = match or re.fullmatch(r"ledger/receipts/(extract|pooled)/(\d+)\.json", key)
    if match is None:
        return []
    return [("pooled" if match[1] == "pooled" else "extract", int(match[2]))]


def is_named(
    patient: Patient, key: str, offset: int | None, damages: list[Damage], others: set[str]
) -> bool:
    """Whether verify named a file, and exactly the rows that its damage takes with it."""
    if damages and damages[0].key == "":
        return key in others
    named = [d for d in damages if d.key == key]
    rows = rows_of(patient.files, key, offset)
    if rows is None:
        return bool(named)
    if key.startswith("ledger/receipts/encode.") or key.startswith("features/"):
        return bool(named) and (named[0].start, named[0].stop) in {rows[:2], (None, None)}
    return [(d.start, d.stop, d.of) for d in named] == [tuple(rows)]


def hurt(patient: Patient, what: str, rng: Any) -> tuple[str, str, bytes | None]:
    """Choose a file and return its kind, its key, and what is there instead."""
    kind = rng.choice(KINDS)
    key = rng.choice(patient.by_kind[kind])
    data = patient.files[key]
    if what == "truncated":
        return kind, key, data[: rng.randrange(1, len(data))]
    return kind, key, b"" if what == "empty" else None


@pytest.mark.parametrize("what", ["truncated", "empty", "missing"])
def test_what_is_cut_emptied_or_gone_is_named_without_reading(
    chaos: Any, patient: Patient, what: str
) -> None:
    """By the fast form of verify; and to read it raises, with never a fill value in its place."""
    n = chaos.count(20, 500) // len(PROFILES) + 1
    unnamed, filled, counted, n_repaired = [], [], Tally(), 0
    for i in range(n):
        kind, key, data = hurt(patient, what, chaos.rng)
        patient.put(key, data)
        damages, others = patient.verified(full=False)
        if what == "missing" and "receipts" in kind:
            named = any(key in str(d) for d in damages)
        else:
            named = is_named(patient, key, None, damages, others)
            if what == "missing" and kind == "description of features":
                named = any(key in str(d) for d in damages)
        if not named:
            unnamed.append((key, [str(d) for d in damages], others))
        if kind in READ and not raises(patient, kind, key):
            filled.append(key)
        if i % 4 == 0:
            attempted, after = patient.mend(kind)
            counted, n_repaired = counted + after, n_repaired + 1
            assert attempted == shard_of(key), key
        else:
            patient.put(key, patient.files[key])
    notes = {"named": n - len(unnamed), "read_as_fill": len(filled), "repaired": n_repaired}
    chaos.record(f"a file {what}", n, **counted._asdict(), **notes)
    assert not unnamed, unnamed[0]
    assert not filled, filled[0]
    assert contents(patient.path) == patient.contents


def raises(patient: Patient, kind: str, key: str) -> bool:
    """Whether reading what lies at a key raises as it should."""
    store = open_store(patient.path)
    try:
        read(store, kind, key)
    except CorruptDataError:
        return True
    return False


def read(store: Store, kind: str, key: str) -> None:
    """Read all of the array that a key is part of, as a user does."""
    array = key.split("/")[1]
    if kind == "rows":
        store.rows.columns[array][:]
    elif kind == "activations":
        store.activations[array][:]
    elif kind == "statistics":
        store.statistics(array)
    elif kind == "pooled rows":
        store.pooled[array]["mean"][:]
    elif kind == "documents":
        store.documents.columns[array][:]
    else:
        features = store.features(machine.FEATURES)
        features.codes(0, store.plan.n_tokens)
        for feature in range(len(features)):
            features.top(feature, 3)
        assert features.mean.shape


def test_an_orphan_file_is_named(chaos: Any, patient: Patient) -> None:
    """Anywhere in the store, under any name that is not one of the store's."""
    n = chaos.count(20, 500) // len(PROFILES) + 1
    folders = sorted({str(Path(key).parent) for key in patient.files})
    folders = [f for f in folders if not f.startswith(("ledger/lease", "ledger/logs"))]
    unnamed = []
    for i in range(n):
        folder = chaos.rng.choice([*folders, "activations/more", "features/made/tokens/x"])
        names = [".DS_Store", "900", "0.tmp", "00000099.json", "1.json", "zarr.json.bak", "²1.json"]
        name = f"{folder}/{chaos.rng.choice(names)}"
        patient.put(name, chaos.rng.randbytes(20))
        damages, _ = patient.verified(full=False)
        if i % 4 == 0:
            assert patient.mend("stray") == ([], Tally())
        (patient.path / name).unlink(missing_ok=True)
        key = name.removeprefix("./")
        named_like_a_record = key.startswith("ledger/receipts/") or key == "ledger/features/1.json"
        unreadable = named_like_a_record and "a sealed record" in str(damages)
        orphan = "orphan" in str(damages)
        if not (orphan or unreadable) or [d.key for d in damages] != [key]:
            unnamed.append((key, damages))
    chaos.record("an orphan file", n, named=n - len(unnamed))
    assert not unnamed, unnamed[0]
    assert receipts_of(open_store(patient.path), f"indexed.{machine.FEATURES}", 1).exists(0)


def test_what_is_read_is_what_was_written(patient: Patient) -> None:
    """The control: reading raises nothing where nothing is damaged, and rows are the rows."""
    store = open_store(patient.path)
    for kind in READ:
        for key in patient.by_kind[kind]:
            read(store, kind, key)
    for shard in range(store.plan.n_shards):
        rows, _ = machine.shard_rows(store, shard)
        stored = store.activations[machine.HOOKPOINT][slice(*store.shard_range(shard))]
        np.testing.assert_array_equal(stored.view(np.uint8), rows[machine.HOOKPOINT].view(np.uint8))
    assert set(HOLDS_ROWS) < set(READ) < set(KINDS)


def test_codes_of_a_store_that_is_not_extracted_whole_are_made_again(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """One shard of three and its codes: what a repair drops it makes again, and nothing is left."""
    path = tmp_path / "run.zarr"
    machine.save_dictionary(path)
    machine.plan_store(str(path), "first")
    machine.planned_again(monkeypatch, path)
    machine.commit_one(str(path), "first")
    machine.encode_one(str(path), "first")
    rows = path / open_store(path).arrays.activations[machine.HOOKPOINT].key(0)
    rows.write_bytes(flipped(rows.read_bytes(), random.Random(0))[0])
    made, _ = machine.mend(str(path), noise=1)  # other bits: the codes are stale
    assert made.exit_code == 0 and made.derived == (f"encode.{machine.FEATURES}",), made
    assert open_store(path).done(f"encode.{machine.FEATURES}") == {0}
    assert verify(open_store(path), full=True).ok
