"""All checks of ``actlas doctor``, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from actlas.jobs.doctor import location, machine, ray
from actlas.jobs.doctor.check import Check, problem
from actlas.jobs.formatting import printable
from actlas.jobs.redaction import redacted


def examine(where: str | None, address: str | None, start_ray: bool) -> list[Check]:
    """Run all checks and return their results, without credentials in them.

    Parameters
    ----------
    where : str or None
        Path or URL of a store, or of the folder for one; None to skip these checks.
    address : str or None
        Address of a Ray cluster to join and compare with; None to join none.
    start_ray : bool
        Whether to start Ray on this machine.

    Returns
    -------
    list of Check
        The results. A check that raises an exception is a problem.
    """
    parts: list[Callable[[], Iterable[Check]]] = [
        machine.packages,
        machine.accelerators,
        machine.memory,
        machine.processes,
        machine.hub,
        lambda: ray.cluster(address, start_ray),
    ]
    if where is not None:
        parts.append(lambda: location.place(where))
    results: list[Check] = []
    for part in parts:
        try:
            results.extend(part())
        except Exception as error:  # noqa: BLE001 - reported as a problem
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            results.append(problem("check", reason, "this check failed; see the error"))
    return [check._replace(found=printable(redacted(check.found))) for check in results]
