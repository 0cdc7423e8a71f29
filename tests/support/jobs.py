"""What the tests of jobs share: planting faults, counting attempts, waiting."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actlas.pipeline.options import RunOptions
from support.workers import attempts

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])

both = pytest.mark.parametrize("executor", ["inline", "ray"], indirect=True)
"""Run a test on either executor."""


def options(executor: str = "inline", **more: object) -> RunOptions:
    return RunOptions.model_validate(
        {"executor": executor, "workers": 2 if executor == "ray" else 1, **more}
    )


def plant(folder: Path, shards: dict[int, list[str]] | None = None, **more: object) -> None:
    """Say what each attempt at a shard is to suffer: ``plant(folder, {3: ["raise"]})``."""
    body = {**{str(shard): faults for shard, faults in (shards or {}).items()}, **more}
    (folder / "faults.json").write_text(json.dumps(body))


def attempted(folder: Path) -> list[int]:
    """The shards that were attempted, in order."""
    return [int(line.split()[0]) for line in attempts(folder)]


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something to become true, or fail."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)
