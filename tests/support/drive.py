"""A driver in a process of its own, to be killed: ``python -m support.drive STORE key=value ...``."""

from __future__ import annotations

import sys

import actlas.jobs.run
from actlas.jobs import cli, extract
from support.workers import make_fake


def main() -> None:
    """Run the command line as it is, with made-up workers."""
    run_extraction = actlas.jobs.run.run_extraction

    def faked(store: object, run: object) -> object:
        return run_extraction(store, run, make_fake)  # type: ignore[arg-type]

    actlas.jobs.run.run_extraction = faked  # type: ignore[assignment]
    assert extract.command is not None
    cli.main(["extract", *sys.argv[1:]])


if __name__ == "__main__":
    main()
