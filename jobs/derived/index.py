"""Indexing of feature activations by feature: the jobs ``index`` and ``indexed``."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from actlas.jobs import logs
from actlas.jobs.config import resolve
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted
from actlas.jobs.run.outcome import Outcome
from actlas.jobs.run.repair_derived import outcome_or_error
from actlas.jobs.run.run import on_stderr, run_work
from actlas.jobs.run.work import DerivedUnits, Work
from actlas.pipeline.options import RunOptions
from actlas.store.errors import EXIT_DONE
from actlas.store.extras import explains_missing
from actlas.store.ledger import lease
from actlas.store.ledger.job_kinds import INDEX
from actlas.store.store import Store, as_store, open_store

if TYPE_CHECKING:
    from actlas.analysis.features.index import Indexer
    from actlas.analysis.features.index_plan import IndexPlan
    from actlas.store.features.features import Features

PASSES_PER_DEADLINE = 10
"""The shortest deadline of a block, in times of the driver's own pass over the codes."""


@explains_missing
def index_sae(store: Store | str | os.PathLike[str], name: str, **run: Any) -> Features:
    """Index a set of features, as ``actlas sae index`` does, and return it.

    Parameters
    ----------
    store : Store or path
        The store, or its path or URL.
    name : str
        The name of the set.
    **run
        Fields of :class:`~actlas.pipeline.options.RunOptions`: ``executor``, ``workers``,
        ``max_memory_bytes``.

    Raises
    ------
    FeatureError
        The store has no such set, or not every token is encoded.
    QuarantineError
        Blocks are left in quarantine.
    KeyboardInterrupt, SignalledExit
        SIGINT or SIGTERM stopped the run; the same call resumes it.
    """
    opened = as_store(store)
    outcome, _ = index(opened, name, resolve({"plan": {}, "run": run}).run)
    outcome.require_done()
    return opened.features(name)


def index(store: Store, name: str, run: RunOptions) -> tuple[Outcome, dict[str, Any] | None]:
    """Index a set of features: its missing blocks, then the table over all of them.

    Parameters
    ----------
    store : Store
        The store.
    name : str
        The name of the set.
    run : RunOptions
        Executor, workers, and ``max_memory_bytes`` of a worker, by default 1 GiB.

    Raises
    ------
    FeatureError
        The store has no such set, or not every token is encoded.
    LeaseHeldError
        Another driver works on this store.

    Returns
    -------
    Outcome, dict or None
        How the run ended, and the size of the index; None if the run is not done.
    """
    from actlas.analysis.features.index import finish_index
    from actlas.analysis.features.index_plan import MEMORY_BYTES, plan_index, totals_of

    features = store.features(name)
    memory_bytes = run.max_memory_bytes or MEMORY_BYTES
    run = run.model_copy(
        update={"device": "cpu", "gpus_per_worker": None, "max_memory_bytes": memory_bytes}
    )
    n_workers = run.n_workers if run.executor == "ray" else 1
    began = time.perf_counter()
    with lease.hold(store.objects, log=on_stderr, reentrant=True):
        totals = totals_of(store, features, _now_and_then())
        pass_s = time.perf_counter() - began
        plan = plan_index(
            store, features, totals.count, memory_bytes=memory_bytes, n_workers=n_workers
        )
        make_worker = functools.partial(open_indexer, name=name, plan=plan)
        outcome = run_work(store, _work(store, features, plan, pass_s), run, make_worker)
        if outcome.exit_code != EXIT_DONE:
            return outcome, None
        made = finish_index(store, features, plan, totals, socket.gethostname())
    return outcome, {
        "store": store.path,
        "name": name,
        "n_features": features.n_features,
        "n_codes": made.n_codes,
        "n_blocks": made.n_blocks,
        "n_passes": made.n_passes,
        "n_bytes": made.n_bytes,
        "n_bytes_by_token": made.n_bytes_by_token,
        "seconds": time.perf_counter() - began,
    }


def _work(store: Store, features: Features, plan: IndexPlan, pass_s: float) -> Work:
    """Return the job whose units are the blocks of a plan."""
    blocks = plan.blocks
    units = DerivedUnits(
        store,
        INDEX,
        features.name,
        covered=lambda block: (block, blocks[block]),
        ready=lambda: blocks,
        n=len(blocks),
        follows=plan.follows(),
    )
    return Work(
        job=INDEX.job(features.name),
        units=units,
        doing="indexing",
        what=f"{features.name}, {counted(features.n_features, 'feature')} of {features.hookpoint}",
        per_row=counted(store.plan.n_tokens, "token"),
        after=shell("contexts", store.path, "--sae", features.name, "--some", "3"),
        rows="features",
        unit=INDEX.unit,
        least_deadline_s=PASSES_PER_DEADLINE * pass_s,
        damage_stops=True,
    )


def open_indexer(store: str, run: RunOptions, *, name: str, plan: IndexPlan) -> Indexer:
    """Open a store to write blocks of an index, in the worker's own process.

    Parameters
    ----------
    store : str
        The path or URL of the store.
    run : RunOptions
        The executor: on Ray, the worker has a log of its own.
    name : str
        The name of the set of features.
    plan : IndexPlan
        The blocks, and the passes that make them.
    """
    from actlas.analysis.features.index import Indexer

    if run.executor == "ray":
        logs.start(store, "worker")
    opened = open_store(store)
    return Indexer(opened, opened.features(name), plan, _now_and_then())


def _now_and_then() -> Callable[[str, int, int], None]:
    """Return a callable that prints the progress of a pass over the shards as lines are due."""
    say = logs.NowAndThen()
    return lambda step, done, of: say(f"{step}: {done:,} of {counted(of, 'shard')}")


def redo(
    store: Store,
    name: str,
    dropped: Collection[str],
    run: RunOptions,
    log: Callable[[str], None],
) -> str | None:
    """Index a set of features again, for a repair.

    Parameters
    ----------
    store : Store
        The store.
    name : str
        The name of the set of features.
    dropped : collection of str
        The kinds of this set's jobs of which a repair dropped units.
    run : RunOptions
        Executor, workers. The memory budget of the repair is not that of the index, which has its
        default.
    log : callable
        Called with a line for each step.

    Returns
    -------
    str or None
        Why the index could not be made again; None if it was.

    Raises
    ------
    InterruptedRunError
        A signal stopped the run.
    """
    log(f"indexing {name}")
    run = run.model_copy(update={"max_memory_bytes": None})
    outcome = outcome_or_error(lambda: index(store, name, run)[0])
    if isinstance(outcome, str):
        return outcome
    return None if outcome.exit_code == EXIT_DONE else outcome.line
