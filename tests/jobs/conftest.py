from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from support.jobs import PATHS, ROOT
from support.s3 import s3, s3_server  # noqa: F401 - fixtures
from support.workers import fake_store

from actlas.pipeline.options import RunOptions
from actlas.store.store import Store

os.environ["PYTHONPATH"] = PATHS  # for the processes that tests start, Ray's workers among them
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """One Ray for every test that runs its driver in this process."""
    from actlas.jobs.ray.cluster import connected

    with connected(RunOptions(executor="ray", workers=4)):
        yield


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> str:
    """An executor by name, its Ray started: see ``support.jobs.both``."""
    name: str = request.param
    if name == "ray":
        request.getfixturevalue("ray_started")
    return name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of 12 shards with a made-up model."""
    return fake_store(tmp_path)


@pytest.fixture
def drive() -> Iterator[Callable[..., Popen[str]]]:
    """Start drivers in processes of their own; whichever still live at the end are killed."""
    started: list[Popen[str]] = []

    def start(*arguments: str | Path, module: str = "support.drive") -> Popen[str]:
        process = Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdout=PIPE,
            stderr=PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
