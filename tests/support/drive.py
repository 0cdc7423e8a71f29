"""A driver in a process of its own, to be killed: ``python -m support.drive STORE key=value ...``.

``ACTLAS_TEST_FULL=write:7`` makes the disk full from the seventh ``os.write`` of the store on.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import actlas.jobs.run
import actlas.store.objects
from actlas.jobs import cli
from support.workers import make_fake


def main() -> None:
    """Run the command line as it is, with made-up workers."""
    run_extraction = actlas.jobs.run.run_extraction

    def faked(store: Any, run: Any) -> Any:
        return run_extraction(store, run, make_fake)

    actlas.jobs.run.run_extraction = faked
    if full := os.environ.get("ACTLAS_TEST_FULL"):
        call, _, nth = full.partition(":")
        fill_disk(call, int(nth))
    cli.main(["extract", *sys.argv[1:]])


def fill_disk(call: str, nth: int) -> None:
    """Make a call of the operating system fail from its nth time on."""
    real, n_calls = getattr(os, call), 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    setattr(actlas.store.objects.os, call, failing)


if __name__ == "__main__":
    main()
