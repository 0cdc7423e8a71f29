"""What every test may use: the shared real data, where it is at hand.

Temporary files lie in memory where there is room: there an fsync is free, and every shard of the
hundreds that the tests write has several, each of milliseconds on a disk. That the right calls are
made is proved by counting them (``support.crash``), not by a disk. ``ACTLAS_TESTS_FOLDER=/tmp`` has
them lie there.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import shutil
import sys
import tempfile
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pytest

# Several processes at work keep the cores busy; before numpy is loaded, which reads it then.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from support import shapes

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Hundreds of processes import the package, and each would compile it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

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


CLUSTER = frozenset(
    f"tests/chaos/test_{name}.py"
    for name in ("drivers", "fields", "nodes", "poison", "workers", "zombies")
)
"""These share one Ray cluster of two machines, which takes 12 s to start: one process runs them."""
RAY = frozenset(
    f"tests/jobs/{name}.py"
    for name in (
        *("cli/test_sae", "derived/test_derived", "executors/test_executors"),
        *("monitor/test_prometheus", "scheduler/test_worker_loop"),
    )
)
"""These share one local Ray, as do :data:`MODELS_ON_RAY`. Other files have one of their own."""
MODELS_ON_RAY = frozenset(
    f"tests/jobs/run/test_{name}.py" for name in ("main_job", "pooled", "real_models")
)
"""Real models, with and without Ray."""
GROUPS = {"the cluster": CLUSTER, "Ray": RAY, "models on Ray": MODELS_ON_RAY}
LONG = (
    "benchmarks/test_benchmarks_run",
    *("store/verify/test_hostile_stores", "deploy/test_slurm", "chaos/test_s3"),
    *("compatibility/test_both_ways", "compatibility/test_fixture"),
    *("chaos/test_system_calls", "analysis/localizer/test_localize", "chaos/test_state_machine"),
    *("jobs/cli/test_submit", "jobs/cli/test_sae_train"),
)
"""Begun after the groups, in this order, so that at the end no process is left alone with one."""
_PASSED = pytest.StashKey[bool]()
_BEGUN = _begin_folder()
shapes.install()
gc.disable()  # nearly all that is imported stays


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # it would begin the files of the fewest tests last
    if config.getoption("--hypothesis-profile") == "ci":
        _draw_the_same_examples_everywhere()


def _draw_the_same_examples_everywhere() -> None:
    """Have property tests use no constants from whichever of our modules happen to be loaded.

    Hypothesis draws such constants even where it is not to be random. Which examples a test gets
    would depend on the tests that its process ran before, hence on how fast the other ones are.
    """
    providers = importlib.import_module("hypothesis.internal.conjecture.providers")
    providers._get_local_constants = providers.Constants


def _mark_ray(item: pytest.Item) -> None:
    """Mark a test that runs on Ray: ``-m "not ray"`` leaves it out."""
    fixtures = getattr(item, "fixturenames", ())
    where = getattr(item, "callspec", None)
    chosen = [where.params.get("where"), where.params.get("executor")] if where else []
    on_cluster = "cluster" in fixtures
    if on_cluster or "ray_started" in fixtures or "ray" in chosen:
        item.add_marker(pytest.mark.ray)
    if on_cluster and _file(item.nodeid) not in CLUSTER:
        raise pytest.UsageError(f"{item.nodeid} uses the cluster: add its file to CLUSTER")


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _scope(nodeid: str) -> str:
    """Return the name of the group of tests that one process runs: a file's, or several files'."""
    file = _file(nodeid)
    return next((name for name, files in GROUPS.items() if file in files), file)


def _turn(item: pytest.Item) -> int:
    """Return when a test is begun: the smaller the sooner."""
    _mark_ray(item)
    scope = _scope(item.nodeid)
    if scope in GROUPS:
        return list(GROUPS).index(scope) - len(GROUPS)
    name = scope.removeprefix("tests/").removesuffix(".py")
    return LONG.index(name) if name in LONG else len(LONG)


def pytest_collection_finish() -> None:
    gc.freeze()  # later collections need not look at what the imports have made
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share out files, as ``--dist loadfile`` does, but several that share a Ray as one."""
    if config.getoption("dist") != "loadfile":
        return None
    scheduling = importlib.import_module("xdist.scheduler").LoadFileScheduling(config, log)
    scheduling._split_scope = _scope
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
