"""Writing safetensors files where there is no room, no right or no place, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actlas.analysis.sae.tensor_file import save_tensors
from actlas.analysis.sae.train import checkpoint
from actlas.store.errors import EXIT_RESUME, EXIT_USAGE, RunFaultError

TENSORS = {"W": torch.arange(1 << 18, dtype=torch.float32)}
STATE = dict.fromkeys(["options", "step", "tokens", "batches", "points", "seconds"], 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_with_75_and_leaves_the_old_file(small_disk: Path) -> None:
    small = {"W": TENSORS["W"][:100].clone()}
    checkpoint.save_state(small_disk, small, STATE)
    with pytest.raises(RunFaultError, match=r"No space left.*free some space") as caught:
        checkpoint.save_state(small_disk, TENSORS, STATE)
    assert caught.value.exit_code == EXIT_RESUME
    assert str(caught.value).startswith(f"{small_disk}/{checkpoint.STATE_FILE}: ")
    assert [path.name for path in small_disk.iterdir()] == [checkpoint.STATE_FILE]
    assert torch.equal(load_file(small_disk / checkpoint.STATE_FILE)["W"], small["W"])


def test_a_place_that_takes_nothing_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (Path("/proc/sae"), tmp_path / "file" / "sae", tmp_path / ("x" * 300)):
        for do in (
            lambda place=place: checkpoint.try_folder(place),
            lambda place=place: checkpoint.save_state(place, TENSORS, STATE),
        ):
            with pytest.raises(RunFaultError, match=str(place)) as caught:
                do()
            assert caught.value.exit_code == EXIT_USAGE
            assert ".part" not in str(caught.value) and ".tmp" not in str(caught.value)


def test_what_a_killed_training_left_is_swept_and_keeps_nobody_out(tmp_path: Path) -> None:
    """Also what safetensors itself calls a file while it writes it, in earlier versions beside."""
    child = os.fork()
    if child == 0:
        try:
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            save_tensors({"W": torch.zeros(4)}, tmp_path / checkpoint.STATE_FILE)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and all(map(checkpoint.is_leftover, left))
    for name in (".tmpu7FQEa", f".{checkpoint.STATE_FILE}.part"):
        assert checkpoint.is_leftover(tmp_path / name)
    assert not checkpoint.is_leftover(tmp_path / "thesis.txt")
    checkpoint.try_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
