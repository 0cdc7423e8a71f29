"""A run on S3 whose server fails: rows are counted against a run in a folder without faults."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import s3 as faulty
from support.jobs import options, plant
from support.oracle import Tally, broken_promises, contents, tally
from support.processes import Driver
from support.s3 import FAULTS, S3, Request
from support.stores import create, plan_for, words_columns
from support.workers import make_fake

from actlas.jobs.run.run import run_extraction
from actlas.jobs.scheduler.faults import FaultBudget
from actlas.store.errors import EXIT_DONE, EXIT_RESUME, RunFaultError
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify
from chaos.record import Chaos

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]
Count = Callable[[str], Tally]


def planned(path: str | Path, n_documents: int = 40) -> Store:
    columns = words_columns(3, n_documents, 20)
    return create(path, plan_for(columns, shard_rows=64), columns)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What lies in a folder when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("oracle")
    store = planned(folder / "run.zarr")
    run_extraction(store, options(), make_fake)
    return contents(folder / "run.zarr")


@pytest.fixture
def count(s3: S3, oracle: dict[str, object], tmp_path: Path) -> Count:
    """Fetch a store by boto3, past the proxy, and count its rows."""

    def counted(name: str) -> Tally:
        folder = tmp_path / "fetched"
        found = {key: s3.body(name, key) for key in s3.keys(name)}
        for key, body in found.items():
            file = folder / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
        got = tally(contents(folder), oracle)
        shutil.rmtree(folder)
        broken = broken_promises(found)
        return got if not broken else got + Tally(wrong=len(broken))

    return counted


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where made-up workers look for their faults: a URL has no folder beside it."""
    monkeypatch.setenv("ACTLAS_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("ACTLAS_REQUEST_TIMEOUT_S", "0.4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evenly(chaos: Chaos, s3: S3, share: float, n: int) -> faulty.Plan:
    """Let a share of all requests meet a fault, each kind as often, up to ``n`` times."""
    lock = threading.Lock()

    def plan(request: Request) -> str | None:
        with lock:
            left = [k for k in FAULTS if faulty.fits(k, request.method) and s3.counts[k] < n]
            if not left or chaos.rng.random() >= share:
                return None
            return min(left, key=lambda k: (s3.counts[k], chaos.rng.random()))

    return plan


def work(path: str, first: int) -> None:
    """One of four workers: it takes every fourth shard, and its neighbour's after that."""
    worker = make_fake(path, options())
    n_shards = worker.store.plan.n_shards
    mine = [*range(first, n_shards, 4), *range((first + 1) % 4, n_shards, 4)]
    for shard in mine:
        worker.extract(shard, attempt=f"worker {first}")


def test_faults(chaos: Chaos, s3: S3, count: Count) -> None:
    """Planned, extracted and proved while requests fail; each kind of fault as often as asked."""
    n, rounds, found = chaos.count(20, 200), 0, Tally()
    s3.stall_s = 1.0
    s3.counts.clear()
    while min(s3.counts[kind] for kind in FAULTS) < n:
        name = f"chaos/faults-{rounds}.zarr"
        s3.plan = evenly(chaos, s3, 0.4, n)
        store = planned(s3.url(name))
        with ThreadPoolExecutor(4) as workers:
            list(workers.map(work, [store.path] * 4, range(4)))
        report = verify(open_store(store.path), full=True)
        s3.plan = lambda _: None
        assert report.ok, report.damages
        found += count(name)
        rounds += 1
    hits = {kind: s3.counts[kind] for kind in FAULTS}
    chaos.record("S3 faults", sum(hits.values()), **found._asdict(), stores=rounds, **hits)
    assert found == Tally()


def test_killed_drivers(chaos: Chaos, s3: S3, count: Count, home: Path) -> None:
    """A driver is killed at a random time, the same command goes on, faults all the while."""
    n, found, killed = chaos.count(1, 20), Tally(), 0
    s3.stall_s = 1.0
    for i in range(n):
        name = f"chaos/killed-{i}.zarr"
        store = planned(s3.url(name))
        plant(home, slow_s=0.05)
        (home / "attempts.txt").unlink(missing_ok=True)
        s3.plan = faulty.often(0.05, chaos.rng.randrange(1 << 30))
        environment = {**s3.environment(), "ACTLAS_TEST_FOLDER": str(home)}
        driver = Driver(home, store.path, **environment)
        wanted = chaos.rng.randrange(1, 8)
        while driver.code() is None and len(store.done()) < wanted:
            time.sleep(0.02)
        time.sleep(chaos.rng.random() * 0.2)
        killed += driver.kill()
        before = store.done()
        again = Driver(home, store.path, **environment)
        assert again.wait() == EXIT_DONE, again.said()
        assert "holds this store" not in again.said(), "a dead driver's lease was waited for"
        s3.plan = lambda _: None
        assert store.missing() == []
        attempted = [line.split()[0] for line in (home / "attempts.txt").read_text().splitlines()]
        twice = {int(a) for a in attempted if attempted.count(a) > 1}
        assert not twice & before, "a shard that was done was done again"
        assert verify(open_store(store.path), full=True).ok
        found += count(name)
    chaos.record("S3, driver killed", killed, injected=n, **found._asdict())
    assert found == Tally()


def test_killed_workers(chaos: Chaos, s3: S3, count: Count, home: Path) -> None:
    """On Ray, worker processes die in the middle of a shard, faults all the while."""
    n, found, deaths = chaos.count(1, 10), Tally(), 0
    s3.stall_s = 1.0
    for i in range(n):
        name = f"chaos/workers-{i}.zarr"
        store = planned(s3.url(name))
        victims = chaos.rng.sample(range(store.plan.n_shards), 3)
        plant(home, {shard: ["die"] for shard in victims})
        (home / "attempts.txt").unlink(missing_ok=True)
        s3.plan = faulty.often(0.05, chaos.rng.randrange(1 << 30))
        environment = {**s3.environment(), "ACTLAS_TEST_FOLDER": str(home)}
        driver = Driver(
            home, store.path, "--executor", "ray", "--workers", "2", fresh=True, **environment
        )
        assert driver.wait(240) == EXIT_DONE, driver.said()
        s3.plan = lambda _: None
        deaths += len(victims)
        assert store.missing() == []
        assert verify(open_store(store.path), full=True).ok
        found += count(name)
    chaos.record("S3, worker killed", deaths, **found._asdict())
    assert found == Tally()


@pytest.mark.parametrize(
    ("what", "kind"), [("store outage", "503"), ("expired credential", "expired")]
)
def test_outage_in_mid_run(
    chaos: Chaos,
    s3: S3,
    count: Count,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    kind: str,
) -> None:
    """No shard is charged, the exit code says to run it again, and then all is done."""
    monkeypatch.setenv("ACTLAS_RETRY_S", "0.5")
    n, found, stopped = chaos.count(1, 20), Tally(), 0
    for i in range(n):
        name = f"chaos/{kind}-{i}.zarr"
        planned(s3.url(name))
        store = open_store(s3.url(name))
        # One charge would be enough for the quarantine.
        run = options(max_task_faults=1, max_process_deaths=1)
        s3.plan = faulty.always(kind, after=chaos.rng.randrange(20, 250))
        try:
            run_extraction(store, run, make_fake)
        except RunFaultError as error:
            assert error.exit_code == EXIT_RESUME
            stopped += 1
        s3.plan = lambda _: None
        assert FaultBudget(store.objects, "extract", run).quarantined() == {}
        resumed = run_extraction(open_store(store.path), run, make_fake)
        assert resumed.exit_code == EXIT_DONE
        found += count(name)
    chaos.record(f"{what} in mid-run (S3)", stopped, injected=n, **found._asdict())
    assert found == Tally()
    assert stopped, "no run was hit"
