"""The records that a job was finished: without them a lost receipt looks like a missing shard.

When every unit of a job has its receipt, one more record is written, create-only::

    ledger/receipts/finished.extract/00000000.json     every shard of ``extract`` had a receipt

A unit that has no receipt although its job was finished is *lost*: readers refuse it, `verify`
names it, `repair` writes its receipt again. The record has the form of a receipt of a derived job,
so that earlier versions verify it like any other. Stores of earlier versions have none until the
next run of the job. A repair that drops units of a derived job removes the job's record first.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection

from actlas.store.errors import CorruptDataError
from actlas.store.format.schema import Receipt
from actlas.store.format.sealing import FORMAT_VERSION, seal_of
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts, receipt_key
from actlas.store.objects.base import Objects
from actlas.store.version import versions

PREFIX = "finished."
"""What the name of a record's job begins with."""

LOST = "its receipt is lost: the job was finished, and the receipt is no longer there"
"""What is wrong with a lost unit."""


def finished_key(job: str) -> str:
    """Return the key of the record that a job was finished.

    >>> finished_key("extract")
    'ledger/receipts/finished.extract/00000000.json'
    """
    return receipt_key(f"{PREFIX}{job}", 0)


def is_finished(objects: Objects, job: str) -> bool:
    """Return whether a job was finished once, by its record."""
    return objects.size(finished_key(job)) is not None


def note_finished(objects: Objects, plan_sha256: str, job: str, n_units: int) -> bool:
    """Record that every unit of a job has its receipt; return False if that was recorded before.

    The record of a derived job of one unit names the seal of that unit's receipt: with another
    receipt the record is stale.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    plan_sha256 : str
        The seal of the store's plan.
    job : str
        The job, of which every unit has a receipt.
    n_units : int
        The number of its units.
    """
    if is_finished(objects, job):
        return False
    key = receipt_key(job, 0)
    of_one_unit = n_units == 1 and job not in (EXTRACT, POOLED)
    inputs = {key: seal_of(objects.read(key))} if of_one_unit else {}
    receipts = Receipts(objects, f"{PREFIX}{job}", 1, plan_sha256)
    receipts.write(
        Receipt(
            format_version=FORMAT_VERSION,
            plan_sha256=plan_sha256,
            job=receipts.job,
            shard=0,
            start=0,
            stop=n_units,
            attempt="finished",
            host=socket.gethostname(),
            created_unix_s=time.time(),
            versions=versions(),
            objects=(),
            n_nonfinite={},
            inputs=inputs,
        )
    )
    return True


def forget_finished(objects: Objects, job: str) -> None:
    """Remove the record that a job was finished, before units of the job are dropped."""
    objects.delete(finished_key(job))


def lost_units(objects: Objects, job: str, n_units: int, done: Collection[int]) -> list[int]:
    """Return the units of a finished job that have no receipt, ascending.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    job : str
        The job.
    n_units : int
        The number of its units.
    done : collection of int
        The units that have a receipt.
    """
    if len(done) >= n_units or not is_finished(objects, job):
        return []
    return sorted(set(range(n_units)) - set(done))


def lost_error(url: str, job: str, units: Collection[int], what: str) -> CorruptDataError:
    """Return the error for units of a finished job that have no receipt.

    Parameters
    ----------
    url : str
        The store's folder or URL.
    job : str
        The job.
    units : collection of int
        The units.
    what : str
        The rows, documents or tables that the first unit holds.
    """
    first = min(units)
    more = f" and {len(units) - 1} more" if len(units) > 1 else ""
    key = receipt_key(job, first)
    return CorruptDataError(
        f"{url}/{key}{more}: {LOST}. Without it {what} cannot be relied on, and nothing is left "
        f"out silently. `actlas verify {url}` lists what is lost, `actlas repair {url}` writes it "
        "again.",
        path=key,
        job=job,
        shards=sorted(units),
    )
