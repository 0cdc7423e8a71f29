"""Repair at the level of a store: what is whole stays to the bit, what is damaged comes back."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zarr
from numpy.typing import NDArray
from support.stores import Columns, fill, truth, words_columns

from actlas.store.errors import ConflictError, CorruptDataError, NotExtractedError, RunFaultError
from actlas.store.format import layout
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.ledger.receipts import POOLED, receipt_key
from actlas.store.objects.base import Objects
from actlas.store.objects.local import LocalObjects
from actlas.store.store import Store, open_store
from actlas.store.verify.damage import Damage
from actlas.store.verify.repair_plan import put_back_from, repair_metadata, repair_plan
from actlas.store.verify.repair_shard import repair_pooled, repair_shard
from actlas.store.verify.verify import verify
from actlas.store.write import array_writer as writer
from actlas.store.write.array_writer import ArrayWriter
from actlas.store.write.commit import commit_pooled

Make = Callable[..., Store]
SHARD = 1


def rows_of(store: Store, shard: int, noise: int = 0) -> dict[str, NDArray[Any]]:
    """The shard's rows as a model gives them; ``noise`` turns the last bit of some of them."""
    start, stop = store.shard_range(shard)
    t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
    rows = {name: truth(store, name)[t].copy() for name in store.activations}
    if noise:
        for values in rows.values():
            values.view(np.uint16)[::3] ^= 1
    return rows


def contents(store: Store) -> dict[str, bytes]:
    root = Path(store.path)
    files = (p for p in root.rglob("*") if p.is_file())
    skipped = {"lease", "logs", "staging"}
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in files if not skipped & {*p.parts}
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARMS: list[Callable[[Path], None]] = [flip, truncate, empty, Path.unlink]


def shard_keys(store: Store, shard: int) -> list[str]:
    arrays = store.arrays
    groups = (arrays.rows, arrays.activations, arrays.statistics)
    return [spec.key(shard) for group in groups for spec in group.values()]


@pytest.mark.parametrize("compression", ["none", "dense"])
@pytest.mark.parametrize("harm", HARMS)
def test_the_same_bits_come_back_under_the_same_receipt(
    make: Make, harm: Callable[[Path], None], compression: str
) -> None:
    store = make(compression=compression)
    fill(store)
    before = contents(store)
    for key in shard_keys(store, SHARD):
        harm(Path(store.path) / key)
        assert not verify(open_store(store.path), full=True).ok
        repair_shard(open_store(store.path), SHARD, rows_of(store, SHARD), attempt="again")
        assert contents(store) == before, key
    assert verify(open_store(store.path), full=True).ok


def test_other_bits_get_a_receipt_of_the_next_generation(make: Make) -> None:
    store = make()
    fill(store)
    before = contents(store)
    key = store.arrays.activations["mlp.1"].key(SHARD)
    for generation in (1, 2):
        flip(Path(store.path) / key)
        noisy = rows_of(store, SHARD, noise=generation)
        if generation == 2:
            noisy = {name: values[::1] for name, values in rows_of(store, SHARD).items()}
        receipt = repair_shard(open_store(store.path), SHARD, noisy, attempt=f"again {generation}")
        assert receipt.generation == generation
        opened = open_store(store.path)
        report = verify(opened, full=True)
        assert report.ok, report.damages
        assert opened.receipt(SHARD) == receipt
        start, stop = opened.shard_range(SHARD)
        np.testing.assert_array_equal(opened.activations["mlp.1"][start:stop], noisy["mlp.1"])
        plain = zarr.open_array(f"{store.path}/activations/mlp.1", mode="r")[start:stop]
        np.testing.assert_array_equal(np.asarray(plain), noisy["mlp.1"])
        for record in receipt.objects:
            data = (Path(store.path) / record.key).read_bytes()
            assert (len(data), xxhash.xxh3_128(data).hexdigest()) == (record.n_bytes, record.xxh3)
    # Nothing else changed, and the statistics are of the rows that are there now.
    statistics = open_store(store.path).statistics("mlp.1")
    every = open_store(store.path).activations["mlp.1"][:].astype(np.float64)
    np.testing.assert_allclose(statistics.mean, every.mean(axis=0), rtol=1e-9, atol=1e-12)
    after = contents(store)
    touched = {k for k in after if after[k] != before.get(k)}
    repairs = {receipt_key("extract", SHARD, g) for g in (1, 2)}
    assert touched <= {key, store.arrays.statistics["mlp.1"].key(SHARD), *repairs}
    assert repairs <= touched and before.keys() <= after.keys()


@pytest.mark.parametrize("compression", ["none", "fast", "dense"])
def test_who_had_opened_the_store_before_a_repair_is_told_to_open_it_again(
    make: Make, compression: str
) -> None:
    made = make(compression=compression)
    fill(made)
    key = made.arrays.activations["mlp.1"].key(SHARD)
    start, stop = made.shard_range(SHARD)
    readers: list[Callable[[Store], Any]] = [
        lambda store: store.activations["mlp.1"][start:stop],
        lambda store: store.activations["mlp.1"][start : stop : stop - start - 1],
        lambda store: store.activations["mlp.1"].reader(SHARD).read_chunk(0),
    ]
    before, looked_on = open_store(made.path), open_store(made.path)
    for read in readers:
        read(before)
        read(looked_on)
    flip(Path(made.path) / key)
    with pytest.raises(CorruptDataError) as damaged:
        readers[0](before)
    assert "repaired" not in str(damaged.value)
    noisy = rows_of(made, SHARD, noise=1)
    assert repair_shard(open_store(made.path), SHARD, noisy, attempt="again").generation == 1
    assert looked_on.missing() == []  # it has seen the newer receipt; what it reads by is older
    for store in (before, looked_on):
        for read in readers:
            with pytest.raises(CorruptDataError, match=r"repaired since.*open it again") as told:
                read(store)
            assert key in str(told.value) and told.value.details["path"]
    opened = open_store(made.path)
    sent = pickle.loads(pickle.dumps(before.activations["mlp.1"]))
    for rows in (readers[0](opened), sent[start:stop]):
        np.testing.assert_array_equal(rows, noisy["mlp.1"])
    # Damaged once more: to open it again is no remedy for who has done so.
    flip(Path(made.path) / key)
    with pytest.raises(CorruptDataError) as damaged:
        readers[0](opened)
    assert "repaired" not in str(damaged.value)


def test_pooled_rows_too_say_that_they_were_repaired(make: Make) -> None:
    made = make(pools=("mean",))
    (spec,) = [s for (name, _), s in made.arrays.pooled.items() if name == "mlp.1"]
    start, stop = made.covered(0, POOLED)
    rows = {
        of: np.ones((stop - start, s.shape[1]), np.float32) for of, s in made.arrays.pooled.items()
    }
    empty = np.diff(made.documents.starts(start, stop)) == 0
    for values in rows.values():
        values[empty] = np.nan
    commit_pooled(made, 0, rows, attempt="test")
    before = open_store(made.path)
    np.testing.assert_array_equal(before.pooled["mlp.1"]["mean"][start:stop], rows["mlp.1", "mean"])
    flip(Path(made.path) / spec.key(0))
    rng, more = np.random.default_rng(3), np.float32(9)
    noisy = {  # compressed, they are longer
        of: np.where(rng.random(v.shape) < 0.5, v, np.nextafter(v, more)) for of, v in rows.items()
    }
    assert repair_pooled(open_store(made.path), 0, noisy, attempt="again").generation == 1
    with pytest.raises(CorruptDataError, match=r"repaired since.*open it again"):
        before.pooled["mlp.1"]["mean"][start:stop]


def test_a_receipt_that_a_repair_removed_is_followed_to_the_one_that_stands(make: Make) -> None:
    store = make()
    fill(store)
    before = open_store(store.path)
    assert before.missing() == []
    flip(Path(store.path) / receipt_key("extract", SHARD))
    receipt = repair_shard(open_store(store.path), SHARD, rows_of(store, SHARD), attempt="again")
    assert receipt.generation == 1
    assert before.receipt(SHARD) == receipt
    Path(store.path, receipt_key("extract", SHARD, 1)).unlink()
    with pytest.raises(NotExtractedError, match=f"shard {SHARD}"):
        open_store(store.path).receipt(SHARD)


def test_whole_arrays_are_kept_though_the_model_rounds_otherwise(make: Make) -> None:
    store = make()
    fill(store)
    kept = store.arrays.activations["resid_post.0"].key(SHARD)
    harmed = store.arrays.activations["mlp.1"].key(SHARD)
    whole = (Path(store.path) / kept).read_bytes()
    flip(Path(store.path) / harmed)
    receipt = repair_shard(store, SHARD, rows_of(store, SHARD, noise=1), attempt="again")
    assert (Path(store.path) / kept).read_bytes() == whole and receipt.generation == 1
    attempts = {record.key: record.attempt for record in receipt.objects}
    assert attempts[kept] == "test" and attempts[harmed] == "again"
    assert verify(open_store(store.path), full=True).ok


def test_another_model_repairs_nothing(make: Make) -> None:
    store = make()
    fill(store)
    harmed = Path(store.path) / store.arrays.activations["mlp.1"].key(SHARD)
    flip(harmed)
    before = contents(store)
    other = {name: -values for name, values in rows_of(store, SHARD).items()}
    with pytest.raises(ConflictError, match="look at the model"):
        repair_shard(store, SHARD, other, attempt="other")
    assert set(contents(store)) == set(before)  # no receipt of another generation


def test_another_model_replaces_nothing_before_it_is_refused(make: Make) -> None:
    """Rows that cannot be read must not become rows that can, and are another model's."""
    store = make()
    fill(store)
    flip(Path(store.path) / store.arrays.activations["mlp.1"].key(SHARD))
    before = contents(store)
    other = {name: -values for name, values in rows_of(store, SHARD).items()}
    with pytest.raises(ConflictError, match="look at the model"):
        repair_shard(store, SHARD, other, attempt="other")
    assert contents(store) == before


def test_a_worker_that_saw_an_earlier_generation_repairs_on_from_the_last(make: Make) -> None:
    store = make()
    fill(store)
    flip(Path(store.path) / store.arrays.activations["mlp.1"].key(SHARD))
    second = open_store(store.path)
    assert second.receipts().generations == {}
    # The first one writes its receipt, and dies before it can say so.
    repair_shard(open_store(store.path), SHARD, rows_of(store, SHARD, noise=1), attempt="first")
    receipt = repair_shard(second, SHARD, rows_of(store, SHARD), attempt="second")
    assert receipt.generation == 1 and verify(open_store(store.path), full=True).ok


def test_a_writer_that_slept_removes_nothing_of_a_repair(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It froze between writing and reading back; what it reads is what a repair has put there."""
    store = make()
    spec, real = store.arrays.activations["mlp.1"], writer.object_digest
    key, slept = spec.key(SHARD), []

    def sleep_once(objects: Objects, asked: str) -> tuple[int, str]:
        if asked == key and not slept:
            slept.append(asked)
            fill(open_store(store.path))
            flip(Path(store.path) / key)
            rows = rows_of(store, SHARD, noise=1)
            repair_shard(open_store(store.path), SHARD, rows, attempt="again")
        return real(objects, asked)

    monkeypatch.setattr(writer, "object_digest", sleep_once)
    late = ArrayWriter(open_store(store.path), SHARD, "late")
    late.write(spec, rows_of(store, SHARD)["mlp.1"])
    assert slept and verify(open_store(store.path), full=True).ok


def test_a_file_that_the_disk_cannot_read_is_put_back(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    fill(store)
    bad = store.arrays.activations["mlp.1"].key(SHARD)
    before, read = contents(store), LocalObjects.read
    unreadable = {bad: (Path(store.path) / bad).stat().st_ino}

    def failing(self: LocalObjects, key: str, *rest: Any) -> bytes:
        if key in unreadable and self.path(key).stat().st_ino == unreadable[key]:
            raise RunFaultError("Input/output error", errno=errno.EIO)
        return read(self, key, *rest)

    monkeypatch.setattr(LocalObjects, "read", failing)
    (damage,) = verify(open_store(store.path), full=True).damages
    assert damage.key == bad
    repair_shard(open_store(store.path), SHARD, rows_of(store, SHARD), attempt="again")
    assert contents(store) == before and verify(open_store(store.path), full=True).ok


def test_documents_that_cannot_be_read_are_no_shards_damage(make: Make) -> None:
    store = make()
    fill(store)
    flip(Path(store.path) / store.arrays.documents["token_id"].key(0))
    damages = verify(open_store(store.path), full=True).damages
    assert store.arrays.documents["token_id"].key(0) in {d.key for d in damages}
    assert all(d.shard is None for d in damages), "computing these again would mend nothing"


@pytest.mark.parametrize("harm", [flip, truncate, empty])
def test_a_damaged_receipt_is_written_anew_from_the_bytes(
    make: Make, harm: Callable[[Path], None]
) -> None:
    store = make()
    fill(store)
    before = contents(store)
    key = receipt_key("extract", SHARD)
    harm(Path(store.path) / key)
    with pytest.raises(CorruptDataError):
        open_store(store.path).receipt(SHARD)
    receipt = repair_shard(store, SHARD, rows_of(store, SHARD, noise=1), attempt="again")
    opened = open_store(store.path)
    assert receipt.generation == 1 and opened.receipt(SHARD) == receipt
    after = contents(store)
    assert set(before) - set(after) == {key}  # what could not be read is gone
    assert all(after[k] == before[k] for k in before if k != key)  # rows adopted as they lie
    assert opened.missing() == [] and verify(opened, full=True).ok


def test_a_superseded_receipt_is_looked_at_too(make: Make) -> None:
    store = make()
    fill(store)
    flip(Path(store.path) / store.arrays.activations["mlp.1"].key(SHARD))
    repair_shard(store, SHARD, rows_of(store, SHARD, noise=1), attempt="again")
    flip(Path(store.path) / receipt_key("extract", SHARD))
    (damage,) = verify(open_store(store.path), full=True).damages
    assert (damage.key, damage.job, damage.shard) == (receipt_key("extract", 1), "extract", 1)
    assert open_store(store.path).receipt(SHARD).generation == 1  # nobody reads it


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("key", [PLAN_KEY, PLAN_COPY_KEY, "zarr.json"])
def test_the_plan_comes_back(make: Make, key: str, harm: Callable[[Path], None]) -> None:
    store = make()
    fill(store)
    before = contents(store)
    harm(Path(store.path) / key)
    assert repair_plan(store.objects) == [key]
    assert contents(store) == before
    assert repair_plan(store.objects) == []


def test_a_plan_lost_twice_says_so(make: Make) -> None:
    store = make()
    for key in (PLAN_KEY, PLAN_COPY_KEY):
        flip(Path(store.path) / key)
    with pytest.raises(CorruptDataError, match="neither"):
        repair_plan(store.objects)


def test_two_whole_plans_are_not_chosen_between(make: Make) -> None:
    store, other = make(), make(seed=8, name="other.zarr")
    shutil.copy(Path(other.path) / PLAN_KEY, Path(store.path) / PLAN_COPY_KEY)
    with pytest.raises(CorruptDataError, match="two different plans"):
        repair_plan(store.objects)
    assert [d.key for d in verify(open_store(store.path)).damages] == [PLAN_COPY_KEY]


def labelled() -> Columns:
    columns = words_columns(0, 60, 20)
    columns.label = np.arange(60, dtype=np.int32) % 2
    columns.label_names = ("ja", "nein")
    return columns


@pytest.mark.slow
def test_metadata_comes_back_from_the_plan_and_documents_from_another_planning(make: Make) -> None:
    columns = labelled()
    store, again = make(columns=columns), make(columns=columns, name="again.zarr")
    fill(store)
    before = contents(store)
    planned = sorted(store.plan_file.objects)
    for key in planned:
        if key == "zarr.json":
            continue
        for harm in (flip, Path.unlink):
            harm(Path(store.path) / key)
            opened = open_store(store.path)
            written = repair_metadata(opened, [key])
            names_alone = key in ("documents/label/zarr.json", "documents/source/zarr.json")
            assert written == ([key] if key.endswith("zarr.json") and not names_alone else [])
            if not written:
                assert put_back_from(opened, again, [key]) == [key]
            assert contents(store) == before, key


def test_another_planning_of_other_documents_puts_nothing_back(make: Make) -> None:
    store, other = make(), make(words_seed=5, name="other.zarr")
    key = store.arrays.documents["text"].key(0)
    flip(Path(store.path) / key)
    harmed = (Path(store.path) / key).read_bytes()
    assert put_back_from(store, other, [key]) == []
    assert (Path(store.path) / key).read_bytes() == harmed


def test_verify_looks_again_only_at_what_was_found(make: Make) -> None:
    store = make()
    fill(store)
    keys = [store.arrays.activations["mlp.1"].key(s) for s in (0, 2)]
    flip(Path(store.path) / keys[0])
    flip(Path(store.path) / keys[1])
    found = verify(open_store(store.path), full=True).damages
    first = [d for d in found if d.shard == 0]
    again = verify(open_store(store.path), full=True, only=first)
    assert again.damages == tuple(first)
    assert again.n_objects == len(store.receipt(0).objects)
    repair_shard(store, 0, rows_of(store, 0), attempt="again")
    assert verify(open_store(store.path), full=True, only=first).ok
    gone = Damage("of/no/such", "an orphan", orphan=True)
    assert verify(open_store(store.path), full=True, only=[gone]).ok


def test_what_is_called_an_orphan_must_be_one(make: Make) -> None:
    """Findings may be old, of another store, or a stranger's; orphans are removed by their key."""
    store = make()
    fill(store)
    keys = ["ledger/plan.json", store.arrays.activations["mlp.1"].key(0), "documents/text/c/0"]
    said = [Damage(key, "an orphan", orphan=True) for key in [*keys, "junk"]]
    assert verify(open_store(store.path), full=True, only=said).ok
    (Path(store.path) / "junk").write_text("really")
    (found,) = verify(open_store(store.path), full=True, only=said).damages
    assert (found.key, found.orphan) == ("junk", True)
