"""Derived jobs through the executors: an index, extremes, and a kind that only a test knows."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.derived import MEMORY_BYTES, plant_faults
from support.features import Relu, made_store, true_codes
from support.jobs import attempted, both, options, plant, wait_until
from support.norms import NORMS, write_norms
from support.processes import pending
from support.workers import open_gate

import actlas
from actlas.analysis.features.encode import Encoder, create_features, finish
from actlas.jobs.cli.app import cli
from actlas.jobs.derived.extremes import gather, units_of
from actlas.jobs.run.repair import repair
from actlas.jobs.run.status import status_of
from actlas.store.errors import (
    EXIT_DAMAGE,
    EXIT_DONE,
    EXIT_QUARANTINE,
    EXIT_RESUME,
    InterruptedRunError,
    QuarantineError,
)
from actlas.store.format.schema import Receipt
from actlas.store.ledger import job_kinds
from actlas.store.ledger.derived import group_of
from actlas.store.ledger.job_kind import JobKind
from actlas.store.ledger.job_kinds import ENCODE, EXTREMES, INDEX, INDEXED
from actlas.store.store import Store
from actlas.store.verify.verify import verify

HOOKPOINT = "resid_post.0"
N_FEATURES = 40


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose tokens are encoded, and a set of features that nothing indexed."""
    store = made_store(tmp_path_factory.mktemp("encoded") / "run.zarr")
    sae: Any = Relu(24, N_FEATURES, HOOKPOINT)
    features = create_features(store, sae, "made", "nowhere")
    encoder = Encoder(store, features, sae)
    for shard in range(store.plan.n_shards):
        encoder.extract(shard, attempt="test")
    finish(store, features, "test")
    return Path(store.path)


@pytest.fixture(scope="module")
def whole(encoded: Path) -> Store:
    """The same store, indexed and gathered in this process, nothing going wrong."""
    path = encoded.with_name("whole.zarr")
    shutil.copytree(encoded, path)
    with pytest.MonkeyPatch.context() as patch:
        plant_faults(patch)
        actlas.index_sae(path, "made", max_memory_bytes=MEMORY_BYTES)
        units_of(actlas.open(path), HOOKPOINT)
    return actlas.open(path)


@pytest.fixture
def store(encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    shutil.copytree(encoded, tmp_path / "run.zarr")
    plant_faults(monkeypatch)
    return actlas.open(tmp_path / "run.zarr")


def written(store: Store, kind: JobKind, subject: str) -> dict[int, Any]:
    """What the receipts of a job say was written, but for the names of attempts."""
    receipts = kind.receipts(store, subject)
    found = {}
    for receipt in receipts.read_many(sorted(receipts.done())):
        group = group_of(receipt)
        folder = kind.folder.format(subject=subject, unit=receipt.shard)
        assert group.startswith(f"{folder}-")
        objects = {r.key.removeprefix(group): (r.n_bytes, r.xxh3) for r in receipt.objects}
        if kind is INDEXED:
            assert objects.pop("/zarr.json")  # it lists the groups of attempts
        found[receipt.shard] = (receipt.start, receipt.stop, objects)
    return found


def check_index(store: Store, whole: Store) -> None:
    """The index is that of an undisturbed run in one process, byte for byte."""
    assert written(store, INDEX, "made") == written(whole, INDEX, "made")
    assert written(store, INDEXED, "made") == written(whole, INDEXED, "made")
    truth = true_codes(store, Relu(24, N_FEATURES, HOOKPOINT), HOOKPOINT)
    assert (store.features("made").count == (truth > 0).sum(axis=0)).all()
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed


def blocks(whole: Store) -> list[int]:
    found = sorted(INDEX.receipts(whole, "made").done())
    assert len(found) > 4
    return found


@both
def test_an_index_whatever_happens_to_its_workers(
    executor: str, store: Store, whole: Store, tmp_path: Path
) -> None:
    first, second, *_, last = blocks(whole)
    faults = {second: ["raise"], last: ["raise", "raise"]}
    if executor == "ray":
        faults |= {first: ["die"], second: ["raise", "die"]}
    plant(tmp_path, faults)
    result = call("sae", "index", store.path, "--sae", "made", "--executor", executor)
    assert result.exit_code == EXIT_DONE, result.output
    assert "-> next: actlas contexts" in result.stdout
    tried = attempted(tmp_path)
    assert tried.count(last) == 3 and set(tried) == set(blocks(whole))
    check_index(actlas.open(store.path), whole)


@both
def test_extremes_whatever_happens_to_their_worker(
    executor: str, store: Store, whole: Store, tmp_path: Path
) -> None:
    plant(tmp_path, {0: ["raise", "die"] if executor == "ray" else ["raise", "raise"]})
    asked = ("contexts", store.path, "--hookpoint", HOOKPOINT, "--unit", 3, "--executor", executor)
    result = call(*asked)
    assert result.exit_code == EXIT_DONE, result.output
    assert "the first time only" in result.stderr
    assert attempted(tmp_path) == [0, 0, 0]
    assert written(store, EXTREMES, HOOKPOINT) == written(whole, EXTREMES, HOOKPOINT)
    units, expected = actlas.open(store.path).units(HOOKPOINT), whole.units(HOOKPOINT)
    assert units.top(3, 20).t.tolist() == expected.top(3, 20).t.tolist()
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed


def test_a_pass_makes_blocks_as_long_as_they_come_in_turn(
    store: Store, whole: Store, tmp_path: Path
) -> None:
    """In one process each pass is made once: as many as the plan has."""
    made = call("sae", "index", store.path, "--sae", "made", "--json")
    once = json.loads(made.stdout)
    assert once["n_passes"] == 1 and once["n_blocks"] == len(blocks(whole))
    again = json.loads(call("sae", "index", store.path, "--sae", "made", "--json").stdout)
    assert again["n_passes"] == 0
    volatile = ("n_passes", "seconds")
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in once.items() if k not in volatile
    }


@both
def test_blocks_in_quarantine(executor: str, store: Store, whole: Store, tmp_path: Path) -> None:
    first, poison, *_ = blocks(whole)
    plant(tmp_path, {poison: ["raise"] * 3})
    n_workers = 2 if executor == "ray" else 1
    run = {"executor": executor, "workers": n_workers, "max_memory_bytes": MEMORY_BYTES}
    with pytest.raises(QuarantineError, match=f"blocks in quarantine \\({poison}\\)") as error:
        actlas.index_sae(store, "made", **run)
    assert error.value.exit_code == EXIT_QUARANTINE
    assert error.value.details["shards"] == [poison]
    assert attempted(tmp_path).count(poison) == 3
    done = INDEX.receipts(store, "made").done()
    assert done == {*blocks(whole)} - {poison} and first in done
    [job] = [job for job in status_of(store).derived if job.job == "index.made"]
    assert (job.all, job.quarantined, job.complete) == (None, [poison], False)
    told = call("status", store.path).stdout
    assert f"index.made: {len(done)} blocks, in quarantine: {poison} -> actlas sae index" in told
    refused = call("sae", "index", store.path, "--sae", "made")
    assert refused.exit_code == EXIT_QUARANTINE and "--retry-quarantined" in refused.stdout
    assert not store.features("made").indexed
    as_json = call("sae", "index", store.path, "--sae", "made", "--json")
    assert json.loads(as_json.stdout)["error"]["kind"] == "quarantine"
    actlas.index_sae(store, "made", retry_quarantined=True, **run)
    check_index(actlas.open(store.path), whole)


def test_extremes_in_quarantine(store: Store, whole: Store, tmp_path: Path) -> None:
    plant(tmp_path, {0: ["raise"] * 3})
    asked = ("contexts", store.path, "--hookpoint", HOOKPOINT, "--unit", 3)
    result = call(*asked)
    assert result.exit_code == EXIT_QUARANTINE and "table" in result.stderr
    assert "the last fault: RuntimeError: shard 0 is poison" in result.stderr
    told = call("status", store.path).stdout
    assert "extremes.resid_post.0: 0 of 1 table, in quarantine: 0 -> actlas contexts" in told
    assert "--retry-quarantined" in told
    assert call(*asked).exit_code == EXIT_QUARANTINE and attempted(tmp_path) == [0, 0, 0]
    assert call(*asked, "--retry-quarantined").exit_code == EXIT_DONE
    assert written(store, EXTREMES, HOOKPOINT) == written(whole, EXTREMES, HOOKPOINT)


@both
def test_damaged_input_stops_extremes_and_an_index_at_once(
    executor: str, store: Store, whole: Store, tmp_path: Path
) -> None:
    """Every attempt would meet the same damage: no unit is charged for it."""
    contexts = ("contexts", store.path, "--hookpoint", HOOKPOINT, "--unit", 3)
    index = ("sae", "index", store.path, "--sae", "made")
    rows = store.arrays.activations[HOOKPOINT].key(2)
    with flipped(Path(store.path) / rows):
        result = call(*contexts, "--executor", executor)
    assert result.exit_code == EXIT_DAMAGE, result.output
    start, stop = store.shard_range(2)
    assert f"{rows}, rows [{start}, {stop})" in result.stderr and "crc32c" in result.stderr
    assert attempted(tmp_path) == [0]
    assert call(*contexts).exit_code == EXIT_DONE
    assert written(store, EXTREMES, HOOKPOINT) == written(whole, EXTREMES, HOOKPOINT)
    codes = f"{group_of(ENCODE.receipts(store, 'made').read(1))}/indices/c/0"
    with flipped(Path(store.path) / codes):
        result = call(*index, "--executor", executor)
    assert result.exit_code == EXIT_DAMAGE and codes in result.stderr, result.output
    assert call(*index).exit_code == EXIT_DONE
    check_index(actlas.open(store.path), whole)
    assert not list(Path(store.path).glob("ledger/quarantine/*/*"))


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    data = path.read_bytes()
    place = len(data) // 3
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    yield
    path.write_bytes(data)


@pytest.mark.slow
def test_a_killed_index_goes_on(
    store: Store, whole: Store, tmp_path: Path, drive: Callable[..., Popen[str]]
) -> None:
    plant(tmp_path, {blocks(whole)[3]: ["gate"] * 9})  # no driver comes further
    receipts = Path(store.path) / "ledger/receipts/index.made"
    for wanted in (1, 3):
        process = drive(store.path, module="support.derived")
        wait_until(
            lambda wanted=wanted: receipts.exists() and len(list(receipts.iterdir())) >= wanted
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path.name: path.read_bytes() for path in receipts.iterdir()}
    assert len(kept) == 3
    plant(tmp_path)
    actlas.index_sae(store, "made", max_memory_bytes=MEMORY_BYTES)
    assert all((receipts / name).read_bytes() == data for name, data in kept.items())
    check_index(actlas.open(store.path), whole)


@pytest.mark.slow
def test_a_stopped_index_goes_on(
    store: Store, whole: Store, tmp_path: Path, drive: Callable[..., Popen[str]]
) -> None:
    plant(tmp_path, {blocks(whole)[2]: ["gate"]}, slow_s=0.3)
    process = drive(store.path, module="support.derived")
    wait_until(lambda: len(attempted(tmp_path)) >= 3)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not pending(process.pid, signal.SIGINT))
    open_gate(tmp_path)
    _, told = process.communicate()
    assert "KeyboardInterrupt: stopped: " in told and "blocks left" in told, told
    assert 3 <= len(INDEX.receipts(store, "made").done()) < len(blocks(whole))
    plant(tmp_path)
    actlas.index_sae(store, "made", max_memory_bytes=MEMORY_BYTES)
    check_index(actlas.open(store.path), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_single_pass_at_once(
    number: signal.Signals, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signalled:
        def extract(self, shard: int, *, attempt: str) -> Receipt:
            signal.raise_signal(number)
            raise AssertionError("the pass goes on after the signal")

    asked = ("contexts", store.path, "--hookpoint", HOOKPOINT, "--unit", 3)
    with monkeypatch.context() as patch:
        patch.setattr(actlas.jobs.derived.extremes, "open_gatherer", lambda *_, **__: Signalled())
        result = call(*asked)
    assert result.exit_code == EXIT_RESUME and "stopped" in result.stderr
    assert not list(Path(store.path).glob("ledger/quarantine/*/*"))
    assert call(*asked).exit_code == EXIT_DONE


@both
def test_a_kind_that_one_file_defines(executor: str, tmp_path: Path) -> None:
    """Through the executors, verify, status and repair, which no one told of it."""
    store = made_store(tmp_path / "run.zarr")
    run = options(executor)
    plant(tmp_path, {1: ["raise"] * 3})
    outcome = write_norms(store, HOOKPOINT, run)
    assert (outcome.exit_code, outcome.quarantined) == (EXIT_QUARANTINE, (1,)), outcome
    with pytest.raises(QuarantineError):
        outcome.require_done()
    n = store.plan.n_shards
    told = call("status", store.path).stdout
    assert f"norms.resid_post.0: {n - 1} of {n} shards, in quarantine: 1 -> actlas norms" in told
    assert verify(store, full=True).ok
    killed = Path(store.path) / "norms" / HOOKPOINT / f"{n - 1:08d}-0123456789ab/norm/c/0"
    killed.parent.mkdir(parents=True)
    killed.write_bytes(b"of an attempt whose worker was killed beside a failing shard")
    again = run.model_copy(update={"retry_quarantined": True})
    outcome = write_norms(store, HOOKPOINT, again)
    assert outcome.line == f"{outcome.state}: {outcome.made} -> next: look at them"
    assert outcome.state == "done" and "x 1 norm, " in outcome.made
    assert f"norms.resid_post.0: {n} of {n} shards\n" in call("status", store.path).stdout
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed and not report.missing
    check_repair(store, run, tmp_path)


def check_repair(store: Store, run: Any, tmp_path: Path) -> None:
    """A flipped byte, a plain group that is gone, and what a killed attempt left."""
    receipt = NORMS.receipts(store, HOOKPOINT).read(2)
    file = Path(store.path) / group_of(receipt) / "norm/c/0"
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.write_bytes(data)
    left = file.parents[2] / "00000003-0123456789ab/norm/c/0"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"left")
    (Path(store.path) / "norms/zarr.json").unlink()
    stray = Path(store.path) / "norms/notes.txt"
    stray.write_text("of nobody")
    report = verify(store, full=True)
    assert report.unclaimed == (left.relative_to(store.path).as_posix(),)
    found = {damage.key: damage for damage in report.damages}
    key = file.relative_to(store.path).as_posix()
    assert set(found) == {key, "norms/zarr.json", "norms/notes.txt"}
    assert (found[key].job, found[key].shard) == ("norms.resid_post.0", 2)
    assert (found[key].start, found[key].stop) == store.shard_range(2)
    stray.unlink()
    made = repair(store.path, executor=run.executor, workers=run.workers)
    assert made.exit_code == EXIT_DONE and made.derived == ("norms.resid_post.0",), made
    store = actlas.open(store.path)
    assert verify(store, full=True).ok
    assert written(store, NORMS, HOOKPOINT)[2][2].items() >= {
        ("/norm/c/0", next((r.n_bytes, r.xxh3) for r in receipt.objects if r.key == key))
    }


def test_what_cannot_be_made_again_is_left_and_tried_by_the_next_repair(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    assert write_norms(store, HOOKPOINT, options()).exit_code == EXIT_DONE
    receipt = NORMS.receipts(store, HOOKPOINT).read(2)
    (Path(store.path) / group_of(receipt) / "norm/c/0").write_bytes(b"")
    plant(tmp_path, {2: ["raise"] * 4})
    made = repair(store.path)
    assert made.exit_code == 4 and "could not be recomputed: done except for" in made.left[0].what
    plant(tmp_path)
    assert repair(store.path).exit_code == EXIT_DONE
    assert verify(actlas.open(store.path), full=True).ok


def test_a_kind_is_found_in_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the room of derived jobs is enough: it is imported when a store asks for it."""
    import actlas.jobs.derived

    monkeypatch.setattr(job_kinds, "_KINDS", dict(job_kinds._KINDS))
    job_kinds._import_room.cache_clear()
    (tmp_path / "shuffle_of_test.py").write_text(
        "from actlas.store.ledger.job_kinds import JobKind, register\n"
        "KIND = register(JobKind('shuffle_of_test', 'shard', ('extract',), "
        "'shuffled/{subject}/{unit:08d}', lambda s, _: 7, 'tokens'))\n"
    )
    paths = [*actlas.jobs.derived.__path__, str(tmp_path)]
    monkeypatch.setattr(actlas.jobs.derived, "__path__", paths)
    kind, subject = job_kinds.kind_of("shuffle_of_test.resid_post.0")
    assert kind is not None and subject == "resid_post.0"
    assert kind.root == "shuffled" and job_kinds.is_root("shuffled")
    assert job_kinds.kind_of("of_a_later_version.x") == (None, "x")
    job_kinds._import_room.cache_clear()


def test_what_is_no_kind_is_refused() -> None:
    def kind(**changes: Any) -> JobKind:
        fields = {
            "name": "madeup",
            "unit": "shard",
            "inputs": ("extract",),
            "folder": "madeup/{subject}",
            "n_units": lambda _store, _subject: 1,
            "covers": "tokens",
        }
        return JobKind(**(fields | changes))

    for changes, words in (
        ({"name": "encode"}, "registered already"),
        ({"name": "a.b"}, "expected lower-case"),
        ({"name": "extract"}, "expected lower-case"),
        ({"folder": "rows/{subject}"}, "a folder of its own"),
        ({"folder": "{subject}/x"}, "a folder of its own"),
        ({"folder": "madeup/x"}, "a folder of its own"),
    ):
        with pytest.raises(ValueError, match=words):
            job_kinds.register(kind(**changes))
    assert job_kinds.register(INDEX) is INDEX


def test_the_job_of_a_later_version_is_verified_by_its_receipts(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    write_norms(store, HOOKPOINT, options())
    with pytest.MonkeyPatch.context() as patch:
        known = {name: kind for name, kind in job_kinds._KINDS.items() if kind is not NORMS}
        patch.setattr(job_kinds, "_KINDS", known)
        report = verify(store, full=True)
        plain = {"norms/zarr.json", "norms/resid_post.0/zarr.json"}
        assert {damage.key for damage in report.damages} == plain  # nothing else names them
        told = call("status", store.path).stdout
        assert f"norms.resid_post.0: {store.plan.n_shards} units\n" in told
        receipt = NORMS.receipts(store, HOOKPOINT).read(0)
        file = Path(store.path) / receipt.objects[-1].key
        file.write_bytes(file.read_bytes()[:-1])
        assert any("truncated" in damage.what for damage in verify(store).damages)


def test_blocks_follow_each_other_within_a_pass(whole: Store) -> None:
    from actlas.analysis.features.index_plan import plan_index, totals_of

    path = Path(whole.path).with_name("fresh.zarr")
    shutil.copytree(Path(whole.path).with_name("run.zarr"), path)
    store = actlas.open(path)
    features = store.features("made")
    counts = totals_of(store, features).count
    for n_workers, memory in itertools.product((1, 3, 100), (1, MEMORY_BYTES, 1 << 30)):
        plan = plan_index(
            store,
            features,
            counts,
            block_codes=500,
            memory_bytes=memory,
            n_workers=n_workers,
        )
        edges = plan.edges.tolist()
        assert [a for a, _ in plan.passes] == [0, *(b for _, b in plan.passes[:-1])]
        assert plan.passes[-1][1] == N_FEATURES
        starts = {a for a, _ in plan.passes}
        assert plan.follows() == {
            b: a for a, b in itertools.pairwise(edges[:-1]) if b not in starts
        }
        for block in plan.blocks:
            number, lo, hi = plan.rest_of_pass(block)
            assert lo == block and plan.passes[number][0] <= lo < hi == plan.passes[number][1]
        if memory == 1 << 30:
            most = max(np.add.reduceat(counts, edges[:-1]))
            codes = [counts[a:b].sum() for a, b in plan.passes]
            assert max(codes) <= max(most, -(-counts.sum() // n_workers))


def test_gathering_again_does_nothing(store: Store, tmp_path: Path) -> None:
    assert gather(store, HOOKPOINT, options()).exit_code == EXIT_DONE
    again = gather(store, HOOKPOINT, options())
    assert again.exit_code == EXIT_DONE and "were stored already" in again.line
    assert attempted(tmp_path) == [0]
    with pytest.raises(InterruptedRunError):
        type(again)(75, "stopped", "nothing").require_done()
