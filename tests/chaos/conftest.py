"""The form of a session (``ACTLAS_CHAOS=short|long``), its seed, and the table that it prints."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from chaos.record import Chaos, Record, Session, table

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call":
        _record(item.config).settle(item.name, report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    record = _record(config)
    if not record.lines:
        return
    session = record.session
    terminalreporter.section(f"chaos, {session.form} form, seed {session.seed}")
    terminalreporter.write(table(list(record.lines.values())))
    if out := os.environ.get("ACTLAS_CHAOS_OUT"):
        record.write(Path(out))
        terminalreporter.write_line(f"written to {out}.md and .json")
