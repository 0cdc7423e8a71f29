"""The Store: one folder of activations with its documents, opened with numpy alone."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store import display, layout
from actlas.store.arrays import ArraySpec, metadata_bytes
from actlas.store.documents import Context, Document, Documents
from actlas.store.errors import (
    ConflictError,
    CorruptDataError,
    FormatError,
    NotExtractedError,
    StoreNotFoundError,
)
from actlas.store.lazy import LazyArray
from actlas.store.objects import Objects, is_url, open_objects
from actlas.store.plausible import check_objects
from actlas.store.pooled import Pooled, pooled_range
from actlas.store.receipts import EXTRACT, POOLED, Receipts
from actlas.store.schema import (
    FORMAT_VERSION,
    Plan,
    PlanFile,
    Receipt,
    seal_of,
    unseal,
    version_error,
)
from actlas.store.specs import StoreArrays
from actlas.store.statistics import (
    EARLIER_STATISTICS,
    STATISTICS,
    Border,
    ShardDocuments,
    ShardStatistics,
    Statistics,
    combine,
)
from actlas.store.views import Activations, DocumentActivations, Rows

if TYPE_CHECKING:
    from actlas.store.features import Features
    from actlas.store.units import Units

PLAN_KEY = "ledger/plan.json"
PLAN_COPY_KEY = "ledger/plan.copy.json"
"""The same bytes once more: without them nothing else could be proved or repaired."""


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
        self._seen: dict[str, frozenset[int]] = {}
        self._receipts: dict[str, Receipts] = {}
        self._receipt = lru_cache(maxsize=4096)(self._read_receipt)
        self._inverse = lru_cache(maxsize=16)(self._shard_rows)

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
        found = self._attribute_names(arrays.statistic(first).metadata_key, "statistics")
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
                names[name] = self._attribute_names(key)
        if "label" in names:
            specs = StoreArrays(self.plan, tuple(names["label"])).documents
        columns = {name: LazyArray(self.objects, spec) for name, spec in specs.items()}
        token_columns = {name: tuple(names[name]) for name in self.plan.token_columns}
        return Documents(columns, names.get("label", []), names.get("source", []), token_columns)

    @cached_property
    def pooled(self) -> Pooled:
        """The pooled rows by hookpoint and pool; empty where the plan has none."""

        def lazy(spec: ArraySpec) -> LazyArray:
            return LazyArray(self.objects, spec, self._require_pooled, self._pooled_checksums)

        return Pooled(self, lazy)

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
        if job not in self._receipts:
            n_shards = self.n_shards(job)
            self._receipts[job] = Receipts(self.objects, job, n_shards, self.plan_sha256)
        return self._receipts[job]

    def forget(self, job: str) -> None:
        """Forget what was read of a job's receipts: one of them was replaced."""
        self._receipts.pop(job, None)
        self._seen.pop(job, None)
        self._receipt.cache_clear()

    def done(self, job: str = EXTRACT) -> frozenset[int]:
        """Return the shards of a job that have a receipt, by a fresh listing."""
        self._seen[job] = self.receipts(job).done()
        return self._seen[job]

    def missing(self, job: str = EXTRACT) -> list[int]:
        """Return the shards of a job that have no receipt, in order, by a fresh listing."""
        return sorted(set(range(self.n_shards(job))) - self.done(job))

    def receipt(self, shard: int, job: str = EXTRACT) -> Receipt:
        """Return a shard's receipt."""
        return self._receipt(shard, job)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the tokens (and rows) [start, stop) of a shard."""
        return layout.shard_range(shard, self.plan.shard_rows, self.plan.n_tokens)

    def shard_columns(self, shard: int) -> dict[str, NDArray[Any]]:
        """Return the row columns that a shard must have, worked out from the plan alone."""
        start, stop = self.shard_range(shard)
        t = layout.shard_tokens(self.plan.order, self.plan.seed, start, stop)
        doc_idx = self.documents.find(t)
        columns: dict[str, NDArray[Any]] = {
            "token_id": self.documents.token_ids(start, stop)[t - start],
            "doc_idx": doc_idx.astype(np.int64),
            "pos_idx": (t - self.documents.start[doc_idx]).astype(np.int32),
        }
        if self.plan.keep_special:
            columns["special"] = self.documents.special(start, stop)[t - start].astype(np.int8)
        for name in self.plan.token_columns:
            columns[name] = self.documents.token_column(name, start, stop)[t - start]
        return columns

    def row_of(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row in which each token ``t`` of the corpus lies; shape of ``t``."""
        rows = np.empty_like(t)
        shard_of = t // self.plan.shard_rows
        for shard in np.unique(shard_of):
            start, _ = self.shard_range(int(shard))
            mask = shard_of == shard
            rows[mask] = start + self._inverse(int(shard))[t[mask] - start]
        return rows

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
        from actlas.store.features import open_features

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
        from actlas.store.units import open_units

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
                self._borders(shard),
                ShardStatistics.from_table(names, stored.read(shard, shard + 1)[0]),
            )
            for shard in done
        )

    def shard_documents(self, shard: int) -> ShardDocuments:
        """Return which rows of a shard are of which document."""
        start, stop = self.shard_range(shard)
        first, last = self.documents.find(start), self.documents.find(stop - 1)
        edges = self.documents.starts(first, last + 1)
        return ShardDocuments.of(self._shard_rows(shard), edges, start, stop)

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
        try:
            # Its end alone: a large store's plan is megabytes, and every commit asks.
            size = self.objects.size(PLAN_KEY) or 0
            now = seal_of(self.objects.read(PLAN_KEY, max(0, size - 128)))
        except FileNotFoundError:
            now = "none"
        if now != self.plan_sha256:
            raise ConflictError(
                f"{self.path}: the plan here is {now[:16]}…, this worker's was "
                f"{self.plan_sha256[:16]}…. The store was replaced; nothing more is written.",
                path=self.path,
            )

    def require(self, shards: NDArray[np.int64]) -> None:
        """Raise ``NotExtractedError`` where one of these shards has no receipt."""
        seen = self._seen.get(EXTRACT)
        if seen is not None and seen.issuperset(shards.tolist()):
            return
        absent = sorted(set(shards.tolist()) - self.done())
        if absent:
            start, stop = self.shard_range(int(absent[0]))
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise NotExtractedError(
                f"{self.path}: rows [{start}, {stop}) (shard {absent[0]}{more}) are not extracted "
                f"yet. `actlas extract {self.path}` goes on, `actlas status {self.path}` tells "
                "how far it is.",
                path=self.path,
                shards=absent,
            )

    def _require_dense(self) -> None:
        if not self.plan.dense:
            raise NotExtractedError(
                f"{self.path}: this store was planned with --pooled-only: it has one row per "
                f"document ({', '.join(self.plan.pools)}), and none per token. `store.pooled` and "
                "`actlas localize` read those; for tokens, plan another store without "
                "--pooled-only.",
                path=self.path,
            )

    def _require_pooled(self, shards: NDArray[np.int64]) -> None:
        seen = self._seen.get(POOLED)
        if seen is not None and seen.issuperset(shards.tolist()):
            return
        absent = sorted(set(shards.tolist()) - self.done(POOLED))
        if absent:
            start, stop = self.covered(int(absent[0]), POOLED)
            raise NotExtractedError(
                f"{self.path}: documents [{start}, {stop}) (shard {absent[0]} of the pooled rows) "
                f"are not pooled yet. `actlas extract {self.path}` goes on.",
                path=self.path,
                shards=absent,
            )

    def _pooled_checksums(self, shard: int, key: str) -> tuple[int, ...] | None:
        records = self.receipt(shard, POOLED).objects
        return next((r.chunk_crc32c for r in records if r.key == key), None)

    def _lazy(self, spec: ArraySpec) -> LazyArray:
        checksums = self._chunk_checksums if self.check else None
        return LazyArray(self.objects, spec, self.require, checksums)

    def _chunk_checksums(self, shard: int, key: str) -> tuple[int, ...] | None:
        records = self.receipt(shard).objects
        return next((r.chunk_crc32c for r in records if r.key == key), None)

    def _read_receipt(self, shard: int, job: str) -> Receipt:
        try:
            return self.receipts(job).read(shard)
        except FileNotFoundError:
            require = self._require_pooled if job == POOLED else self.require
            require(np.array([shard], dtype=np.int64))
            raise

    def _borders(self, shard: int) -> Border:
        """Return the documents that cross a shard's borders."""
        start, stop = self.shard_range(shard)
        first, last = self.documents.find(start), self.documents.find(stop - 1)
        left = first if self.documents.starts(first, first)[0] < start else None
        crosses = self.documents.starts(last, last + 1)[1] > stop
        return Border(left, last if crosses and last != left else None)

    def _shard_rows(self, shard: int) -> NDArray[np.int64]:
        return layout.shard_rows_of(self.plan.order, self.plan.seed, *self.shard_range(shard))

    def _attribute_names(self, key: str, attribute: str = "names") -> list[str]:
        digest, _ = self.plan_file.objects.get(key, ("", 0))
        if hashlib.sha256(self.objects.read(key)).hexdigest() != digest:
            raise CorruptDataError(
                f"{self.path}/{key}: its sha256 is not the plan's: the names in it were changed.",
                path=key,
            )
        names = attributes_of(read_json(self.objects, key)).get(attribute, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FormatError(f"{self.path}/{key}: attribute `{attribute}` must list strings")
        return names

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


def attributes_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a ``zarr.json``; none where they are no JSON object."""
    attributes = metadata.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def read_json(objects: Objects, key: str) -> dict[str, Any]:
    """Return a JSON object of the store.

    Raises
    ------
    FormatError
        It is none.
    """
    data = objects.read(key)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{objects.url}/{key}: expected JSON ({error})", path=key) from error
    if not isinstance(value, dict):
        raise FormatError(f"{objects.url}/{key}: expected a JSON object", path=key)
    return value


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
    try:
        root = read_json(objects, "zarr.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFoundError(
            f"{objects.url}: there is no store here. `actlas plan {path} --model M --corpus C` "
            "makes one.",
            path=objects.url,
        ) from error
    ours = attributes_of(root).get("actlas")
    version = ours.get("format_version") if isinstance(ours, dict) else None
    if version is None:
        raise FormatError(f"{objects.url}: a Zarr group, but no store of actlas.", path=path)
    if version != FORMAT_VERSION:
        raise version_error(objects.url, version)
    try:
        data = objects.read(PLAN_KEY)
    except FileNotFoundError as error:
        again = "Plan again." if is_url(objects.url) else "Remove the folder and plan again."
        if objects.size(PLAN_COPY_KEY) is not None:
            again = (
                f"Its copy is there: `actlas repair {objects.url}` puts it back, or says why not."
            )
        raise StoreNotFoundError(
            f"{objects.url}: {PLAN_KEY} is missing: it is lost, or planning was not finished here. "
            + again,
            path=objects.url,
        ) from error
    plan_file = unseal(data, PlanFile, f"{objects.url}/{PLAN_KEY}")
    check_objects(plan_file, f"{objects.url}/{PLAN_KEY}")
    return Store(objects, plan_file, seal_of(data), check=check)
