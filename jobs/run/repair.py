"""Repair from Python: find the damage, recompute the damaged shards, verify again."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.jobs.config import resolve
from actlas.jobs.formatting import count, counted
from actlas.jobs.logs import NowAndThen
from actlas.jobs.run.repair_derived import drop_derived, redo_derived
from actlas.jobs.run.run import run_work
from actlas.jobs.run.work import StoreShards, Work, extraction, pooling
from actlas.jobs.run.worker import open_mender
from actlas.store.errors import (
    EXIT_DAMAGE,
    EXIT_DONE,
    EXIT_RESUME,
    ActlasError,
    InterruptedRunError,
    StoreNotFoundError,
)
from actlas.store.ledger import lease
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.objects.base import open_objects
from actlas.store.store import Store, open_store
from actlas.store.verify.damage import Damage
from actlas.store.verify.orphans import remove_orphan
from actlas.store.verify.repair_plan import (
    ROOT_KEY,
    put_back_from,
    repair_descriptions,
    repair_metadata,
    repair_plan,
)
from actlas.store.verify.repair_shard import drop_unreadable
from actlas.store.verify.verify import verify

if TYPE_CHECKING:
    from actlas.jobs.scheduler.protocols import MakeWorker
    from actlas.pipeline.options import RunOptions

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair came to.

    Attributes
    ----------
    exit_code : int
        0 where nothing is damaged any longer, 4 where something is, 75 where it was stopped.
    plan : tuple of str
        Keys of the plan and of what follows from it that were put back.
    shards : dict of str to tuple of int
        The shards that were computed anew, by job.
    derived : tuple of str
        The derived jobs of which something was dropped and made again.
    left : tuple of Damage
        What is still damaged.
    removed : tuple of str
        Keys of files that were of no use.
    """

    exit_code: int
    plan: tuple[str, ...] = ()
    shards: dict[str, tuple[int, ...]] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    left: tuple[Damage, ...] = ()
    removed: tuple[str, ...] = ()


class DamagedShards(StoreShards):
    """The damaged shards of a job, which are repaired once reading them finds no damage.

    Parameters
    ----------
    store : Store
    job : str
        ``extract`` or ``pooled``.
    damages : sequence of Damage
        Damages of shards of this job.

    Attributes
    ----------
    repaired : set of int
        The shards that were read again and found undamaged.
    """

    def __init__(self, store: Store, job: str, damages: Sequence[Damage]) -> None:
        super().__init__(store, job)
        self._damages = [damage for damage in damages if damage.shard is not None]
        self.repaired: set[int] = set()

    def ready(self) -> list[int]:
        """Return the damaged shards."""
        return sorted({d.shard for d in self._damages if d.shard is not None})

    def missing(self) -> list[int]:
        """Return the shards that are not known to be repaired."""
        return sorted({*self.ready()} - self.repaired)

    def left(self) -> list[int]:
        """Return the shards that are damaged still, by reading them."""
        self.store.forget(self.job)
        doubtful = [d for d in self._damages if d.shard not in self.repaired]
        found = verify(self.store, full=True, only=doubtful).damages if doubtful else ()
        damaged = {d.shard for d in found if d.shard is not None and d.job == self.job}
        self.repaired.update({*self.ready()} - damaged)
        return sorted(damaged)


def repair(
    path: str | os.PathLike[str],
    *,
    findings: Sequence[Damage] | None = None,
    full: bool = True,
    remove_orphans: bool = False,
    **run: Any,
) -> Repaired:
    """Put back what is damaged of a store, as ``actlas repair`` does.

    Parameters
    ----------
    path : path
        Of the store.
    findings, full, remove_orphans
        See :func:`repair_at`.
    **run
        Fields of :class:`~actlas.pipeline.options.RunOptions`: ``executor``, ``workers``,
        ``device``.

    Raises
    ------
    ActlasError
        See :func:`repair_at`.
    """
    asked = resolve({"plan": {}, "run": run}).run
    return repair_at(
        os.fspath(path), asked, findings=findings, full=full, remove_orphans=remove_orphans
    )


def repair_at(
    path: str,
    run: RunOptions,
    *,
    findings: Sequence[Damage] | None = None,
    full: bool = True,
    remove_orphans: bool = False,
    make_mender: MakeWorker = open_mender,
    make_pool_mender: MakeWorker | None = None,
    say: Say = lambda _: None,
) -> Repaired:
    """Put back what is damaged of a store, and compute again only that.

    Parameters
    ----------
    path : str
        Of the store.
    run : RunOptions
        How damaged shards are computed.
    findings : sequence of Damage, optional
        What ``verify`` found: only that is looked at. By default the whole store is verified.
    full : bool
        Read every byte where there are no findings; otherwise sizes, metadata and receipts.
    remove_orphans : bool
        Remove objects that nothing of a store has the name of.
    make_mender, make_pool_mender : callable
        Open a worker for shards, and for shards of documents.
    say : callable
        Is told each step in a line.

    Raises
    ------
    LeaseHeldError
        Another driver works on this store, or took it over while this one stood still.
    CorruptDataError
        The plan and its copy are both lost.
    ActlasError
        What stopped the run where no shard is to blame.
    """
    objects = open_objects(path)
    if all(objects.size(key) is None for key in (ROOT_KEY, PLAN_KEY, PLAN_COPY_KEY)):
        raise StoreNotFoundError(
            f"{objects.url}: there is no store here to repair. Is the path right?", path=objects.url
        )
    mender_of = {EXTRACT: make_mender}
    mender_of[POOLED] = make_pool_mender or functools.partial(open_mender, job=POOLED)
    with lease.hold(objects, log=say, reentrant=True) as held:
        objects.sweep()
        put_back = repair_plan(objects)
        store = open_store(path)
        put_back += repair_descriptions(store)
        for key in put_back:
            say(f"put back: {key}")
        damages = _find(store, findings, full, say)
        held.require()
        put_back += _repair_planned(store, damages, say)
        damages, removed = _drop(store, held, damages, remove_orphans, say)
        drop_derived(store, damages, say)
        shards: dict[str, tuple[int, ...]] = {}
        for like in (extraction(store), pooling(store)):
            stopped = _mend(store, like, damages, run, mender_of[like.job], shards)
            unsure = [d for d in damages if d.shard not in shards.get(d.job or "", ())]
            if stopped:
                done = tuple(put_back), shards, (), tuple(unsure), removed
                return Repaired(EXIT_RESUME, *done)
        store = open_store(path)  # nothing read before it was repaired
        held.require()
        try:
            derived, not_redone = redo_derived(store, run, say)
        except InterruptedRunError:
            return Repaired(EXIT_RESUME, tuple(put_back), shards, (), tuple(unsure), removed)
        still = verify(store, full=True, only=unsure).damages if unsure else ()
    left = (*still, *not_redone)
    code = EXIT_DAMAGE if left else EXIT_DONE
    return Repaired(code, tuple(put_back), shards, tuple(derived), left, removed)


def _find(store: Store, findings: Sequence[Damage] | None, full: bool, say: Say) -> list[Damage]:
    """Return what is damaged, found now: what was found before may be mended by now."""
    if findings is not None:
        return list(verify(store, full=True, only=findings).damages) if findings else []
    tell = NowAndThen()
    what = "every byte" if full else "sizes, metadata and receipts"
    say(f"verifying {what} of {store.path}")
    report = verify(
        store,
        full=full,
        progress=lambda done, of: tell(f"{count(done)} of {counted(of, 'object')} checked"),
    )
    return list(report.damages)


def _repair_planned(store: Store, damages: Sequence[Damage], say: Say) -> list[str]:
    """Put back metadata and documents: from the plan, then from the corpus."""
    keys = [d.key for d in damages if d.key in store.plan_file.objects]
    if not keys:
        return []
    written = repair_metadata(store, keys)
    if left := [key for key in keys if key not in written]:
        written += _plan_again(store, left, say)
    for key in written:
        say(f"put back: {key}")
    return written


def _plan_again(store: Store, keys: Sequence[str], say: Say) -> list[str]:
    """Plan once more beside the store, and take the objects that are what they were."""
    from actlas.pipeline.options import PlanOptions
    from actlas.pipeline.plan.make import make_plan

    # The request is a stranger's words as much as the plan is: either may ask for code.
    if store.plan.model.trust_remote_code or store.plan.request.get("trust_remote_code"):
        say(f"{keys[0]}: its model has code of its own, which is not run for a repair")
        return []
    damaged = counted(len(keys), "damaged object")
    say(f"{damaged} of documents: planning once more from the corpus")
    with tempfile.TemporaryDirectory(prefix="actlas-repair-") as folder:
        try:
            options = PlanOptions.model_validate(store.plan.request)
            again = make_plan(Path(folder) / "again.zarr", options)
        except (ActlasError, ValueError) as error:
            say(f"planning once more failed: {error}")
            return []
        return put_back_from(store, again, keys)


def _drop(
    store: Store,
    held: lease.Lease,
    damages: Sequence[Damage],
    remove_orphans: bool,
    say: Say,
) -> tuple[list[Damage], tuple[str, ...]]:
    """Remove receipts that are superseded and damaged, and orphans where that was asked for.

    Returns
    -------
    list of Damage, tuple of str
        What is damaged besides, and what was removed.
    """
    removed: list[str] = []
    # Statistics before their rows: alone they would be in the way of rows with other bits.
    for damage in sorted(damages, key=lambda damage: not damage.key.startswith("statistics/")):
        if damage.orphan and remove_orphans:
            held.require()
            if remove_orphan(store, damage.key):
                removed.append(damage.key)
                say(f"removed: {damage.key}")
        elif damage.job in store.jobs and damage.shard is not None:
            for key in drop_unreadable(store.receipts(damage.job), damage.shard):
                removed.append(key)
                say(f"removed: {key}, which a later receipt stands for")
    return [damage for damage in damages if damage.key not in removed], tuple(removed)


def _mend(
    store: Store,
    like: Work,
    damages: Iterable[Damage],
    run: RunOptions,
    make_worker: MakeWorker,
    shards: dict[str, tuple[int, ...]],
) -> bool:
    """Compute the damaged shards of a job again; return whether that was stopped."""
    found = [d for d in damages if d.job == like.job and d.shard is not None]
    if not found or like.job not in store.jobs:
        return False
    damaged = DamagedShards(store, like.job, found)
    work = replace(like, units=damaged, doing="repairing", repairs=True)
    wanted = damaged.missing()
    again = run.model_copy(update={"retry_quarantined": True})
    outcome = run_work(store, work, again, make_worker)
    if repaired := tuple(shard for shard in wanted if shard in damaged.repaired):
        shards[like.job] = repaired
    return outcome.stopped or outcome.exit_code == EXIT_RESUME
