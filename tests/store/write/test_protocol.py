"""The write protocol: first writer wins, receipts last, faults told apart."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stores import create, fill, plan_for, race, truth, words_columns

from actlas.store import errors
from actlas.store.errors import (
    ActlasError,
    ConflictError,
    LeaseHeldError,
    NonFiniteError,
    RunFaultError,
    StoreExistsError,
)
from actlas.store.format import layout
from actlas.store.ledger import lease
from actlas.store.objects import local, processes
from actlas.store.objects.local import LocalObjects
from actlas.store.shards.writer import ShardWriter
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify
from actlas.store.write import array_writer as writer
from actlas.store.write.commit import commit_shard
from actlas.store.write.matching import first_mismatch

Make = Callable[..., Store]


def part_of(store: Store, shard: int) -> dict[str, Any]:
    start, stop = store.shard_range(shard)
    t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
    return {name: truth(store, name)[t] for name in store.activations}


def test_the_first_writer_wins_and_the_second_adopts(make: Make) -> None:
    store = make()
    first = part_of(store, 0)
    receipt = commit_shard(store, 0, first, attempt="one")
    other = {name: (rows.astype("f4") + 1).astype(rows.dtype) for name, rows in first.items()}
    assert commit_shard(store, 0, other, attempt="two") == receipt
    for name, rows in first.items():
        stored = open_store(store.path).activations[name][0:256]
        assert stored.tobytes() == rows.tobytes()


def test_a_receipt_describes_what_lies_there_whoever_wrote_it(make: Make) -> None:
    """An earlier attempt died after its arrays and before its receipt; bits then differ."""
    store = make()
    first = part_of(store, 0)
    commit_shard(store, 0, first, attempt="one")
    (Path(store.path) / "ledger/receipts/extract/00000000.json").unlink()
    other = {name: (rows.astype("f4") * 1.001).astype(rows.dtype) for name, rows in first.items()}
    receipt = commit_shard(store, 0, other, attempt="two")
    assert {r.attempt for r in receipt.objects} == {"before two"}
    report = verify(open_store(store.path), full=True)
    assert report.ok, report.damages
    mean = open_store(store.path).statistics("mlp.1").mean
    np.testing.assert_allclose(mean, first["mlp.1"].astype("f8").mean(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("compression", ["none", "fast"])
@pytest.mark.parametrize("damage", ["zeros", "noise", "one row"])
def test_what_a_dead_attempt_left_is_adopted_only_if_it_is_right(
    make: Make, compression: str, damage: str
) -> None:
    """A well-formed file under the final name, no receipt, and other rows in it than ours."""
    store = make(compression=compression, dtype="float32")
    right = part_of(store, 0)
    wrong = right["mlp.1"].copy()
    if damage == "zeros":
        wrong[40:60] = 0
    elif damage == "noise":
        wrong[:] = np.random.default_rng(5).standard_normal(wrong.shape)
    else:
        wrong[7] = wrong[8]
    spec = store.arrays.activations["mlp.1"]
    assert store.objects.create(spec.key(0), ShardWriter(spec, wrong).parts())
    with pytest.raises(ConflictError, match="Remove that file"):
        commit_shard(store, 0, right, attempt="two")
    assert store.done() == frozenset()
    store.objects.delete(spec.key(0))
    commit_shard(store, 0, right, attempt="three")
    assert open_store(store.path).activations["mlp.1"][0:256].tobytes() == right["mlp.1"].tobytes()


def test_a_worker_that_slept_while_its_store_was_replaced_writes_nothing(make: Make) -> None:
    old = make(seed=1)
    part = part_of(old, 0)
    shutil.rmtree(old.path)
    new = make(seed=1, dtype="float32")
    with pytest.raises(ConflictError, match="was replaced"):
        commit_shard(old, 0, part, attempt="zombie")
    assert not new.done() and not list(Path(new.path).glob("activations/*/c/*"))


def test_a_worker_of_another_plan_leaves_no_activations(make: Make, monkeypatch: Any) -> None:
    """Columns are written and compared first, also where the change of plan went unseen."""
    old = make(seed=1)
    part = part_of(old, 0)
    shutil.rmtree(old.path)
    new = make(seed=2)
    fill(new, shards=range(1))
    (Path(new.path) / "ledger/receipts/extract/00000000.json").unlink()
    for path in Path(new.path).glob("activations/*/c/0/0"):
        path.unlink()
    monkeypatch.setattr(Store, "require_same_plan", lambda self: None)
    with pytest.raises(ConflictError, match="other rows than this plan gives"):
        commit_shard(old, 0, part, attempt="zombie")
    assert not list(Path(new.path).glob("activations/*/c/0/0"))


def test_bytes_that_do_not_read_back_are_removed_and_stop_the_run(
    make: Make, monkeypatch: Any
) -> None:
    pass

    store = make()
    monkeypatch.setattr(writer, "object_digest", lambda objects, key: (1, "0" * 32))
    with pytest.raises(RunFaultError, match="disk or the memory is at fault"):
        commit_shard(store, 0, part_of(store, 0), attempt="one")
    assert not list(Path(store.path).glob("activations/*/c/*/0")) and not store.done()


def test_row_columns_of_another_plan_are_a_conflict(make: Make) -> None:
    store = make()
    fill(store)
    other = make(name="other.zarr", seed=8)
    (Path(other.path) / "rows/doc_idx/c").mkdir(parents=True)
    (Path(other.path) / "rows/doc_idx/c/0").write_bytes(
        (Path(store.path) / "rows/token_id/c/0").read_bytes()
    )
    with pytest.raises(ConflictError):
        commit_shard(other, 0, part_of(other, 0), attempt="one")
    assert other.missing() == list(range(other.plan.n_shards))


def test_nonfinite_values_are_counted_or_refused(make: Make) -> None:
    store = make(dtype="float32")
    part = part_of(store, 0)
    part["mlp.1"][3, 5] = np.nan
    part["mlp.1"][4, 5] = -np.inf
    with pytest.raises(NonFiniteError, match="unit 5"):
        commit_shard(store, 0, part, attempt="one", on_nonfinite="refuse")
    assert not list((Path(store.path) / "rows" / "token_id").glob("c/*"))
    receipt = commit_shard(store, 0, part, attempt="one")
    assert receipt.n_nonfinite == {"resid_post.0": 0, "mlp.1": 2}
    assert store.statistics("mlp.1").n[5] == 254


@pytest.mark.parametrize("at", range(12))
def test_a_full_disk_is_a_run_fault_and_harms_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store = make()
    commit_shard(store, 0, part_of(store, 0), attempt="one")
    calls = itertools.count()
    real = local._write_durably

    def full(path: Path, parts: Any) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, parts)

    monkeypatch.setattr(local, "_write_durably", full)
    if at >= 8:  # three columns, two hookpoints, their statistics, the receipt
        commit_shard(store, 1, part_of(store, 1), attempt="one")
        return
    with pytest.raises(RunFaultError, match="free some space") as caught:
        commit_shard(store, 1, part_of(store, 1), attempt="one")
    assert caught.value.exit_code == 75
    assert store.done() == {0}
    monkeypatch.undo()
    commit_shard(store, 1, part_of(store, 1), attempt="two")
    assert verify(open_store(store.path), full=True).ok


def test_a_planner_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    columns = words_columns(0, 10, 10)

    def full(path: Path, parts: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(local, "_write_durably", full)
    with pytest.raises(RunFaultError):
        create(tmp_path / "run.zarr", plan_for(columns), columns)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    columns = words_columns(0, 10, 10)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    store = create(tmp_path / "run.zarr", plan_for(columns), columns)
    taken = {
        "mine": "not empty and is not a store",
        "file": "got a file",
        "file/x.zarr": "is a file",
        "run.zarr": "continues it",
    }
    for name, words in taken.items():
        with pytest.raises(StoreExistsError, match=words):
            create(tmp_path / name, plan_for(columns), columns)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert open_store(store.path).plan == store.plan


@pytest.mark.slow
def test_of_many_writers_one_wins_and_the_object_is_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, out = context.Event(), context.Queue()
    workers = [context.Process(target=race, args=(str(tmp_path), i, start, out)) for i in range(6)]
    for worker in workers:
        worker.start()
    start.set()
    answers = dict(out.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    (winner,) = [value for value, won in answers.items() if won]
    assert (tmp_path / "a" / "b").read_bytes() == bytes([winner]) * 100_000
    assert list((tmp_path / "ledger" / "staging").iterdir()) == []


def test_a_lost_answer_of_link_is_recognized(tmp_path: Path, monkeypatch: Any) -> None:
    real = os.link

    def lossy(a: Any, b: Any) -> None:
        real(a, b)
        raise OSError(errno.EIO, "the answer was lost")

    monkeypatch.setattr(os, "link", lossy)
    assert LocalObjects(tmp_path).create("x", [b"ours"])


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def none(a: Any, b: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    with pytest.raises(RunFaultError, match="no hard links"):
        LocalObjects(tmp_path).create("x", [b"ours"])


def test_keys_stay_inside_the_store(tmp_path: Path) -> None:
    for key in ("../x", "/etc/passwd", "a/../../b"):
        with pytest.raises(ValueError, match="inside"):
            LocalObjects(tmp_path).path(key)


def test_errors_survive_pickling_and_keep_their_kind() -> None:
    tree = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ActlasError)]
    assert len({c.kind for c in tree}) == len(tree)
    for cls in tree:
        error = pickle.loads(pickle.dumps(cls("what to do", path="x", rows=(1, 2))))
        assert type(error) is cls
        assert str(error) == "what to do" and error.details == {"path": "x", "rows": (1, 2)}


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    here = LocalObjects(tmp_path)
    with lease.hold(here):
        assert lease.holder(here)["pid"] == os.getpid()  # type: ignore[index]
        with pytest.raises(LeaseHeldError, match="one driver at a time"), lease.hold(here):
            pass
    assert lease.holder(here) is None
    with lease.hold(here):
        pass


def test_holds_inside_a_hold_around_them_are_that_one(tmp_path: Path) -> None:
    here, other = LocalObjects(str(tmp_path / "a")), LocalObjects(str(tmp_path / "b"))
    with lease.hold(here, reentrant=True, heartbeat_s=0.02) as outer:
        with (
            lease.hold(other),  # another store's is its own
            lease.hold(here, run_state=lambda: {"part": 1}) as inner,
        ):
            assert inner is outer
            deadline = time.monotonic() + 30
            while (beat := lease.last_heartbeat(here)) is None or beat.run != {"part": 1}:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert lease.holder(here) is not None  # the inner's end is not the outer's
        refused: list[BaseException] = []

        def from_a_thread() -> None:
            with pytest.raises(LeaseHeldError) as caught, lease.hold(here):
                pass
            refused.append(caught.value)

        thread = threading.Thread(target=from_a_thread)
        thread.start()
        thread.join()
        assert len(refused) == 1
        here.create("ledger/lease/00000009.json", [b"{}"])  # taken over while this one stood still
        assert outer.lost.wait(60)
        with pytest.raises(LeaseHeldError, match="took over"), lease.hold(here):
            pass
    here.create("ledger/lease/00000009.released", [b"released"])
    with lease.hold(here) as after:
        assert after is not outer


def test_the_lease_of_a_killed_driver_here_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from actlas.store.ledger import lease\n"
        "from actlas.store.objects.local import LocalObjects\n"
        f"with lease.hold(LocalObjects({str(tmp_path)!r})):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    here = LocalObjects(tmp_path)
    with pytest.raises(LeaseHeldError), lease.hold(here):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    began = time.monotonic()
    with lease.hold(here):
        assert time.monotonic() - began < 30, "the lease of the dead was waited for"


@pytest.mark.slow
def test_a_holder_elsewhere_is_waited_for_until_it_stands_still(
    tmp_path: Path, monkeypatch: Any
) -> None:
    here = LocalObjects(tmp_path)
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "elsewhere")
    said: list[str] = []
    with lease.hold(here, heartbeat_s=0.05):
        monkeypatch.undo()
        with pytest.raises(LeaseHeldError), lease.hold(here, log=said.append, timeout_s=60):
            pass
    assert "elsewhere" in said[0]
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "elsewhere")
    stuck = lease._acquire(here, said.append, 1, heartbeat_s=1000)
    monkeypatch.undo()
    with lease.hold(here, timeout_s=0.5) as taken:
        assert taken.number == stuck.number + 1
    stuck._stop.set()


def test_a_release_that_fails_hides_no_error_and_keeps_nobody_out(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """A notebook whose disk was full must not be refused by its own process ever after."""
    here = LocalObjects(tmp_path)

    def full(path: Path, parts: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(KeyError, match="the real one"), lease.hold(here):  # noqa: PT012
        monkeypatch.setattr(local, "_write_durably", full)
        raise KeyError("the real one")
    monkeypatch.undo()
    assert lease.holder(here) is None
    with lease.hold(here):
        pass


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    here = LocalObjects(tmp_path)
    here.create("a/b", [b"whole"])
    (tmp_path / "ledger/staging/dead.part").write_bytes(b"half")
    assert here.sweep() == 1
    assert here.read("a/b") == b"whole" and not list(here.names("ledger/staging"))


def test_a_row_that_another_attempt_left_with_nan_is_not_adopted(make: Make) -> None:
    store = make(compression="none", dtype="float32")
    rows = part_of(store, 0)
    name = next(iter(rows))
    for bad in (np.nan, np.inf):
        left = {key: values.copy() for key, values in rows.items()}
        left[name][7, 1] = bad
        assert first_mismatch(left[name], rows[name], 1e-2) == 7
        assert first_mismatch(rows[name], left[name], 1e-2) == 7
        assert (
            first_mismatch(left[name], left[name], 1e-2) is None
        )  # the same kernel overflows alike
        left[name][3] *= 1.5
        again = left[name].copy()
        again[3] /= 1.5
        assert first_mismatch(left[name], again, 1e-2) == 3
