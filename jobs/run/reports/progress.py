"""JSON output of ``actlas status``: the progress of a store's jobs, and its running driver."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from actlas.jobs.run.reports.base import MayLack, Part, Report, Text


class ShardCounts(MayLack):
    """Shards of a job."""

    MAY_LACK: ClassVar[tuple[str, ...]] = ("lost",)

    all: int
    """Number of shards."""
    done: int
    """Number of shards with a receipt (the record of a finished shard)."""
    missing: int
    """Number of shards that are neither done nor in quarantine, lost ones included."""
    lost: tuple[int, ...] = ()
    """Indices of the shards whose receipt is lost: the job was finished once. Absent if none is."""
    quarantined: list[int]
    """Indices of the shards in quarantine (set aside after repeated failures)."""


class RowCounts(Part):
    """Rows of a job; for pooled rows, documents."""

    all: int
    """Number of rows."""
    done: int
    """Number of rows in finished shards."""


class QuarantineEntry(Part):
    """A shard in quarantine."""

    shard: int
    """Index of the shard."""
    faults: dict[str, int]
    """Number of failed attempts by cause: ``task``, ``process``, ``node``."""
    error: Text
    """Error of the last attempt."""


class JobProgress(Part):
    """Progress of the extraction, or of pooling."""

    complete: bool
    """Whether every shard is done."""
    of: Literal["rows", "documents"]
    """Unit of ``rows``."""
    estimated: bool
    """Whether bytes, non-finite values and rates are estimates from a sample of the receipts."""
    shards: ShardCounts
    """Shards of the job."""
    rows: RowCounts
    """Rows of the job."""
    n_bytes: int
    """Stored bytes."""
    n_nonfinite: int
    """Number of values that are NaN or infinite."""
    rows_per_s: float | None
    """Rows per second between receipts, breaks between runs excluded; null below two receipts."""
    seconds_left: float | None
    """Estimated seconds to completion; null if the rate is unknown or no driver is running."""
    newest_receipt_unix_s: float | None
    """Time of the newest receipt in Unix seconds."""
    quarantine: list[QuarantineEntry]
    """Shards in quarantine with their errors."""


class DerivedProgress(MayLack):
    """Progress of a job derived from the rows, such as ``encode.NAME`` or ``index.NAME``."""

    MAY_LACK: ClassVar[tuple[str, ...]] = ("lost",)

    job: Text
    """Name of the job."""
    all: int | None
    """Number of units (shards, blocks or tables); null while it is unknown."""
    done: int
    """Number of finished units."""
    complete: bool
    """Whether the job is complete."""
    lost: tuple[int, ...] = ()
    """Units whose receipt is lost: the job was finished once. Absent if none is."""
    quarantined: list[int]
    """Indices of the units in quarantine."""


class WorkerProgress(Part):
    """A worker of the running driver."""

    worker: Text
    """Name of the worker."""
    state: Text
    """State: ``busy``, ``idle``, ``starting`` or ``waiting``."""
    seconds: float
    """Seconds in this state, or with its first shard."""
    shards: list[int]
    """Shards assigned to the worker; the first is being computed."""


class RunProgress(Part):
    """The running driver's own numbers, from its last heartbeat."""

    job: Text
    """Name of the job."""
    of: Text
    """Unit of the rows: ``rows``, ``documents``, ``features`` or ``units``."""
    stopping: bool
    """Whether the driver finishes the units of work in flight and begins no others."""
    written_unix_s: float
    """Time of the heartbeat in Unix seconds, by the driver's clock."""
    seconds: float
    """Seconds since the run's first shard began."""
    rows_per_s_now: float
    """Rows per second in the last 30 s."""
    rows_per_s: float
    """Mean rows per second of this run."""
    tokens_per_s_now: float
    """Tokens fed to the model per second in the last 30 s."""
    tokens_per_s: float
    """Mean tokens fed to the model per second of this run."""
    n_rows: int
    """Rows of the job."""
    n_rows_done: int
    """Finished rows, those of earlier runs included."""
    n_shards: int
    """Shards that this run has to do."""
    n_shards_done: int
    """Shards that this run has finished."""
    n_workers: int
    """Current workers."""
    n_workers_gone: int
    """Workers that have ended."""
    n_in_flight: int
    """Shards assigned to workers."""
    n_quarantined: int
    """Shards that this run has quarantined."""
    seconds_left: float | None
    """Estimated seconds to completion."""
    states: dict[str, int]
    """Number of workers by state."""
    faults: dict[str, int]
    """Number of failed attempts by cause."""
    workers: list[WorkerProgress]
    """Workers, the one longest with its shard first; at most 64."""


class _Store(Part):
    store: Text
    """Path or URL of the store."""


class StatusReport(Report, JobProgress, _Store):
    """Output of ``actlas status --json``. The job's fields are those of the extraction."""

    running: bool
    """Whether a live driver holds the store's lease."""
    holder: dict[str, Any] | None
    """Host, process and other facts about the lease holder; null if the lease is free."""
    perhaps_dead: bool
    """Whether the lease is held but its heartbeat has stopped."""
    last_beat_unix_s: float | None
    """Time of the last heartbeat in Unix seconds, by the holder's clock."""
    last_heard_s: float | None
    """Seconds since the heartbeat was seen to change, by this machine's clock."""
    run: RunProgress | None
    """The running driver's own numbers."""
    pooled: JobProgress | None
    """Progress of pooling, if the store has token rows and pooled rows."""
    derived: list[DerivedProgress]
    """Progress of the derived jobs."""
