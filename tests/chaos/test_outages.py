"""The surroundings fail in the middle of a run: exit 75, no shard charged, then resumed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs import options
from support.runs import FEW, MANY, Size, planned, undisturbed
from support.workers import fake_store

from actlas.jobs.scheduler.faults import FaultBudget
from actlas.store.errors import EXIT_DONE, EXIT_RESUME, EXIT_USAGE
from actlas.store.store import Store
from chaos.conftest import Oracles, Start
from chaos.count import NONE, Oracle, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos

SAID = {
    "ENOSPC": ("disk full", "No space left on device", "free some space"),
    "EDQUOT": ("quota used up", "Disk quota exceeded", "raise the quota"),
    "EROFS": ("read-only file system", "Read-only file system", "mount it writable"),
    "EIO": ("disk that fails", "Input/output error", "look at the disk"),
    "ESTALE": ("file server gone", "Stale file handle", "look at the network and at the file"),
}
"""What each is called here, what the system says, and what the user is told to do."""
CALLS = {"write": 12, "fsync": 30, "link": 12}
"""Some calls of one shard."""


def n_charged(store: Store) -> int:
    """Return how many shards are in quarantine."""
    return len(FaultBudget(store.objects, "extract", options()).quarantined())


@pytest.mark.parametrize("code", SAID)
def test_the_system_refuses(
    chaos: Chaos, start: Start, oracles: Oracles, ground: Path, code: str
) -> None:
    name, reason, advice = SAID[code]
    wanted, size = chaos.count(2, 20), FEW if chaos.form == "short" else MANY
    store = planned(ground / "run", size)
    n_hit = n_other = 0
    while n_hit < wanted:
        call = chaos.rng.choice(sorted(CALLS))
        nth = chaos.rng.randint(1, 6 * CALLS[call])
        driver = start(store.path, ACTLAS_TEST_FAIL=f"{code}:{call}:{nth}")
        ended, said = driver.wait(), driver.said()
        assert store.missing(), "the store is done before the faults are: too few shards"
        good = reason in said and advice in said and "Traceback" not in said
        n_other += not (ended == (EXIT_USAGE if code == "EROFS" else EXIT_RESUME) and good)
        n_hit += 1
        assert n_other == 0, f"{ended} {call} {nth}\n{said}"
    charged = n_charged(store)
    last = start(store.path)
    assert last.wait() == EXIT_DONE, last.said()
    rows, said_of_it = oracles(size).count(store.path), complaints(store.path)
    chaos.record(f"{name} ({code}) in mid-run", n_hit, **rows._asdict(), shards_charged=charged)
    assert charged == 0
    assert (rows, said_of_it) == (NONE, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk(chaos: Chaos, start: Start, small_disk: Path, ground: Path) -> None:
    """Really full, and each time a little less so, until all is done."""
    size = Size(120, 64)
    expected = Oracle(undisturbed(ground / "undisturbed", size).path)
    store = fake_store(small_disk, *size, compression="none", dtype="float32")
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    n_ballast = free.f_bavail * free.f_frsize - 200_000
    n_full = charged = 0
    code, n_done = EXIT_RESUME, []
    while code == EXIT_RESUME:
        ballast.write_bytes(b"\0" * max(0, n_ballast))
        driver = start(store.path)
        code, said = driver.wait(), driver.said()
        n_done.append(len(store.done()))
        if code == EXIT_RESUME:
            n_full += 1
            assert "No space left on device" in said
            assert "Traceback" not in said
        charged += n_charged(store)
        ballast.unlink()
        n_ballast -= 150_000 if chaos.form == "short" else 60_000
    rows, said_of_it = expected.count(store.path), complaints(store.path)
    chaos.record("a small disk, really full", n_full, **rows._asdict(), shards_charged=charged)
    assert code == EXIT_DONE, said
    assert n_full > 1
    assert n_done == sorted(n_done)
    assert charged == 0
    assert (rows, said_of_it) == (NONE, [])
