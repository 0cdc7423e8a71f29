"""A job as a run sees it: its units of work, and the words that describe it to the user."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from actlas.jobs.formatting import command, counted
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.verify.damage import Damage
from actlas.store.verify.verify import verify
from actlas.store.write import derived

if TYPE_CHECKING:
    from actlas.store.ledger.job_kind import JobKind
    from actlas.store.read.reader import StoreReader

Follows = Collection[int] | Mapping[int, int]
"""Units that are best done by the worker of the unit before: see
:class:`actlas.jobs.scheduler.queue.ShardQueue`."""


class Units(Protocol):
    """The units of work of a job, by their numbers."""

    @property
    def n(self) -> int:
        """The number of units of the whole job."""

    def ready(self) -> list[int]:
        """Return the units whose inputs exist, in order, whether they are done or not."""

    def missing(self) -> list[int]:
        """Return the units whose inputs exist and that are not done, by a fresh listing."""

    def left(self) -> list[int]:
        """Return the units that a run left undone, in order."""

    def covered(self, unit: int) -> tuple[int, int]:
        """Return the range [start, stop) of rows (documents, features) that a unit covers."""

    def follows(self, units: Sequence[int]) -> Follows:
        """Return those of some units that are best done by the worker of the unit before."""

    def sweep(self) -> int:
        """Remove what killed attempts at done units left, and return how many groups that were."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job, and the words that describe it to the user.

    Attributes
    ----------
    job : str
        The job's name, which is the folder of its receipts.
    units : Units
        The units of work.
    doing : str
        The verb, such as ``extracting``.
    what : str
        The object of the work, such as a model and its corpus.
    per_row : str
        The results for each row, such as ``6 hookpoints``.
    after : str
        The command to run next.
    rows : str
        The noun for what units cover: ``rows``, ``documents``, ``features``, ``units``.
    unit : str
        The noun for a unit of work: ``shard``, ``block``, ``table``.
    least_deadline_s : float
        The shortest deadline of a unit in seconds, if it is longer than ``--deadline-floor-s``:
        for units that are long passes over a store.
    repairs : bool
        Whether the units are damaged ones, which may stay damaged, and whose receipts may hold the
        times of an earlier run.
    damage_stops : bool
        Whether damaged input ends the run at once, for jobs of which every unit reads the same
        input: no unit is charged for it.
    """

    job: str
    units: Units
    doing: str
    what: str
    per_row: str
    after: str
    rows: str = "rows"
    unit: str = "shard"
    least_deadline_s: float = 0.0
    repairs: bool = False
    damage_stops: bool = False


class StoreShards:
    """The shards of extraction, or of pooling.

    Parameters
    ----------
    store : StoreReader
        The store.
    job : str
        ``extract`` or ``pooled``.
    """

    def __init__(self, store: StoreReader, job: str) -> None:
        self.store, self.job = store, job

    @property
    def n(self) -> int:
        """The number of shards."""
        return self.store.n_shards(self.job)

    def ready(self) -> list[int]:
        """Return all shards."""
        return list(range(self.n))

    def missing(self) -> list[int]:
        """Return the shards without a receipt, by a fresh listing."""
        return self.store.missing(self.job)

    def left(self) -> list[int]:
        """Return the shards that are still missing."""
        return self.missing()

    def covered(self, unit: int) -> tuple[int, int]:
        """Return the tokens [start, stop) of a shard, or its documents."""
        return self.store.covered(unit, self.job)

    def follows(self, units: Sequence[int]) -> Follows:
        """Return the shards whose first tokens continue a sequence of the shard before."""
        return follows(self.store, units) if self.job == EXTRACT else ()

    def sweep(self) -> int:
        """Return 0: attempts at one shard write the same names, so they leave nothing."""
        return 0


class DamagedShards(StoreShards):
    """The damaged shards of a job, as units of work: one is done once it reads without damage.

    Parameters
    ----------
    store : StoreReader
        The store.
    job : str
        ``extract`` or ``pooled``.
    damages : sequence of Damage
        The damages of shards of this job.

    Attributes
    ----------
    repaired : set of int
        The shards that were read again and found undamaged.
    """

    def __init__(self, store: StoreReader, job: str, damages: Sequence[Damage]) -> None:
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
        """Return the shards that are still damaged, by reading them."""
        self.store.forget(self.job)
        doubtful = [d for d in self._damages if d.shard not in self.repaired]
        found = verify(self.store, full=True, only=doubtful).damages if doubtful else ()
        damaged = {d.shard for d in found if d.shard is not None and d.job == self.job}
        self.repaired.update({*self.ready()} - damaged)
        return sorted(damaged)


class DerivedUnits:
    """The units of a derived job.

    Parameters
    ----------
    store : StoreReader
        The store.
    kind : JobKind
        The kind of the job.
    subject : str
        The subject of the job: the name of a set of features, a hookpoint.
    covered : callable
        Returns the range [start, stop) that a unit covers.
    ready : callable, optional
        Returns the units whose inputs exist, by default all.
    n : int, optional
        The number of units; by default the limit of their numbers.
    follows : mapping of int to int
        The units that are best done by the worker of another unit, mapped to that unit.
    """

    def __init__(
        self,
        store: StoreReader,
        kind: JobKind,
        subject: str,
        covered: Callable[[int], tuple[int, int]],
        ready: Callable[[], Iterable[int]] | None = None,
        n: int | None = None,
        follows: Mapping[int, int] | None = None,
    ) -> None:
        self.store, self.kind, self.subject = store, kind, subject
        self.n = kind.n_units(store, subject) if n is None else n
        self.covered = covered
        self._ready = (lambda: range(self.n)) if ready is None else ready
        self._follows = {} if follows is None else follows

    def ready(self) -> list[int]:
        """Return the units whose inputs exist, whether they are done or not."""
        return sorted(self._ready())

    def missing(self) -> list[int]:
        """Return the units whose inputs exist and that have no receipt, by a fresh listing."""
        return sorted({*self.ready()} - self.kind.receipts(self.store, self.subject).done())

    def left(self) -> list[int]:
        """Return the units that are still missing."""
        return self.missing()

    def follows(self, units: Sequence[int]) -> Follows:
        """Return the units that are best done by the worker of another, mapped to that."""
        return self._follows

    def sweep(self) -> int:
        """Remove the groups that lost to another attempt's; see :func:`derived.sweep`."""
        return derived.sweep(self.store, self.kind, self.subject)


def extraction(store: StoreReader) -> Work:
    """Return the job of extraction: every token's rows."""
    plan = store.plan
    per_row = counted(len(plan.hookpoints), "hookpoint")
    what = f"{plan.model.id} over {plan.corpus.uri}, {per_row}"
    shards = StoreShards(store, EXTRACT)
    return Work(EXTRACT, shards, "extracting", what, per_row, command("verify", store.path))


def pooling(store: StoreReader) -> Work:
    """Return the job of pooled rows."""
    plan = store.plan
    per_row = f"{counted(len(plan.hookpoints), 'hookpoint')} x {', '.join(plan.pools)}"
    what = f"{plan.model.id} over {plan.corpus.uri}, {per_row}"
    shards = StoreShards(store, POOLED)
    after = command("verify", store.path)
    return Work(POOLED, shards, "pooling", what, per_row, after, "documents")


def follows(store: StoreReader, shards: Sequence[int]) -> frozenset[int]:
    """Return those of the shards whose first tokens continue a sequence of the shard before.

    The worker that computed the shard before has the sequence's key-value cache. A sequence of a
    model that is not causal is computed whole for either shard, so no cache is kept.

    Parameters
    ----------
    store : StoreReader
        The store.
    shards : sequence of int
        Numbers of shards.
    """
    from actlas.pipeline.extract.inputs import window_tokens

    plan = store.plan
    if not plan.model.causal or not shards:
        return frozenset()
    numbers = np.array([shard for shard in shards if shard], dtype=np.int64)
    borders = numbers * plan.shard_rows
    starts = store.documents.start[store.documents.find(borders)]
    return frozenset(numbers[(borders - starts) % window_tokens(plan) > 0].tolist())
