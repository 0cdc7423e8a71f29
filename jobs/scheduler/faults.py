"""Faults (failed attempts), their budgets per shard, and the quarantine.

A shard that has used up its budget of faults is quarantined: it is set aside, and the run goes on
without it. The quarantine lies in the store's ledger beside the receipts.
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from actlas.jobs.redaction import redacted
from actlas.pipeline.options import RunOptions
from actlas.store.errors import (
    ActlasError,
    ConfigError,
    CorruptDataError,
    FormatError,
    HookpointError,
    MemoryBudgetError,
    ModelError,
    PlanMismatchError,
    RunFaultError,
    StoreNotFoundError,
)
from actlas.store.objects.base import Objects
from actlas.store.objects.faults import run_fault
from actlas.store.voice import unworded

FaultKind = Literal["task", "process", "node"]

_STOPS_THE_RUN = (
    ConfigError,
    FormatError,
    HookpointError,
    MemoryBudgetError,
    ModelError,
    PlanMismatchError,
    RunFaultError,
    StoreNotFoundError,
)
"""Errors that every other shard would meet too: they end the run, and no shard is charged."""


class Fault(NamedTuple):
    """A failed attempt to compute a shard or to start a worker.

    Attributes
    ----------
    shard : int or None
        The shard; None for a failed start.
    kind : {"task", "process", "node"}
        Cause: an exception, a dead process, or a lost machine.
    error : str
        Error message, without credentials.
    traceback : str
        Traceback, without credentials.
    worker : str
        Name of the worker.
    stops : ActlasError or None
        Error that ends the run, if no shard caused it.
    """

    shard: int | None
    kind: FaultKind
    error: str
    traceback: str
    worker: str
    stops: ActlasError | None = None


class Quarantined(NamedTuple):
    """Record of a quarantined shard.

    Attributes
    ----------
    shard : int
        The shard.
    faults : dict of str to int
        Number of faults by cause.
    error, traceback, worker : str
        Those of the last fault.
    created_unix_s : float
        Time of the record in Unix seconds.
    """

    shard: int
    faults: dict[str, int]
    error: str
    traceback: str
    worker: str
    created_unix_s: float


def fault_of(
    error: Exception,
    shard: int | None,
    worker: str,
    where: str,
    *,
    damage_stops: bool = False,
) -> Fault:
    """Return the fault of the exception that is being handled.

    Parameters
    ----------
    error : Exception
        The exception.
    shard : int or None
        The shard that was computed; None while the worker was starting.
    worker : str
        Name of the worker.
    where : str
        Path of the store, for errors of the operating system without a file name.
    damage_stops : bool
        Whether damaged input ends the run: see :class:`actlas.jobs.scheduler.protocols.Job`.
    """
    stops: ActlasError | None = None
    if isinstance(error, _STOPS_THE_RUN) or (damage_stops and isinstance(error, CorruptDataError)):
        stops = error
    elif isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        stops = run_fault(error, str(error.filename or where))
    elif shard is None and isinstance(error, ActlasError):
        stops = error
    with unworded():  # the quarantine keeps it, for readers of either kind
        text = redacted(f"{type(error).__name__}: {error}")
        return Fault(shard, "task", text, redacted(traceback.format_exc()), worker, stops)


class FaultBudget:
    """Counts the faults of each shard against its budget, and keeps the quarantine in the store.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    job : str
        Name of the job.
    run : RunOptions
        Options with the budgets.
    """

    def __init__(self, objects: Objects, job: str, run: RunOptions) -> None:
        self._objects = objects
        self._folder = f"ledger/quarantine/{job}"
        self._budget: dict[FaultKind, int] = {
            "task": run.max_task_faults,
            "process": run.max_process_deaths,
            "node": run.max_node_losses,
        }
        self._faults: dict[int, Counter[str]] = {}

    def charge(self, fault: Fault) -> bool:
        """Charge a shard for a fault, and return whether it is quarantined now.

        Raises
        ------
        RunFaultError
            The quarantine record could not be written.
        """
        assert fault.shard is not None
        faults = self._faults.setdefault(fault.shard, Counter())
        faults[fault.kind] += 1
        if faults[fault.kind] < self._budget[fault.kind]:
            return False
        record = Quarantined(
            fault.shard, dict(faults), fault.error, fault.traceback, fault.worker, time.time()
        )
        body = json.dumps(record._asdict(), indent=1, ensure_ascii=False)
        self._objects.replace(self._key(fault.shard), body.encode() + b"\n")
        return True

    def quarantined(self) -> dict[int, Quarantined]:
        """Return the records of the shards in quarantine, from a fresh listing.

        Raises
        ------
        FormatError
            A record is malformed.
        """
        found: dict[int, Quarantined] = {}
        for name in sorted(self._objects.names(self._folder)):
            if re.fullmatch(r"\d{8}\.json", name, re.ASCII):
                shard = int(name[:8])
                found[shard] = self._read(shard)
        return found

    def release(self, shards: Iterable[int]) -> None:
        """Remove shards from quarantine."""
        for shard in shards:
            self._objects.delete(self._key(shard))

    def _read(self, shard: int) -> Quarantined:
        key = self._key(shard)
        try:
            body = json.loads(self._objects.read(key))
            record = Quarantined(**body)
            if not (isinstance(body["error"], str) and _are_counts(body["faults"])):
                raise TypeError("error must be a string, and faults counts by cause")
            return record
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{self._objects.url}/{key}: expected a quarantine record ({error}). Remove the "
                "file to retry the shard.",
                path=key,
            ) from error

    def _key(self, shard: int) -> str:
        return f"{self._folder}/{shard:08d}.json"


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(n) is int for n in value.values())
