"""The executor that a run names."""

from __future__ import annotations

from actlas.jobs.scheduler.protocols import Executor


def named(name: str) -> Executor:
    """Return the executor of a name; only then is its library loaded."""
    if name == "ray":
        from actlas.jobs.executors.ray import run_ray

        return run_ray
    from actlas.jobs.executors.inline import run_inline

    return run_inline
