"""A disk that is full, in the middle of a run: exit 75, no shard charged, then resumed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.jobs import options
from support.workers import check_whole, fake_store

from actlas.jobs.ledger import Ledger
from actlas.store.errors import EXIT_DONE, EXIT_RESUME
from actlas.store.store import Store, open_store

Drive = Callable[..., "subprocess.Popen[str]"]


def extract(drive: Drive, path: str) -> tuple[int, str]:
    """Run the command line in a process of its own; exit code and what it said on stderr."""
    process = drive(path)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def check_nothing_charged(store: Store) -> None:
    assert Ledger(store.objects, "extract", options()).quarantined() == {}


@pytest.mark.parametrize("full", ["write:1", "write:9", "fsync:20", "link:4", "link:15"])
def test_no_space_at_any_step(
    store: Store, drive: Drive, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("ACTLAS_TEST_FULL", full)
        code, said = extract(drive, store.path)
    assert code == EXIT_RESUME, said
    assert "No space left on device" in said
    assert "free some space" in said
    assert "Traceback" not in said
    check_nothing_charged(store)
    before = store.done()
    code, said = extract(drive, store.path)
    assert code == EXIT_DONE, said
    assert store.done() > before
    check_whole(store)


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


def test_a_small_disk(small_disk: Path, drive: Drive) -> None:
    store = fake_store(small_disk, n_documents=120, compression="none", dtype="float32")
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - 300_000))
    code, said = extract(drive, store.path)
    assert code == EXIT_RESUME, said
    assert "No space left on device" in said
    assert "Traceback" not in said
    check_nothing_charged(store)
    assert 0 < len(store.done()) < store.plan.n_shards
    ballast.unlink()
    code, said = extract(drive, store.path)
    assert code == EXIT_DONE, said
    check_whole(open_store(store.path))
