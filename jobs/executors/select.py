"""Executors by name."""

from __future__ import annotations

from actlas.jobs.scheduler.protocols import Executor


def named(name: str) -> Executor:
    """Return an executor, and load its library.

    Parameters
    ----------
    name : str
        ``inline`` or ``ray``.
    """
    if name == "ray":
        from actlas.jobs.executors.ray import run_ray

        return run_ray
    from actlas.jobs.executors.inline import run_inline

    return run_inline
