"""What every test may use: the shared real data, where it is at hand.

Temporary files lie in memory where there is room: there an fsync is free, and every shard of the
hundreds that the tests write has several, each of milliseconds on a disk. That the right calls are
made is proved by counting them (``support.crash``), not by a disk. ``ACTLAS_TESTS_FOLDER=/tmp`` has
them lie there.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import shutil
import tempfile
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pytest
from support import shapes

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30
"""Beside what Ray takes there. All tests together leave less than one."""
_FOLDER = "ACTLAS_TESTS_FOLDER"


def _begin_folder() -> tuple[Path, int] | None:
    """Have this session's files lie in memory; return its folder, and what holds it."""
    if given := os.environ.get(_FOLDER):  # ours, in a process that a session has started
        tempfile.tempdir = given
        return None
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        return None
    for left in MEMORY.glob("actlas-pytest-*"):
        with contextlib.suppress(OSError):  # in use, or another user's
            if time.time() - left.stat().st_mtime > 60:
                os.close(_hold(left))
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix="actlas-pytest-", dir=MEMORY))
    tempfile.tempdir = os.environ[_FOLDER] = os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
    return folder, _hold(folder)


def _hold(folder: Path) -> int:
    """Lock a folder for as long as this process lives, or fail where another holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


CLUSTER, RAY = "the cluster", "Ray"
"""Groups of tests, each run by one process: Ray takes ten seconds and more to start."""
LONG = (
    *("jobs/run/test_real_models", "benchmarks/test_benchmarks_run"),
    *("store/verify/test_hostile_stores", "deploy/test_slurm", "chaos/test_s3"),
    *("jobs/run/test_pooled", "jobs/executors/test_executors", "jobs/cli/test_sae"),
    *("chaos/test_system_calls", "analysis/localizer/test_localize", "chaos/test_state_machine"),
    *("jobs/cli/test_submit", "jobs/cli/test_sae_train", "jobs/run/test_main_job"),
)
"""Begun after the groups, in this order, so that at the end no process is left alone with one."""
_PASSED = pytest.StashKey[bool]()
_BEGUN = _begin_folder()
shapes.install()


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # it would begin the files of the fewest tests last


def _group(item: pytest.Item) -> str | None:
    """Return the group that a test belongs to, and mark it: ``-m "not ray"`` leaves those out."""
    fixtures = getattr(item, "fixturenames", ())
    where = getattr(item, "callspec", None)
    if "cluster" in fixtures or (where and where.params.get("where") == "ray"):
        group = CLUSTER
    elif "ray_started" in fixtures or (where and where.params.get("executor") == "ray"):
        group = RAY
    else:
        return None
    item.add_marker(pytest.mark.ray)
    item.add_marker(pytest.mark.xdist_group(group))
    return group


def _turn(item: pytest.Item) -> int:
    """Return when a test is begun: the smaller the sooner."""
    if (group := _group(item)) is not None:
        return (CLUSTER, RAY).index(group) - 2
    name = item.nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")
    return LONG.index(name) if name in LONG else len(LONG)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share out files, as ``--dist loadfile`` does, but each group of tests as one."""
    if config.getoption("dist") != "loadgroup":
        return None
    scheduling = importlib.import_module("xdist.scheduler").LoadFileScheduling(config, log)
    file_of = scheduling._split_scope

    def scope_of(nodeid: str) -> str:
        _, at, group = nodeid.rpartition("@")
        return group if at and group in (CLUSTER, RAY) else str(file_of(nodeid))

    scheduling._split_scope = scope_of
    return scheduling


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_PASSED] = exitstatus == 0


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the memory back, but for what a failure may be seen in: the next session does that."""
    if _BEGUN is not None and config.stash.get(_PASSED, False):
        # Last of all: multiprocessing has a folder of its own in it, and removes that before.
        Finalize(None, shutil.rmtree, [_BEGUN[0]], {"ignore_errors": True}, exitpriority=-1000)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text, stimuli and models: ``$ACTLAS_SHARED``, or ``shared`` beside us."""
    root = Path(__file__).resolve().parents[1]
    places = [Path(os.environ.get("ACTLAS_SHARED", "")), root / "shared", root.parent / "shared"]
    for place in places:
        if (place / "models" / "stories260K").is_dir():
            return place
    pytest.skip("the shared data is not here: set ACTLAS_SHARED to its folder")
