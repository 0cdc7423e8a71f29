"""``StoreReader``: plan, receipts, arrays, rows, documents and statistics of one store."""

from __future__ import annotations

import os
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.text import counted
from actlas.store.errors import NotExtractedError
from actlas.store.format.aliases import stored_name
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import Plan, PlanFile, Receipt
from actlas.store.ledger.completion import Completion, JobShards
from actlas.store.ledger.guards import JobGuard, PlannedGuard
from actlas.store.ledger.plan_file import names_in, planned_arrays, read_plan, require_plan
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts
from actlas.store.objects.base import Objects, open_objects
from actlas.store.objects.threads import AHEAD, map_in_order
from actlas.store.read.document import Document
from actlas.store.read.documents import Documents
from actlas.store.read.row_index import RowIndex
from actlas.store.read.views import Activations, DocumentActivations, Pooled, Rows
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.statistics.shard import ShardStatistics
from actlas.store.statistics.shard_documents import ShardDocuments
from actlas.store.statistics.total import Statistics, combine

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped

TABLES_BYTES = 64 << 20
"""Tables of statistics that are read ahead, in bytes."""


class StoreReader:
    """An open store: its plan, receipts, arrays, rows, documents and statistics.

    All code that reads, writes, verifies or repairs a store takes a reader.
    :class:`~actlas.store.store.Store` adds feature activations, contexts and notebook display.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    plan_file : PlanFile
        The plan as the ledger stores it, with the digests of all that it rests on.
    plan_sha256 : str
        The seal of the plan.
    check : bool
        Whether uncompressed chunks are checked against the receipts' checksums.

    Attributes
    ----------
    path : str
        The store's folder or URL.
    plan : Plan
        The definition of every row.
    completion : Completion
        Which shards of which job are done.
    row_index : RowIndex
        Which token lies in which row.
    rows : Rows
        The row columns: ``token_id``, ``doc_idx`` and ``pos_idx`` of every row.
    activations : Activations
        The dense activations [row, unit] by hookpoint.
    documents : Documents
        Text, tokens, labels and sources of the documents.
    pooled : Pooled
        The pooled rows [document, unit] by hookpoint and pool.
    """

    def __init__(
        self, objects: Objects, plan_file: PlanFile, plan_sha256: str, *, check: bool = True
    ) -> None:
        self.objects = objects
        self.check = check
        self.plan_sha256 = plan_sha256
        self.path = objects.url
        self.plan: Plan = plan_file.plan
        self.plan_file = plan_file
        self.job_shards = JobShards.of(StoreArrays(self.plan))
        self.completion = Completion(objects, plan_sha256, self.job_shards)
        self.row_index = RowIndex(self.plan)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check: bool = True) -> Self:
        """Open the store at a path or URL: see :func:`actlas.store.store.open_store`.

        Parameters
        ----------
        path : path or URL
            The store's folder, or its place in a bucket.
        check : bool
            Whether uncompressed chunks are checked against the receipts' checksums.
        """
        objects = open_objects(path)
        plan_file, plan_sha256 = read_plan(objects, path)
        return cls(objects, plan_file, plan_sha256, check=check)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self).open, check=self.check), (self.path,)

    @cached_property
    def arrays(self) -> StoreArrays:
        """The specs of every array of the plan, with the statistics that this store has."""
        return planned_arrays(self.objects, self.plan_file)

    @cached_property
    def rows(self) -> Rows:
        """The row columns.

        Raises
        ------
        NotExtractedError
            The store has only pooled rows.
        """
        self._require_dense()
        columns = {name: self._lazy(spec) for name, spec in self.arrays.rows.items()}
        return Rows(columns, self.documents.token_column_names)

    @cached_property
    def activations(self) -> Activations:
        """The dense activations by hookpoint.

        Raises
        ------
        NotExtractedError
            The store has only pooled rows.
        """
        self._require_dense()
        arrays = {name: self._lazy(spec) for name, spec in self.arrays.activations.items()}
        return Activations(arrays, self.name_of)

    @cached_property
    def documents(self) -> Documents:
        """The documents with their text, tokens, labels and sources."""
        specs = StoreArrays(self.plan).documents
        names: dict[str, list[str]] = {}
        for name in ("source", "label", *self.plan.token_columns):
            key = f"documents/{name}/zarr.json"
            if key in self.plan_file.objects:
                distinct = name != "source"  # two files may have the same name
                names[name] = names_in(self.objects, self.plan_file, key, distinct=distinct)
        if "label" in names:
            specs = StoreArrays(self.plan, tuple(names["label"])).documents
        guard = partial(PlannedGuard.of, self.objects, self.plan_file)
        columns = {n: LazyArray(self.objects, spec, guard(spec)) for n, spec in specs.items()}
        token_columns = {name: tuple(names[name]) for name in self.plan.token_columns}
        labels, sources = names.get("label", []), names.get("source", [])
        return Documents(columns, labels, sources, token_columns, self._activations_of)

    @cached_property
    def pooled(self) -> Pooled:
        """The pooled rows by hookpoint and pool; empty if the plan pools nothing."""
        guard = JobGuard(self.completion, POOLED)
        arrays = {k: LazyArray(self.objects, s, guard) for k, s in self.arrays.pooled.items()}
        return Pooled(self.path, arrays, self.name_of)

    def name_of(self, hookpoint: str) -> str:
        """Return the name of a stored hookpoint, given any of its names: see ``format/aliases.py``.

        Raises
        ------
        HookpointError
            The store has no such hookpoint.
        """
        model = self.plan.model
        return stored_name(hookpoint, self.plan.hookpoints, model.architecture, model.n_layers)

    @property
    def jobs(self) -> tuple[str, ...]:
        """The jobs of extraction: ``extract`` (every token's row), ``pooled``, or both."""
        return (EXTRACT,) * self.plan.dense + (POOLED,) * bool(self.plan.pools)

    def n_shards(self, job: str = EXTRACT) -> int:
        """Return a job's number of shards; derived jobs over rows have as many as extraction."""
        return self.job_shards.n_shards(job)

    def covered(self, shard: int, job: str = EXTRACT) -> tuple[int, int]:
        """Return the tokens [start, stop) that a shard covers, or the documents for pooled rows."""
        return self.job_shards.covered(shard, job)

    def receipts(self, job: str = EXTRACT) -> Receipts:
        """Return the receipts of a job."""
        return self.completion.receipts(job)

    def forget(self, job: str) -> None:
        """Drop the cached receipts of a job, after one of them was replaced."""
        self.completion.forget(job)

    def done(self, job: str = EXTRACT) -> frozenset[int]:
        """Return the shards of a job that have a receipt, by a fresh listing."""
        return self.completion.done(job)

    def whole(self, job: str = EXTRACT) -> list[int]:
        """Return the shards of a job that have a receipt, ascending, for readers of only these.

        Raises
        ------
        CorruptDataError
            The job was finished, and receipts are lost since: their rows would be left out.
        """
        return self.completion.whole(job)

    def missing(self, job: str = EXTRACT) -> list[int]:
        """Return the shards of a job that have no receipt, ascending, by a fresh listing."""
        return sorted(set(range(self.n_shards(job))) - self.done(job))

    def receipt(self, shard: int, job: str = EXTRACT) -> Receipt:
        """Return a shard's receipt.

        Raises
        ------
        NotExtractedError
            The shard is not done.
        """
        return self.completion.receipt(shard, job)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the tokens (and rows) [start, stop) of a shard."""
        return self.plan.shard_range(shard)

    def shard_columns(self, shard: int) -> dict[str, Shaped[NDArray[Any], " rows"]]:
        """Return the row columns that a shard must have, from the plan and the documents."""
        return self.row_index.columns(shard, self.documents)

    def row_of(self, t: Int64[NDArray[np.int64], " tokens"]) -> Int64[NDArray[np.int64], " tokens"]:
        """Return the row in which each token ``t`` of the corpus lies; shape of ``t``."""
        return self.row_index.row_of(t)

    def document(self, doc_idx: int) -> Document:
        """Return one document, its tokens and their activations; -1 is the last document.

        Raises
        ------
        IndexError
            There is no document of this number.
        """
        return self.documents[doc_idx]

    def _activations_of(self, start: int, stop: int) -> DocumentActivations:
        activations = self.activations if self.plan.dense else Activations({}, self._no_rows)
        return DocumentActivations(activations, self.row_of(np.arange(start, stop)))

    def statistics(self, hookpoint: str) -> Statistics:
        """Return the statistics of every unit of a hookpoint over all extracted rows.

        They are n, mean, variance, min and max; the variance within documents; and the mean norm
        of the rows. The last two are None for stores of earlier versions.

        Raises
        ------
        HookpointError
            The store has no such hookpoint.
        NotExtractedError
            No shard is extracted yet.
        CorruptDataError
            The store was extracted whole, and receipts are lost since; or stored statistics are
            not those that a receipt records.
        """
        self._require_dense()
        hookpoint = self.name_of(hookpoint)
        done = self.whole()
        if not done:
            raise NotExtractedError(
                f"{self.path}: no shard is extracted yet: run `actlas extract {self.path}`."
            )
        spec = self.arrays.statistics[hookpoint]
        stored = self._lazy(spec)
        table_bytes = spec.row_bytes
        n_ahead = min(TABLES_BYTES // table_bytes, AHEAD * self.objects.n_readers)
        names = self.arrays.statistics_names

        def read(shard: int) -> NDArray[Any]:
            table: NDArray[Any] = stored.read(shard, shard + 1)[0]
            return table

        tables = map_in_order(read, done, self.objects.n_readers, n_ahead=n_ahead)
        return combine(
            (
                self.row_index.borders(shard, self.documents),
                ShardStatistics.from_table(names, table),
            )
            for shard, table in zip(done, tables, strict=True)
        )

    def shard_documents(self, shard: int) -> ShardDocuments:
        """Return which rows of a shard belong to which document."""
        return self.row_index.shard_documents(shard, self.documents)

    def n_stored_bytes(self) -> int:
        """Return the stored size of all extracted shards in bytes, from their receipts."""
        return sum(
            record.n_bytes
            for job in self.jobs
            for receipt in self.receipts(job).read_many(sorted(self.done(job)))
            for record in receipt.objects
        )

    def require_same_plan(self) -> None:
        """Raise ``ConflictError`` if the plan at this path is no longer the one that was opened.

        A worker that was suspended while its store was replaced by another must not write to it.
        """
        require_plan(self.objects, self.plan_sha256)

    def require(self, shards: NDArray[np.int64]) -> None:
        """Raise if one of these shards of the extraction is not done.

        Parameters
        ----------
        shards : ndarray of int64, shape [shards]
            Indices of shards.

        Raises
        ------
        NotExtractedError
            A shard has no receipt.
        CorruptDataError
            A shard's receipt is lost: the extraction was finished.
        """
        self.completion.require(shards, EXTRACT)

    def _require_dense(self) -> None:
        if not self.plan.dense:
            raise NotExtractedError(
                f"{self.path}: this store was planned with --pooled-only: it has one row per "
                f"document ({', '.join(self.plan.pools)}) and none per token. `store.pooled` and "
                "`actlas localize` read them; for rows of tokens, plan another store without "
                "--pooled-only.",
                path=self.path,
            )

    def _no_rows(self, hookpoint: str) -> str:
        self._require_dense()
        return self.name_of(hookpoint)

    def _lazy(self, spec: ArraySpec) -> LazyArray:
        guard = JobGuard(self.completion, EXTRACT)
        return LazyArray(self.objects, spec, guard, check=self.check)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<actlas store {self.path}: {counted(plan.n_tokens, 'row')} of "
            f"{counted(plan.n_documents, 'document')} x "
            f"{counted(len(plan.hookpoints), 'hookpoint')} of {plan.model.id}, "
            f"{', '.join(self.progress())}>"
        )

    def progress(self) -> list[str]:
        """Return the progress of each job of extraction as text: ``3 of 12 shards extracted``."""
        words = {EXTRACT: "shards extracted", POOLED: "shards of documents pooled"}
        return [f"{len(self.done(j)):,} of {self.n_shards(j):,} {words[j]}" for j in self.jobs]
