"""The form of a session (``ACTLAS_CHAOS=short|long``), its seed, and the table that it prints."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster import LocalCluster
from support.crash import ram_folder
from support.jobs import PATHS
from support.processes import Driver, marked
from support.runs import Size, undisturbed
from support.s3 import s3, s3_server  # noqa: F401 - fixtures

from chaos.count import Oracle
from chaos.record import Chaos, Record, Session, table

os.environ["PYTHONPATH"] = PATHS  # for the processes that tests start
os.environ["PYTHONSAFEPATH"] = "1"

Oracles = Callable[[Size], Oracle]
"""Gives the undisturbed store of a size."""
Start = Callable[..., Driver]
"""Starts a driver: see :class:`support.processes.Driver`."""

_RECORD = pytest.StashKey[Record]()


def _record(config: pytest.Config) -> Record:
    if _RECORD not in config.stash:
        form = os.environ.get("ACTLAS_CHAOS", "short")
        if form not in ("short", "long"):
            raise pytest.UsageError(f"ACTLAS_CHAOS: got {form!r}, expected short or long")
        seed = int(os.environ.get("ACTLAS_CHAOS_SEED", "0"))
        arguments = config.invocation_params.args
        config.stash[_RECORD] = Record(
            Session.now("long" if form == "long" else "short", seed, arguments)
        )
    return config.stash[_RECORD]


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Chaos:
    """How often, at random how, and where to say what was found."""
    return Chaos(_record(request.config), request.node.name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """One Ray cluster of two machines for all tests, each of which leaves it with two."""
    with LocalCluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def oracles() -> Iterator[Oracles]:
    """The undisturbed store of each size."""
    with ram_folder() as ram:
        yield functools.cache(lambda size: Oracle(undisturbed(ram / str(size), size).path))


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder in memory, where syncing costs nothing: what dies here is not the machine."""
    with ram_folder() as ram:
        yield ram


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start drivers; whichever still live at the end are killed, with all that they started."""
    started: list[Driver] = []

    def begin(*arguments: str, **more: Any) -> Driver:
        started.append(Driver(tmp_path, *arguments, **more))
        return started[-1]

    yield begin
    for driver in started:
        driver.kill()
        for pid in marked(driver.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start_on(cluster: LocalCluster, start: Start) -> Start:
    """Start drivers on the cluster, as a user starts them."""

    def begin(*arguments: str) -> Driver:
        cluster.mend()
        where = ["--executor=ray", f"--address={cluster.address}"]
        return start(*arguments, *where, fresh=True, **cluster.environment)

    return begin


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    record = _record(item.config)
    if report.when == "call" and record.settle(item.name, report.outcome):
        _write(record)  # now: a long session may be killed
    return report


def _write(record: Record) -> str | None:
    if out := os.environ.get("ACTLAS_CHAOS_OUT"):
        record.write(Path(out))
    return out


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    record = _record(config)
    if not record.lines:
        return
    session = record.session
    terminalreporter.section(f"chaos, {session.form} form, seed {session.seed}")
    terminalreporter.write(table(list(record.lines.values())))
    if out := _write(record):
        terminalreporter.write_line(f"written to {out}.md and .json")
