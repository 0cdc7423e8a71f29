"""Gathering the top and bottom tokens of raw units: the job ``extremes``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from actlas.jobs import logs
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted
from actlas.jobs.run.outcome import Outcome
from actlas.jobs.run.run import run_work
from actlas.jobs.run.work import DerivedUnits, Work
from actlas.pipeline.options import RunOptions
from actlas.store.errors import FeatureError
from actlas.store.features.unit_extremes import open_units
from actlas.store.ledger.job_kinds import EXTREMES
from actlas.store.store import Store, open_store

if TYPE_CHECKING:
    from actlas.analysis.features.extremes import ExtremesGatherer
    from actlas.store.features.unit_extremes import Units

SLOW_BYTES_PER_S = 20e6
"""The shortest deadline of a pass is the time that it takes to read the rows at this speed."""


def units_of(store: Store, hookpoint: str, run: RunOptions | None = None) -> Units:
    """Return the units of a hookpoint, and gather their extremes first if that was not done yet.

    Parameters
    ----------
    store : Store
        The store.
    hookpoint : str
        The hookpoint.
    run : RunOptions, optional
        Executor, deadline.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    NotExtractedError
        Not every shard is extracted.
    QuarantineError
        The pass failed as often as a unit of work may fail.
    KeyboardInterrupt, SignalledExit
        SIGINT or SIGTERM stopped the run; the same call resumes it.
    """
    try:
        return open_units(store, hookpoint)
    except FeatureError:
        gather(store, hookpoint, RunOptions() if run is None else run).require_done()
        return open_units(store, hookpoint)


def gather(store: Store, hookpoint: str, run: RunOptions) -> Outcome:
    """Gather the extremes of every unit of a hookpoint, if that was not done yet.

    Parameters
    ----------
    store : Store
        The store.
    hookpoint : str
        The hookpoint.
    run : RunOptions
        Executor, deadline. The job is one unit of work, so it has one worker.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    NotExtractedError
        Not every shard is extracted.
    LeaseHeldError
        Another driver works on this store.
    """
    from actlas.analysis.features.extremes import ExtremesGatherer

    hookpoint = store.name_of(hookpoint)
    ExtremesGatherer(store, hookpoint)  # raises before anything begins if it cannot be done
    spec = store.arrays.activations[hookpoint]
    n_units, n_bytes = spec.shape[1], spec.n_rows * spec.shape[1] * spec.numpy_dtype.itemsize
    work = Work(
        job=EXTREMES.job(hookpoint),
        units=DerivedUnits(store, EXTREMES, hookpoint, covered=lambda _: (0, n_units)),
        doing="gathering",
        what=f"the top and bottom tokens of all units of {hookpoint}, in one pass over the store, "
        "the first time only",
        per_row=counted(store.plan.n_tokens, "token"),
        after=shell("contexts", store.path, "--hookpoint", hookpoint, "--unit", "0"),
        rows="units",
        unit=EXTREMES.unit,
        least_deadline_s=n_bytes / SLOW_BYTES_PER_S,
        damage_stops=True,
    )
    run = run.model_copy(update={"device": "cpu", "gpus_per_worker": None, "workers": 1})
    return run_work(store, work, run, functools.partial(open_gatherer, hookpoint=hookpoint))


def open_gatherer(store: str, run: RunOptions, *, hookpoint: str) -> ExtremesGatherer:
    """Open a store to gather extremes, in the worker's own process.

    Parameters
    ----------
    store : str
        The path or URL of the store.
    run : RunOptions
        The executor: on Ray, the worker has a log of its own.
    hookpoint : str
        The hookpoint.
    """
    from actlas.analysis.features.extremes import ExtremesGatherer

    if run.executor == "ray":
        logs.start(store, "worker")
    say = logs.NowAndThen()
    return ExtremesGatherer(
        open_store(store),
        hookpoint,
        progress=lambda done, of: say(f"{done:,} of {counted(of, 'shard')}"),
    )
