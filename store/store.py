"""The Store: one folder of activations with its documents, opened with numpy alone."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.display import html as display
from actlas.store.errors import NotExtractedError
from actlas.store.format import layout
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import Plan, PlanFile, Receipt
from actlas.store.format.zarr_json import metadata_bytes
from actlas.store.ledger.completion import Finished
from actlas.store.ledger.plan_file import names_in, read_plan, require_plan
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts
from actlas.store.objects.base import Objects, open_objects
from actlas.store.read.document import Context, Document
from actlas.store.read.documents import Documents
from actlas.store.read.pooled import Pooled, pooled_range
from actlas.store.read.row_index import Placement
from actlas.store.read.views import Activations, DocumentActivations, Rows
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.statistics.shard import EARLIER_STATISTICS, STATISTICS, ShardStatistics
from actlas.store.statistics.shard_documents import ShardDocuments
from actlas.store.statistics.total import Statistics, combine

if TYPE_CHECKING:
    from actlas.store.features.features import Features
    from actlas.store.features.unit_extremes import Units


class Store:
    """A store that has a plan. Open one with :func:`actlas.open`.

    Attributes
    ----------
    path : str
        Where it lies.
    plan : Plan
        What a row is.
    rows : Rows
        ``token_id``, ``doc_idx`` and ``pos_idx`` of every row.
    documents : Documents
        Text, tokens, labels and origin of every document.
    activations : mapping of hookpoint to LazyArray, shape [row, unit]

    Examples
    --------
    >>> store = actlas.open("run.zarr")                        # doctest: +SKIP
    >>> store.activations["resid_post.3"][100:200].shape       # doctest: +SKIP
    (100, 256)
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
        self.finished = Finished(self)
        self._placement = Placement(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(open_store, check=self.check), (self.path,)

    @cached_property
    def arrays(self) -> StoreArrays:
        """The specs of every array: the plan's, with the statistics that the store was given."""
        first = self.plan.hookpoints[0]
        for names in (STATISTICS, EARLIER_STATISTICS):
            arrays = StoreArrays(self.plan, statistics_names=names)
            spec = arrays.statistic(first)
            digest, _ = self.plan_file.objects.get(spec.metadata_key, ("", 0))
            if digest == hashlib.sha256(metadata_bytes(spec.metadata())).hexdigest():
                return arrays
        if not self.plan.dense:
            return StoreArrays(self.plan)
        key = arrays.statistic(first).metadata_key
        found = names_in(self.objects, self.plan_file, key, "statistics")
        return StoreArrays(self.plan, statistics_names=tuple(found))

    @cached_property
    def rows(self) -> Rows:
        """The row columns.

        Raises
        ------
        NotExtractedError
            The store holds pooled rows alone.
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
            The store holds pooled rows alone.
        """
        self._require_dense()
        return Activations({n: self._lazy(spec) for n, spec in self.arrays.activations.items()})

    @cached_property
    def documents(self) -> Documents:
        """The documents."""
        specs = StoreArrays(self.plan).documents
        names: dict[str, list[str]] = {}
        for name in ("source", "label", *self.plan.token_columns):
            key = f"documents/{name}/zarr.json"
            if key in self.plan_file.objects:
                distinct = name != "source"  # two files may have one name
                names[name] = names_in(self.objects, self.plan_file, key, distinct=distinct)
        if "label" in names:
            specs = StoreArrays(self.plan, tuple(names["label"])).documents
        columns = {name: LazyArray(self.objects, spec) for name, spec in specs.items()}
        token_columns = {name: tuple(names[name]) for name in self.plan.token_columns}
        return Documents(columns, names.get("label", []), names.get("source", []), token_columns)

    @cached_property
    def pooled(self) -> Pooled:
        """The pooled rows by hookpoint and pool; empty where the plan has none."""
        require = partial(self.finished.require, job=POOLED)
        checksums = partial(self.finished.checksums, job=POOLED)
        since = partial(self.finished.since, job=POOLED)
        return Pooled(self, lambda spec: LazyArray(self.objects, spec, require, checksums, since))

    @property
    def jobs(self) -> tuple[str, ...]:
        """The jobs of extraction: every token's rows, pooled rows, or both."""
        return (EXTRACT,) * self.plan.dense + (POOLED,) * bool(self.plan.pools)

    def n_shards(self, job: str = EXTRACT) -> int:
        """Return how many shards a job has; derived jobs over rows have as many as extraction."""
        if job == POOLED:
            return self.arrays.n_pooled_shards
        return 0 if job == EXTRACT and not self.plan.dense else self.plan.n_shards

    def covered(self, shard: int, job: str = EXTRACT) -> tuple[int, int]:
        """Return what a shard of a job holds: tokens [start, stop), or documents if pooled."""
        return pooled_range(self, shard) if job == POOLED else self.shard_range(shard)

    def receipts(self, job: str = EXTRACT) -> Receipts:
        """Return the receipts of a job."""
        return self.finished.receipts(job)

    def forget(self, job: str) -> None:
        """Forget what was read of a job's receipts: one of them was replaced."""
        self.finished.forget(job)

    def done(self, job: str = EXTRACT) -> frozenset[int]:
        """Return the shards of a job that have a receipt, by a fresh listing."""
        return self.finished.shards(job)

    def missing(self, job: str = EXTRACT) -> list[int]:
        """Return the shards of a job that have no receipt, in order, by a fresh listing."""
        return sorted(set(range(self.n_shards(job))) - self.done(job))

    def receipt(self, shard: int, job: str = EXTRACT) -> Receipt:
        """Return a shard's receipt."""
        return self.finished.receipt(shard, job)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the tokens (and rows) [start, stop) of a shard."""
        return layout.shard_range(shard, self.plan.shard_rows, self.plan.n_tokens)

    def shard_columns(self, shard: int) -> dict[str, NDArray[Any]]:
        """Return the row columns that a shard must have, worked out from the plan alone."""
        return self._placement.columns(shard)

    def row_of(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row in which each token ``t`` of the corpus lies; shape of ``t``."""
        return self._placement.row_of(t)

    def document(self, doc_idx: int) -> Document:
        """Return one document: its text, its tokens, and their activations in order.

        Raises
        ------
        IndexError
            There is no such document.
        """
        self.documents.check(doc_idx)
        start, stop = self.documents.starts(doc_idx, doc_idx + 1).tolist()
        rows = self.row_of(np.arange(start, stop, dtype=np.int64))
        activations = self.activations if self.plan.dense else Activations({})
        return self.documents.document(doc_idx, DocumentActivations(activations, rows))

    def context(self, doc_idx: int, pos_idx: int, words: int = 20) -> Context:
        """Return a token with ``words`` words of its document on each side."""
        return self.documents.context(doc_idx, pos_idx, words)

    def features(self, name: str) -> Features:
        """Return a set of features: codes by token, and by feature where they are indexed.

        Raises
        ------
        FeatureError
            There is no such set. The message says which there are.
        """
        from actlas.store.features.features import open_features

        return open_features(self, name)

    def units(self, hookpoint: str) -> Units:
        """Return the top and bottom tokens of every raw unit of a hookpoint.

        Raises
        ------
        HookpointError
            There is no such hookpoint.
        FeatureError
            They are not gathered yet.
        """
        from actlas.store.features.unit_extremes import open_units

        return open_units(self, hookpoint)

    def statistics(self, hookpoint: str) -> Statistics:
        """Return the statistics of every unit over all extracted rows.

        n, mean, variance, min and max; the variance within documents; and the mean norm of the
        rows. Of a store that an earlier version extracted the last two are None.

        Raises
        ------
        HookpointError
            There is no such hookpoint.
        NotExtractedError
            Nothing is extracted yet.
        """
        if hookpoint not in self.arrays.statistics:
            self.activations[hookpoint]  # raises, and says which there are
        done = sorted(self.done())
        if not done:
            raise NotExtractedError(f"{self.path}: nothing is extracted yet: `actlas extract`.")
        stored = LazyArray(self.objects, self.arrays.statistics[hookpoint])
        names = self.arrays.statistics_names
        return combine(  # one shard in memory
            (
                self._placement.borders(shard),
                ShardStatistics.from_table(names, stored.read(shard, shard + 1)[0]),
            )
            for shard in done
        )

    def shard_documents(self, shard: int) -> ShardDocuments:
        """Return which rows of a shard are of which document."""
        return self._placement.documents(shard)

    def n_stored_bytes(self) -> int:
        """Return the bytes of all extracted shards as they lie on disk, from the receipts."""
        return sum(
            record.n_bytes
            for job in self.jobs
            for receipt in self.receipts(job).read_many(sorted(self.done(job)))
            for record in receipt.objects
        )

    def require_same_plan(self) -> None:
        """Raise ``ConflictError`` where the plan at this path is no longer the one that was opened.

        A worker that slept while its store was removed and another planned in its place must not
        write there.
        """
        require_plan(self.objects, self.plan_sha256)

    def require(self, shards: NDArray[np.int64]) -> None:
        """Raise ``NotExtractedError`` where one of these shards has no receipt."""
        self.finished.require(shards, EXTRACT)

    def _require_dense(self) -> None:
        if not self.plan.dense:
            raise NotExtractedError(
                f"{self.path}: this store was planned with --pooled-only: it has one row per "
                f"document ({', '.join(self.plan.pools)}), and none per token. `store.pooled` and "
                "`actlas localize` read those; for tokens, plan another store without "
                "--pooled-only.",
                path=self.path,
            )

    def _lazy(self, spec: ArraySpec) -> LazyArray:
        checksums = partial(self.finished.checksums, job=EXTRACT) if self.check else None
        since = partial(self.finished.since, job=EXTRACT)
        return LazyArray(self.objects, spec, self.require, checksums, since)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<actlas store {self.path}: {plan.n_tokens:,} rows of {plan.n_documents:,} documents "
            f"x {len(plan.hookpoints)} hookpoints of {plan.model.id}, "
            f"{', '.join(self.progress())}>"
        )

    def progress(self) -> list[str]:
        """Return how far each job is, in words."""
        words = {EXTRACT: "shards extracted", POOLED: "shards of documents pooled"}
        return [f"{len(self.done(j)):,} of {self.n_shards(j):,} {words[j]}" for j in self.jobs]

    def _repr_html_(self) -> str:
        return display.store_html(self)


def open_store(path: str | os.PathLike[str], *, check: bool = True) -> Store:
    """Open a store to read it: numpy and nothing heavier.

    Parameters
    ----------
    path : path or URL
        The store's folder, or its place in a bucket: ``s3://bucket/run.zarr``.
    check : bool
        Hold raw chunks against the receipts' checksums. Without that, scattered rows in profile
        ``none`` are read alone and not with the whole chunk that the checksum is of: for looking at
        single documents of large stores. Compressed chunks are always checked.

    Raises
    ------
    StoreNotFoundError
        There is no store at this path.
    FormatError
        It was written by another version of the format, or its metadata was changed.
    CorruptDataError
        Its plan is not the one that was written.
    """
    objects = open_objects(path)
    plan_file, plan_sha256 = read_plan(objects, path)
    return Store(objects, plan_file, plan_sha256, check=check)
