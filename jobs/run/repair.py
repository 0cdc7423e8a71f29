"""Repair of a store: find the damage, recompute the damaged shards, verify again."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from actlas.jobs.config import resolve
from actlas.jobs.formatting import count, counted
from actlas.jobs.logs import NowAndThen
from actlas.jobs.run.repair_derived import drop_derived, note_again, redo_derived
from actlas.jobs.run.run import run_work
from actlas.jobs.run.work import DamagedShards, Work, extraction, pooling
from actlas.jobs.run.worker import open_repairer
from actlas.jobs.scheduler.stop import interruption
from actlas.store.errors import (
    EXIT_DAMAGE,
    EXIT_DONE,
    EXIT_RESUME,
    InterruptedRunError,
    StoreNotFoundError,
)
from actlas.store.extras import explains_missing
from actlas.store.ledger import lease
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY, instead_of_store
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.objects.base import open_objects
from actlas.store.store import Store, open_store
from actlas.store.verify.damage import Damage
from actlas.store.verify.orphans import remove_orphan
from actlas.store.verify.repair_plan import (
    ROOT_KEY,
    repair_descriptions,
    repair_metadata,
    repair_plan,
)
from actlas.store.verify.repair_shard import drop_unreadable
from actlas.store.verify.verify import verify

if TYPE_CHECKING:
    from actlas.jobs.scheduler.protocols import MakeWorker
    from actlas.pipeline.corpus.in_memory import GivenDocuments
    from actlas.pipeline.options import RunOptions

Log = Callable[[str], None]
"""Called with a line for each step of a repair."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """The result of a repair.

    Attributes
    ----------
    exit_code : int
        0 if no damage is left, 4 if some is, 75 if the repair was stopped.
    plan : tuple of str
        The keys of the objects that were restored: the plan's, the documents', and metadata.
    shards : dict of str to tuple of int
        The shards that were recomputed, by job.
    derived : tuple of str
        The derived jobs of which units were dropped and recomputed.
    left : tuple of Damage
        The damage that is left.
    removed : tuple of str
        The keys of the files that were removed.
    signal : int or None
        The signal that stopped the repair.
    """

    exit_code: int
    plan: tuple[str, ...] = ()
    shards: dict[str, tuple[int, ...]] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    left: tuple[Damage, ...] = ()
    removed: tuple[str, ...] = ()
    signal: int | None = None


@explains_missing
def repair(
    path: str | os.PathLike[str],
    *,
    findings: Sequence[Damage] | None = None,
    full: bool = True,
    remove_orphans: bool = False,
    remove_strays: bool = False,
    corpus: Any = None,
    **run: Any,
) -> Repaired:
    """Recompute the damaged parts of a store, as ``actlas repair`` does.

    Parameters
    ----------
    path : path
        The path or URL of the store.
    findings, full, remove_orphans
        See :func:`repair_at`.
    remove_strays : bool
        Former name of ``remove_orphans``.
    corpus : iterable, optional
        The documents of a store whose corpus was given in Python, from which damaged documents are
        restored. Default: the corpus is read again by its name.
    **run
        Fields of :class:`~actlas.pipeline.options.RunOptions`: ``executor``, ``workers``,
        ``device``.

    Raises
    ------
    ActlasError
        See :func:`repair_at`.
    KeyboardInterrupt, SignalledExit
        SIGINT or SIGTERM stopped the repair; the same call continues it.
    """
    from actlas.pipeline.corpus.in_memory import GivenDocuments

    asked = resolve({"plan": {}, "run": run}).run
    documents = None if corpus is None else GivenDocuments(corpus)
    repaired = repair_at(
        os.fspath(path),
        asked,
        findings=findings,
        full=full,
        remove_orphans=remove_orphans or remove_strays,
        documents=documents,
    )
    if repaired.signal is not None:
        raise interruption(repaired.signal, "the repair was stopped; the same call continues it")
    return repaired


def repair_at(
    path: str,
    run: RunOptions,
    *,
    findings: Sequence[Damage] | None = None,
    full: bool = True,
    remove_orphans: bool = False,
    make_repairer: MakeWorker = open_repairer,
    make_pooled_repairer: MakeWorker | None = None,
    log: Log = lambda _: None,
    documents: GivenDocuments | None = None,
) -> Repaired:
    """Recompute the damaged parts of a store, and nothing else.

    Parameters
    ----------
    path : str
        The path or URL of the store.
    run : RunOptions
        Executor, workers and device that recompute damaged shards.
    findings : sequence of Damage, optional
        The findings of ``verify``: only these are repaired. By default the whole store is verified.
    full : bool
        Whether the verification reads every byte; otherwise it reads sizes, metadata and receipts.
    remove_orphans : bool
        Whether to remove objects whose names belong to no part of a store.
    make_repairer, make_pooled_repairer : callable
        Open a worker for shards of tokens, and for shards of documents.
    log : callable
        Called with a line for each step.
    documents : GivenDocuments, optional
        The documents of a store whose corpus was given in Python.

    Raises
    ------
    LeaseHeldError
        Another driver works on this store, or took over the lease while this one stood still.
    CorruptDataError
        The plan and its copy are both lost.
    ActlasError
        The error that stopped the run, where no shard is to blame.
    """
    objects = open_objects(path)
    if all(objects.size(key) is None for key in (ROOT_KEY, PLAN_KEY, PLAN_COPY_KEY)):
        raise StoreNotFoundError(
            f"{objects.url}: there is no store here{instead_of_store(path)}", path=objects.url
        )
    pooled = make_pooled_repairer or functools.partial(open_repairer, job=POOLED)
    workers = {EXTRACT: make_repairer, POOLED: pooled}
    with lease.hold(objects, log=log, reentrant=True) as held:
        objects.sweep()
        restored = repair_plan(objects)
        store = open_store(path)
        restored += repair_descriptions(store)
        for key in restored:
            log(f"restored: {key}")
        damages = _find(store, findings, full, log)
        repairing = _Repair(store, run, held, log, restored, documents)
        return repairing.repair(damages, workers, remove_orphans)


class _Repair:
    """One repair of a store whose plan is whole, under one lease.

    Parameters
    ----------
    store : Store
        The store.
    run : RunOptions
        Executor, workers, device.
    held : Lease
        The lease.
    log : callable
        Called with a line for each step.
    restored : list of str
        The keys of the objects that were restored before.
    documents : GivenDocuments or None
        The documents of a store whose corpus was given in Python.
    """

    def __init__(
        self,
        store: Store,
        run: RunOptions,
        held: lease.Lease,
        log: Log,
        restored: list[str],
        documents: GivenDocuments | None,
    ) -> None:
        self._documents = documents
        self._store, self._run, self._held, self._log = store, run, held, log
        self._restored = restored
        self._shards: dict[str, tuple[int, ...]] = {}
        self._removed: list[str] = []
        self._signal: int | None = None

    def repair(
        self, damages: list[Damage], workers: Mapping[str, MakeWorker], remove_orphans: bool
    ) -> Repaired:
        """Repair damages: objects of the plan, then shards, then what is derived from them."""
        self._held.require()
        self._restore_planned(damages)
        damages = self._remove(damages, remove_orphans)
        drop_derived(self._store, damages, self._log)
        doubtful = damages
        for work in (extraction(self._store), pooling(self._store)):
            stopped = self._recompute(work, damages, workers[work.job])
            doubtful = [d for d in damages if d.shard not in self._shards.get(d.job or "", ())]
            if stopped:
                return self._result(EXIT_RESUME, left=doubtful)
        store = open_store(self._store.path)  # nothing that was read before the repair is kept
        self._held.require()
        try:
            run = self._run.model_copy(update={"retry_quarantined": True})
            derived, failed = redo_derived(store, run, self._log)
        except InterruptedRunError as stopped:
            self._signal = stopped.details.get("signal")
            return self._result(EXIT_RESUME, left=doubtful)
        note_again(store, damages)
        still = verify(store, full=True, only=doubtful).damages if doubtful else ()
        left = (*still, *failed)
        return self._result(EXIT_DAMAGE if left else EXIT_DONE, derived, left)

    def _result(
        self, exit_code: int, derived: Sequence[str] = (), left: Sequence[Damage] = ()
    ) -> Repaired:
        restored, removed = tuple(self._restored), tuple(self._removed)
        return Repaired(
            exit_code,
            restored,
            self._shards,
            tuple(derived),
            tuple(left),
            removed,
            signal=self._signal,
        )

    def _restore_planned(self, damages: Sequence[Damage]) -> None:
        """Restore metadata and documents: from the plan, then from the corpus."""
        keys = [d.key for d in damages if d.key in self._store.plan_file.objects]
        if not keys:
            return
        written = repair_metadata(self._store, keys)
        if left := [key for key in keys if key not in written]:
            from actlas.pipeline.plan.make import restore_documents

            written += restore_documents(self._store, left, self._log, self._documents)
        for key in written:
            self._log(f"restored: {key}")
        self._restored += written

    def _remove(self, damages: list[Damage], remove_orphans: bool) -> list[Damage]:
        """Remove superseded receipts that are damaged, and orphans; return the other damages."""
        # Statistics go before their rows: alone they would block rows with other bits.
        for damage in sorted(damages, key=lambda damage: not damage.key.startswith("statistics/")):
            if damage.orphan and remove_orphans:
                self._held.require()
                if remove_orphan(self._store, damage.key):
                    self._removed.append(damage.key)
                    self._log(f"removed: {damage.key}")
            elif damage.job in self._store.jobs and damage.shard is not None:
                for key in drop_unreadable(self._store.receipts(damage.job), damage.shard):
                    self._removed.append(key)
                    self._log(f"removed: {key}, which a later receipt supersedes")
        return [damage for damage in damages if damage.key not in self._removed]

    def _recompute(self, work: Work, damages: Sequence[Damage], make_worker: MakeWorker) -> bool:
        """Recompute the damaged shards of a job; return whether a signal stopped that."""
        found = [d for d in damages if d.job == work.job and d.shard is not None]
        if not found or work.job not in self._store.jobs:
            return False
        damaged = DamagedShards(self._store, work.job, found)
        wanted = damaged.missing()
        outcome = run_work(
            self._store,
            replace(work, units=damaged, doing="repairing", repairs=True),
            self._run.model_copy(update={"retry_quarantined": True}),
            make_worker,
        )
        if repaired := tuple(shard for shard in wanted if shard in damaged.repaired):
            self._shards[work.job] = repaired
        self._signal = outcome.signal
        return outcome.stopped or outcome.exit_code == EXIT_RESUME


def _find(store: Store, findings: Sequence[Damage] | None, full: bool, log: Log) -> list[Damage]:
    """Return the damage of now: earlier findings may be repaired already."""
    if findings is not None:
        return list(verify(store, full=True, only=findings).damages) if findings else []
    what = "every byte" if full else "sizes, metadata and receipts"
    log(f"verifying {what} of {store.path}")
    with NowAndThen() as say:
        report = verify(
            store,
            full=full,
            progress=lambda done, of: say(f"{count(done)} of {counted(of, 'object')} checked"),
        )
    return list(report.damages)
