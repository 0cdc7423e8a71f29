"""What went wrong, who pays for it, and the quarantine: shards that have used up their budget.

Receipts say what is done; they are the store's. This is the other half of the ledger.
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from actlas.jobs.redaction import redacted
from actlas.pipeline.options import RunOptions
from actlas.store.errors import (
    ActlasError,
    ConfigError,
    FormatError,
    HookpointError,
    MemoryBudgetError,
    ModelError,
    PlanMismatchError,
    RunFaultError,
    StoreNotFoundError,
    run_fault,
)
from actlas.store.objects.base import Objects

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
"""Errors that every other shard would meet too: no shard is charged."""


class Fault(NamedTuple):
    """One failed attempt at a shard (or at starting a worker: ``shard`` is None).

    ``stops`` is the error to end the whole run with, where no shard is to blame.
    """

    shard: int | None
    kind: FaultKind
    error: str
    traceback: str
    worker: str
    stops: ActlasError | None = None


class Quarantined(NamedTuple):
    """A shard that has used up its budget, with its last fault."""

    shard: int
    faults: dict[str, int]
    error: str
    traceback: str
    worker: str
    created_unix_s: float


def fault_of(error: Exception, shard: int | None, worker: str, where: str) -> Fault:
    """Turn the exception that is being handled into a fault, and say whether it stops the run.

    Parameters
    ----------
    error : Exception
        What an attempt raised.
    shard : int or None
        The shard it was at; None while the worker was starting.
    worker : str
        Its name.
    where : str
        The store, for errors of the operating system that name no file.
    """
    stops: ActlasError | None = None
    if isinstance(error, _STOPS_THE_RUN):
        stops = error
    elif isinstance(error, OSError) and not isinstance(error, ActlasError):
        stops = run_fault(error, str(error.filename or where))
    elif shard is None and isinstance(error, ActlasError):
        stops = error
    text = redacted(f"{type(error).__name__}: {error}")
    return Fault(shard, "task", text, redacted(traceback.format_exc()), worker, stops)


class Ledger:
    """Counts each shard's faults against its budget, and keeps the quarantine in the store.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    job : str
        The job's name.
    run : RunOptions
        The budgets.
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
        """Charge a shard for a fault; True where that puts it in quarantine.

        Raises
        ------
        RunFaultError
            The quarantine could not be written.
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
        """Return the shards in quarantine, by a fresh listing.

        Raises
        ------
        FormatError
            A record there is malformed.
        """
        found: dict[int, Quarantined] = {}
        for name in sorted(self._objects.names(self._folder)):
            if re.fullmatch(r"\d{8}\.json", name, re.ASCII):
                shard = int(name[:8])
                found[shard] = self._read(shard)
        return found

    def release(self, shards: Iterable[int]) -> None:
        """Take shards out of quarantine."""
        for shard in shards:
            self._objects.delete(self._key(shard))

    def _read(self, shard: int) -> Quarantined:
        key = self._key(shard)
        try:
            return Quarantined(**json.loads(self._objects.read(key)))
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{self._objects.url}/{key}: expected a quarantine record ({error}). Remove the "
                "file to have the shard tried again.",
                path=key,
            ) from error

    def _key(self, shard: int) -> str:
        return f"{self._folder}/{shard:08d}.json"
