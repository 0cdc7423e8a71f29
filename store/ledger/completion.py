"""``Completion``: which shards of each job are done, from their receipts, which are cached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ActlasError, CorruptDataError, NotExtractedError
from actlas.store.format import layout
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.recorded import Recorded
from actlas.store.format.schema import Receipt
from actlas.store.format.validation import CHANGED
from actlas.store.ledger.finished import is_finished, lost_error
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts
from actlas.store.objects.base import Objects
from actlas.store.objects.threads import OncePerKey

KEPT = 512
"""Receipts that are kept in memory; one has up to 50 kB on disk."""


@dataclass(frozen=True, slots=True)
class JobShards:
    """How the tokens or documents that a job covers are split into shards.

    Attributes
    ----------
    n_tokens, shard_rows : int
        The number of tokens of the corpus, and of tokens per shard of a job over rows.
    n_documents, shard_documents : int
        The number of documents, and of documents per shard of pooled rows; ``shard_documents`` is
        0 if the plan pools nothing.
    dense : bool
        Whether every token has a row.
    arrays : tuple of ArraySpec
        The arrays of which each shard of a job over rows has an object.
    pooled : tuple of ArraySpec
        The arrays of which each shard of pooled rows has an object.
    """

    n_tokens: int
    shard_rows: int
    n_documents: int
    shard_documents: int
    dense: bool
    arrays: tuple[ArraySpec, ...]
    pooled: tuple[ArraySpec, ...]

    @classmethod
    def of(cls, arrays: StoreArrays) -> JobShards:
        """Return how the jobs of a plan are split, given the plan's arrays."""
        plan = arrays.plan
        shard_documents = next((spec.shard_rows for spec in arrays.pooled.values()), 0)
        return cls(
            plan.n_tokens,
            plan.shard_rows,
            plan.n_documents,
            shard_documents,
            plan.dense,
            arrays.in_shards(pooled=False),
            arrays.in_shards(pooled=True),
        )

    def n_shards(self, job: str) -> int:
        """Return a job's number of shards; derived jobs over rows have as many as extraction."""
        if job == POOLED:
            documents = self.shard_documents
            return layout.n_shards(self.n_documents, documents) if documents else 0
        if job == EXTRACT and not self.dense:
            return 0
        return layout.n_shards(self.n_tokens, self.shard_rows)

    def covered(self, shard: int, job: str) -> tuple[int, int]:
        """Return the tokens [start, stop) that a shard covers, or the documents for pooled rows."""
        if job == POOLED:
            return layout.shard_range(shard, self.shard_documents, self.n_documents)
        return layout.shard_range(shard, self.shard_rows, self.n_tokens)

    def keys(self, job: str) -> Iterator[str]:
        """Yield the keys of all objects of all shards of a job, those of the last shard first."""
        arrays = {EXTRACT: self.arrays, POOLED: self.pooled}.get(job, ())
        for shard in reversed(range(self.n_shards(job))):
            yield from (spec.key(shard) for spec in arrays)


class Completion:
    """Which shards of a store's jobs are done; a shard known to be done is not looked up again.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    plan_sha256 : str
        The seal of the store's plan.
    job_shards : JobShards
        The number of shards of each job, and what they cover.
    """

    def __init__(self, objects: Objects, plan_sha256: str, job_shards: JobShards) -> None:
        self._objects, self._plan_sha256, self._job_shards = objects, plan_sha256, job_shards
        self._seen: dict[str, frozenset[int]] = {}
        self._receipts: dict[str, Receipts] = {}
        self._receipt = OncePerKey(self._read_receipt, maxsize=KEPT)
        self._record = OncePerKey(self._read_records, maxsize=KEPT)

    def __reduce__(self) -> tuple[Any, ...]:
        return Completion, (self._objects, self._plan_sha256, self._job_shards)

    def receipts(self, job: str) -> Receipts:
        """Return the receipts of a job."""
        if job not in self._receipts:
            self._receipts[job] = self._fresh(job)
        return self._receipts[job]

    def _fresh(self, job: str) -> Receipts:
        n_shards = self._job_shards.n_shards(job)
        return Receipts(self._objects, job, n_shards, self._plan_sha256)

    def receipt(self, shard: int, job: str) -> Receipt:
        """Return a shard's receipt.

        Raises
        ------
        NotExtractedError
            The shard is not done.
        CorruptDataError
            The job was finished, and the shard's receipt is lost.
        """
        return self._receipt((shard, job, self.receipts(job).generation(shard)))

    def repaired_since(self, shard: int, job: str) -> Callable[[], bool]:
        """Return a function that tells whether a shard was repaired with other bytes after this.

        The function lists the repairs again and looks for a receipt of a later generation than the
        one known now.
        """
        known = self.receipts(job).generation(shard)

        def repaired() -> bool:
            return self._fresh(job).generation(shard) > known

        return repaired

    def forget(self, job: str) -> None:
        """Drop the cached receipts of a job, after one of them was replaced."""
        self._receipts.pop(job, None)
        self._seen.pop(job, None)
        self._receipt.clear()
        self._record.clear()

    def done(self, job: str) -> frozenset[int]:
        """Return the shards of a job that are done, by a fresh listing."""
        self._seen[job] = self.receipts(job).done()
        return self._seen[job]

    def require(self, shards: NDArray[np.int64], job: str) -> None:
        """Raise ``NotExtractedError`` if one of these shards is not done.

        If the job was finished, and a receipt is lost since, raise ``CorruptDataError``.
        """
        seen = self._seen.get(job)
        if seen is not None and seen.issuperset(shards.tolist()):
            return
        absent = sorted(set(shards.tolist()) - self.done(job))
        if absent:
            raise self._not_done(absent, job)

    def whole(self, job: str) -> list[int]:
        """Return the shards of a job that are done, ascending, by a fresh listing.

        Raises
        ------
        CorruptDataError
            The job was finished, and receipts are lost since: their rows would be left out.
        """
        done = self.done(job)
        if lost := self.lost(job, done):
            raise self._lost(lost, job)
        return sorted(done)

    def lost(self, job: str, done: Collection[int]) -> list[int]:
        """Return the shards whose receipts are lost: those without one, if the job was finished.

        That a job was finished is recorded. Stores of earlier versions may lack the record: there a
        job was finished if it has no receipt at all, and all objects of its shards, of which there
        are several. Workers that were killed leave fewer: each writes one shard at a time, and its
        receipt at once.

        Parameters
        ----------
        job : str
            The job.
        done : collection of int
            The shards that have a receipt.
        """
        n_shards = self._job_shards.n_shards(job)
        if len(done) >= n_shards:
            return []
        finished = is_finished(self._objects, job) or (not done and self._has_all_objects(job))
        return sorted(set(range(n_shards)) - set(done)) if finished else []

    def _has_all_objects(self, job: str) -> bool:
        keys = self._job_shards.keys(job)
        several = self._job_shards.n_shards(job) > 1 and job in (EXTRACT, POOLED)
        return several and all(self._objects.size(key) is not None for key in keys)

    def record(self, shard: int, key: str, job: str) -> Recorded:
        """Return what a shard's receipt records of one of its objects.

        Raises
        ------
        NotExtractedError
            The shard is not done.
        CorruptDataError
            The receipt names no such object.
        """
        records = self._record((shard, job, self.receipts(job).generation(shard)))
        if key not in records:
            raise CorruptDataError(
                f"{self._objects.url}/{self.receipts(job).key(shard)}: this receipt names no "
                f"{key}. {CHANGED}",
                path=key,
            )
        return records[key]

    def _read_records(self, which: tuple[int, str, int]) -> dict[str, Recorded]:
        records = self._receipt(which).objects
        return {record.key: Recorded.of(record) for record in records}

    def _read_receipt(self, which: tuple[int, str, int]) -> Receipt:
        shard, job, generation = which
        try:
            return self.receipts(job).read(shard, generation)
        except FileNotFoundError:
            self.done(job)
            # A repair removes a receipt that cannot be read; the valid one is a later one.
            if self.receipts(job).generation(shard) > generation:
                return self.receipts(job).read(shard)
            self.require(np.array([shard], dtype=np.int64), POOLED if job == POOLED else EXTRACT)
            raise

    def _lost(self, lost: list[int], job: str) -> ActlasError:
        start, stop = self._job_shards.covered(lost[0], job)
        of = "documents" if job == POOLED else "rows"
        return lost_error(self._objects.url, job, lost, f"{of} [{start}, {stop})")

    def _not_done(self, absent: list[int], job: str) -> ActlasError:
        if self.lost(job, self._seen.get(job, frozenset())):
            return self._lost(absent, job)
        path, first = self._objects.url, absent[0]
        start, stop = self._job_shards.covered(first, job)
        if job == POOLED:
            what = (
                f"{path}: documents [{start}, {stop}) (shard {first} of the pooled rows) are not "
                f"pooled yet. `actlas extract {path}` continues."
            )
        else:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            what = (
                f"{path}: rows [{start}, {stop}) (shard {first}{more}) are not extracted yet. "
                f"`actlas extract {path}` continues, `actlas status {path}` shows the progress."
            )
        return NotExtractedError(what, path=path, shards=absent)
