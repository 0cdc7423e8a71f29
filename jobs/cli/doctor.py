"""``actlas doctor``: is this machine fit for a run, and what to do where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.doctor import location as checks_place
from actlas.jobs.doctor import machine as checks_machine
from actlas.jobs.doctor import ray as checks_cluster
from actlas.jobs.doctor.machine import Check, problem
from actlas.jobs.formatting import counted, printable
from actlas.jobs.redaction import redacted
from actlas.store.errors import EXIT_DONE, EXIT_ERROR

MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


def examine(where: str | None, address: str | None, start_ray: bool) -> list[Check]:
    """Return what was found, check by check. A check that itself fails is a problem found."""
    asked: list[Callable[[], Iterable[Check]]] = [
        checks_machine.packages,
        checks_machine.accelerators,
        checks_machine.memory,
        checks_machine.processes,
        checks_machine.hub,
        lambda: checks_cluster.cluster(address, start_ray),
    ]
    if where is not None:
        asked.append(lambda: checks_place.place(where))
    found: list[Check] = []
    for ask in asked:
        try:
            found.extend(ask())
        except Exception as error:  # noqa: BLE001 - it is told, with what to do
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            found.append(problem("check", words, "this check could not be made"))
    return [c._replace(found=printable(redacted(c.found))) for c in found]


def lines(checks: list[Check]) -> Iterable[str]:
    """Yield a line per check, the remedy below it, and how it came out."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"{MARKS[check.result]:<8} {check.name:<{width}}  {check.found}"
        if check.remedy:
            yield f"{'':<8} {'':<{width}}  -> {check.remedy}"
    n = {result: sum(check.result == result for check in checks) for result in MARKS}
    told = ", ".join(counted(n[r], r) for r in ("problem", "warning"))
    yield f"{counted(len(checks), 'check')}: {told}"


@click.command("doctor", short_help="Whether this machine is fit for a run, and what to do.")
@click.argument("where", required=False, metavar="[STORE, FOLDER or URL]")
@click.option("--address", help="A Ray cluster to join and compare with.  [default: none]")
@click.option("--ray", "start_ray", is_flag=True, help="Start Ray here to try it.  [default: no]")
@json_option
@debug_option
def command(where: str | None, address: str | None, start_ray: bool, as_json: bool) -> int:
    """Check this environment, and where a store is or shall be.

    Exits 0 where there is no problem, and 1 with one. Nothing that it writes to try is left.
    """
    checks = examine(where, address, start_ray)
    ok = not any(check.result == "problem" for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": ok, "checks": [check._asdict() for check in checks]}))
    else:
        click.echo("\n".join(lines(checks)))
    return EXIT_DONE if ok else EXIT_ERROR
