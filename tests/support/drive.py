"""A driver in a process of its own, to be killed: ``python -m support.drive STORE key=value ...``.

Its surroundings are faulty where the environment says so:

- ``ACTLAS_TEST_FAIL=ENOSPC:write:7``: from the seventh ``os.write`` of the store on, that error.
- ``ACTLAS_TEST_HOST=elsewhere``: its lease says that it runs on another machine.
- ``ACTLAS_TEST_STANDSTILL=0.5``: a lease from elsewhere is waited for that many seconds, and its
  own beats a fifth of it.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from types import SimpleNamespace
from typing import Any

import actlas.jobs.run.run
import actlas.store.objects.base
from actlas.jobs.cli import app as cli
from actlas.store.ledger import lease
from actlas.store.objects import processes
from support.workers import make_fake


def main() -> None:
    """Run the command line as it is, with made-up workers."""
    run_extraction = actlas.jobs.run.run.run_extraction

    def faked(store: Any, run: Any) -> Any:
        return run_extraction(store, run, make_fake)

    actlas.jobs.run.run.run_extraction = faked
    if fail := os.environ.get("ACTLAS_TEST_FAIL"):
        code, call, nth = fail.split(":")
        fail_from(getattr(errno, code), call, int(nth))
    if host := os.environ.get("ACTLAS_TEST_HOST"):
        processes.socket = SimpleNamespace(gethostname=lambda: host)  # type: ignore[assignment]
    if standstill := os.environ.get("ACTLAS_TEST_STANDSTILL"):
        seconds = float(standstill)
        lease.hold = functools.partial(lease.hold, timeout_s=seconds, heartbeat_s=seconds / 5)
    try:
        cli.main(["extract", *sys.argv[1:]])
    finally:
        vars(os).update(_REAL)  # what ends this process besides is not what is tried


_REAL = {name: getattr(os, name) for name in ("write", "fsync", "link", "replace")}


def fail_from(code: int, call: str, nth: int) -> None:
    """Make a call of the operating system fail from its nth time on."""
    real, n_calls = getattr(os, call), 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls >= nth:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    setattr(actlas.store.objects.base.os, call, failing)


if __name__ == "__main__":
    main()
