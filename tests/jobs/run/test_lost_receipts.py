"""A finished store knows that it was finished: a lost receipt is named, refused and mended."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import state_machine as machine
from support.oracle import Snapshot, contents, files
from support.workers import fake_store, make_fake

import actlas
from actlas.jobs.cli.app import cli
from actlas.jobs.run.run import run_extraction
from actlas.pipeline.options import RunOptions
from actlas.store.errors import CorruptDataError, NotExtractedError
from actlas.store.format import layout
from actlas.store.ledger.finished import COPIES, finished_copy_key, finished_key, forget_finished
from actlas.store.store import open_store
from actlas.store.verify.verify import verify

RUN = RunOptions.model_validate({"executor": "inline"})
NOTES = ("extract", "pooled", "encoded.made", "indexed.made", "extremes.resid_post.0")


def call(*arguments: object, code: int) -> str:
    """Run ``actlas``, which must exit with ``code``."""
    found = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert found.exit_code == code, found.output
    return found.output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 256)
        patch.setattr(layout, "COLUMN_CHUNK_ROWS", 8)
        patch.setattr(machine, "BLOCK_CODES", 1 << 22)  # as a repair cuts them
        path = tmp_path_factory.mktemp("whole") / "run.zarr"
        machine.save_dictionary(path)
        machine.live(path)
        machine.planned_again(patch, path)
        yield path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run.zarr"


@pytest.mark.slow
def test_every_lost_receipt_is_damage_and_is_mended(whole: Path, path: Path) -> None:
    before = contents(whole)
    receipts = [k for k in files(whole) if k.startswith("ledger/receipts/") and "finished" not in k]
    one_of_each_job = {key.split("/")[2]: key for key in sorted(receipts)}
    assert len(one_of_each_job) == 7
    for job, key in one_of_each_job.items():
        (path / key).unlink()
        for full in (False, True):
            report = verify(open_store(path), full=full)
            assert any(key in str(damage) for damage in report.damages), key
            assert not report.missing and not report.missing_pooled
        made, again = machine.mend(str(path))
        shard = int(key.split("/")[3][:8])
        assert made.exit_code == 0 and not made.left, made
        assert again == ([(job, shard)] if job in ("extract", "pooled") else [])
        assert verify(open_store(path), full=True).ok
        machine.gather(str(path), "again")  # a repair drops extremes, and does not make them
        assert contents(path) == before, key
        assert Snapshot(path).broken_promises() == []


def test_all_receipts_of_a_job_lost_at_once(path: Path) -> None:
    shutil.rmtree(path / "ledger/receipts/extract")
    report = verify(open_store(path))
    lost = {d.key for d in report.damages if d.job == "extract"}
    assert lost == {f"ledger/receipts/extract/{n:08d}.json" for n in range(report.n_lost)}
    assert report.n_lost == open_store(path).plan.n_shards
    with pytest.raises(CorruptDataError, match="and 2 more"):
        open_store(path).statistics(machine.HOOKPOINT)


def receipts_of(path: Path) -> set[str]:
    return {k for k in files(path) if k.startswith("ledger/receipts/")}


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True], ids=["today's", "of an earlier version"])
def test_a_store_knows_that_it_was_finished_without_any_receipt(
    whole: Path, path: Path, earlier: bool
) -> None:
    """The folder of receipts is left out of a restored backup: nothing of it is there."""
    shutil.rmtree(path / "ledger/receipts")
    unnamed: set[str] = set()
    if earlier:  # no record says that a job was finished: what was made from it shows that
        shutil.rmtree(path / COPIES)
        singles = ("indexed.made", f"extremes.{machine.HOOKPOINT}")  # nothing is made from these
        unnamed = {k for k in receipts_of(whole) if "finished" in k or k.split("/")[2] in singles}
    for full in (False, True):
        report = verify(open_store(path), full=full)
        assert {d.key for d in report.damages} == receipts_of(whole) - unnamed
        assert report.n_lost > 3 and not report.missing and not report.missing_pooled
    opened = open_store(path)
    reading: list[Callable[[], object]] = [
        lambda: opened.activations[machine.HOOKPOINT][:],
        lambda: opened.statistics(machine.HOOKPOINT),
        lambda: [*actlas.batches(opened, machine.HOOKPOINT, batch_size=8)],
        lambda: opened.pooled[machine.HOOKPOINT]["mean"][:],
        lambda: opened.features(machine.FEATURES).codes(0, 4),
    ]
    for read in reading:
        with pytest.raises(CorruptDataError, match="its receipt is lost"):
            read()
    call("verify", path, code=4)
    assert "lost" in call("status", path, code=0)
    made, _ = machine.mend(str(path))
    assert made.exit_code == 0 and not made.left, made
    machine.go_on(str(path))  # what a repair does not make: extremes
    assert verify(open_store(path), full=True).ok
    assert contents(path) == contents(whole)
    assert Snapshot(path).broken_promises() == []


@pytest.mark.slow
def test_a_lost_receipt_is_named_whatever_else_is_lost(whole: Path, path: Path) -> None:
    """Every pair of jobs, the records that a job was finished among them."""
    receipts = {key.split("/")[2]: key for key in sorted(receipts_of(whole))}.values()
    for pair in itertools.combinations(receipts, 2):
        for key in pair:
            (path / key).unlink()
        found = {damage.key for damage in verify(open_store(path)).damages}
        assert found >= {*pair}, pair
        for key in pair:
            shutil.copy(whole / key, path / key)


def test_what_was_planned_or_begun_is_not_accused(tmp_path: Path) -> None:
    """Workers were killed after they wrote their first shard, and before its receipt."""
    path = tmp_path / "run.zarr"
    store = machine.plan_store(str(path), "first")
    assert verify(open_store(path), full=True).ok
    for shard in range(store.n_shards() - 1):
        machine.commit_one(str(path), "first", shard)
    shutil.rmtree(path / "ledger/receipts")
    report = verify(open_store(path), full=True)
    assert report.ok and not report.n_lost and len(report.missing) == store.n_shards()
    with pytest.raises(NotExtractedError, match="are not extracted yet"):
        open_store(path).activations[machine.HOOKPOINT][:]
    machine.commit_all(str(path), "second")
    assert verify(open_store(path), full=True).ok


def test_the_command_line_says_what_is_lost(path: Path) -> None:
    (path / "ledger/receipts/extract/00000001.json").unlink()
    (path / "ledger/receipts/extremes.resid_post.0/00000000.json").unlink()
    said = call("verify", path, code=4)
    assert "ledger/receipts/extract/00000001.json, rows [32, 64): its receipt is lost" in said
    assert "ledger/receipts/extremes.resid_post.0/00000000.json: its receipt is lost" in said
    found = json.loads(call("verify", path, "--json", code=4))
    assert not found["complete"] and not found["missing"] and not found["ok"]
    said = call("status", path, code=0)
    assert "the receipts of 1: all shards were done once" in said
    assert "extremes.resid_post.0: 0 of 1 table, the receipt of table 0 is lost" in said
    assert f"next: actlas repair {path}" in said
    found = json.loads(call("status", path, "--json", code=0))
    assert found["shards"]["lost"] == [1] and not found["complete"]
    assert {job["job"]: job["lost"] for job in found["derived"] if "lost" in job} == {
        f"extremes.{machine.HOOKPOINT}": [0]
    }
    call("info", path, code=4)
    call("contexts", path, "--hookpoint", machine.HOOKPOINT, "--unit", 0, code=4)


@pytest.mark.slow
def test_a_damaged_record_of_a_finished_job_is_written_again(whole: Path, path: Path) -> None:
    for job in NOTES:
        key = finished_key(job)
        (path / key).write_bytes((path / key).read_bytes()[:-9])
        assert key in {damage.key for damage in verify(open_store(path)).damages}
        made, again = machine.mend(str(path))
        assert made.exit_code == 0 and not again, made
        assert contents(path) == contents(whole)


def test_a_driver_records_that_a_job_is_finished_and_no_more_than_once(tmp_path: Path) -> None:
    store = fake_store(tmp_path)
    path = Path(store.path)
    run_extraction(open_store(path), RUN, make_fake)
    note = path / finished_key("extract")
    assert json.loads(note.read_bytes())["record"]["stop"] == store.plan.n_shards
    assert verify(open_store(path), full=True).ok
    before = files(path)
    run_extraction(open_store(path), RUN, make_fake)
    assert files(path) == before
    forget_finished(store.objects, "extract")  # as in a store of an earlier version
    run_extraction(open_store(path), RUN, make_fake)
    assert note.exists()  # the next run of the job records it
    assert note.read_bytes() == (path / finished_copy_key("extract")).read_bytes()


def test_a_finished_store_of_an_earlier_version_that_cannot_be_written_is_as_before(
    tmp_path: Path, capfd: Any
) -> None:
    store = fake_store(tmp_path)
    path = Path(store.path)
    run_extraction(open_store(path), RUN, make_fake)
    forget_finished(store.objects, "extract")
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(30, "Read-only file system")

        patch.setattr(os, "link", refuse)
        outcome = run_extraction(open_store(path), RUN, make_fake)
    assert outcome.exit_code == 0
    assert "extract is finished, which could not be recorded" in capfd.readouterr().err


def test_a_store_that_was_never_finished_is_only_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    machine.plan_store(str(path), "first")
    for shard in (0, 2):
        machine.commit_one(str(path), "first", shard)
    report = verify(open_store(path), full=True)
    assert report.ok and report.missing == (1,) and not report.n_lost
    assert "lost" not in json.loads(call("status", path, "--json", code=0))["shards"]
