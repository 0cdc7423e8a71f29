"""A derived job in one file, as a later one would be: the L2 norm of every row of a hookpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

import numpy as np

from actlas.jobs.run.outcome import Outcome
from actlas.jobs.run.run import run_work
from actlas.jobs.run.work import DerivedUnits, Work
from actlas.pipeline.options import RunOptions
from actlas.store.errors import EXIT_DONE
from actlas.store.format.schema import Receipt
from actlas.store.ledger.derived import extract_inputs
from actlas.store.ledger.job_kind import JobKind
from actlas.store.ledger.job_kinds import register
from actlas.store.store import Store, open_store
from actlas.store.write.derived import commit, ensure_groups
from support.derived import Suffering

NORMS = register(
    JobKind(
        name="norms",
        unit="shard",
        inputs=("extract",),
        folder="norms/{subject}/{unit:08d}",
        n_units=lambda store, _: store.plan.n_shards,
        covers="tokens",
        plain_groups=("norms", "norms/{subject}"),
        command=("norms", "{store}", "--hookpoint", "{subject}"),
        redo=f"{__name__}:redo",
    )
)


class NormWriter:
    """Writes the norms of shards of one hookpoint."""

    def __init__(self, store: Store, hookpoint: str) -> None:
        self.store, self.hookpoint = store, hookpoint

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        store, (start, stop) = self.store, self.store.shard_range(shard)
        rows = store.activations[self.hookpoint][start:stop].astype(np.float32)
        ensure_groups(store, NORMS, self.hookpoint)
        return commit(
            store,
            NORMS.unit_of_work(store, self.hookpoint, shard, start, stop),
            {"hookpoint": self.hookpoint},
            {"norm": np.linalg.norm(rows, axis=1).astype(np.float32)},
            attempt=attempt,
            inputs=extract_inputs(store, range(shard, shard + 1)),
        )


def write_norms(store: Store, hookpoint: str, run: RunOptions) -> Outcome:
    """Write the norms of every extracted shard."""
    work = Work(
        job=NORMS.job(hookpoint),
        units=DerivedUnits(store, NORMS, hookpoint, store.shard_range, store.done),
        doing="measuring",
        what=f"the norms of {hookpoint}",
        per_row="1 norm",
        after="look at them",
    )
    return run_work(store, work, run, functools.partial(open_writer, hookpoint=hookpoint))


def open_writer(store: str, run: RunOptions, *, hookpoint: str) -> Suffering:
    return Suffering(NormWriter(open_store(store), hookpoint), store)


def redo(
    store: Store,
    hookpoint: str,
    dropped: Collection[str],
    run: RunOptions,
    log: Callable[[str], None],
) -> str | None:
    """Write the norms that a repair dropped."""
    assert dropped == {"norms"}
    outcome = write_norms(store, hookpoint, run)
    return None if outcome.exit_code == EXIT_DONE else outcome.line
