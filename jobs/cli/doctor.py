"""``actlas doctor``: checks of this machine, of Ray, and of a store's location."""

from __future__ import annotations

from collections.abc import Iterable

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.doctor.check import Check
from actlas.jobs.doctor.examine import examine
from actlas.jobs.formatting import counted
from actlas.jobs.run.reports.checks import DoctorReport
from actlas.jobs.terminal import echo
from actlas.store.errors import EXIT_DONE, EXIT_ERROR

MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


def lines(checks: list[Check]) -> Iterable[str]:
    """Yield a line per check, its remedy below it, and a summary.

    Parameters
    ----------
    checks : list of Check
        The results.
    """
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"{MARKS[check.result]:<8} {check.name:<{width}}  {check.found}"
        if check.remedy:
            yield f"{'':<8} {'':<{width}}  -> {check.remedy}"
    n = {result: sum(check.result == result for check in checks) for result in MARKS}
    summary = ", ".join(counted(n[result], result) for result in ("problem", "warning"))
    yield f"{counted(len(checks), 'check')}: {summary}"


@click.command("doctor", short_help="Check this machine, Ray and a store's location.")
@click.argument("where", required=False, metavar="[STORE, FOLDER or URL]")
@click.option(
    "--address", help="Address of a Ray cluster to join and compare with.  [default: none]"
)
@click.option(
    "--ray", "start_ray", is_flag=True, help="Start Ray on this machine as a test.  [default: no]"
)
@json_option
@debug_option
def command(where: str | None, address: str | None, start_ray: bool, as_json: bool) -> int:
    """Check this environment, and the location of a store if one is given.

    The exit code is 0 without problems and 1 with any. Test files are removed.
    """
    checks = examine(where, address, start_ray)
    report = DoctorReport.of(checks)
    echo(*([report.to_json()] if as_json else lines(checks)))
    return EXIT_DONE if report.ok else EXIT_ERROR
