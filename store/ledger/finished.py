"""The records that a job was finished: without them a lost receipt looks like a missing shard.

When every unit of a job has its receipt, one more record is written, and then a copy of it::

    ledger/receipts/finished.extract/00000000.json     every shard of ``extract`` had a receipt
    ledger/repairing/finished.extract.json             the same bytes

A unit that has no receipt although its job was finished is *lost*: readers refuse it, `verify`
names it, `repair` writes its receipt again. The record has the form of a receipt of a derived job,
so that earlier versions verify it like any other; the copy is outside of the folder of receipts, so
that a store knows that it was finished if that folder is lost. Stores of earlier versions have
neither until the next run of the job; see :mod:`actlas.store.ledger.lost` for what their data
shows. A repair that drops units of a derived job removes the job's record first.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection

from actlas.store.errors import CorruptDataError, FormatError, RunFaultError, of_one_object
from actlas.store.format.schema import Receipt
from actlas.store.format.sealing import FORMAT_VERSION, seal_of, unseal
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts, receipt_key
from actlas.store.objects.base import Objects
from actlas.store.version import versions

PREFIX = "finished."
"""What the name of a record's job begins with."""

COPIES = "ledger/repairing"
"""The folder of the records' copies."""

LOST = "its receipt is lost: the job was finished, and the receipt is no longer there"
"""What is wrong with a lost unit."""


def finished_key(job: str) -> str:
    """Return the key of the record that a job was finished.

    >>> finished_key("extract")
    'ledger/receipts/finished.extract/00000000.json'
    """
    return receipt_key(f"{PREFIX}{job}", 0)


def finished_copy_key(job: str) -> str:
    """Return the key of the record's copy.

    >>> finished_copy_key("extract")
    'ledger/repairing/finished.extract.json'
    """
    return f"{COPIES}/{PREFIX}{job}.json"


def noted_jobs(objects: Objects) -> set[str]:
    """Return the jobs of which a record, or its copy, says that they were finished.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    """
    records = (name for name in objects.names("ledger/receipts") if name.startswith(PREFIX))
    copies = (name for name in objects.names(COPIES) if name.startswith(PREFIX))
    names = (*records, *(name.removesuffix(".json") for name in copies))
    jobs = {name.removeprefix(PREFIX) for name in names}
    return {job for job in jobs if is_finished(objects, job)}  # a folder may be left empty


def is_finished(objects: Objects, job: str) -> bool:
    """Return whether a job was finished once, by its record or the record's copy."""
    keys = (finished_key(job), finished_copy_key(job))
    return any(objects.size(key) is not None for key in keys)


def note_finished(objects: Objects, plan_sha256: str, job: str, n_units: int) -> bool:
    """Record that every unit of a job has its receipt; return False if that was recorded before.

    The record of a derived job of one unit names the seal of that unit's receipt, and those of the
    derived units that it was made from: with another receipt the record is stale, and a receipt
    that is named and not there is lost.

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
    key, copy = finished_key(job), finished_copy_key(job)
    noted = objects.size(key) is not None
    if noted and objects.size(copy) is not None:
        return False
    if not noted:
        receipts = Receipts(objects, f"{PREFIX}{job}", 1, plan_sha256)
        of_one_unit = n_units == 1 and job not in (EXTRACT, POOLED)
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
                inputs=_derived_units(objects, plan_sha256, job) if of_one_unit else {},
            )
        )
    objects.replace(copy, objects.read(key))
    return not noted


def forget_finished(objects: Objects, job: str) -> None:
    """Remove the record that a job was finished, before units of the job are dropped."""
    objects.delete(finished_copy_key(job))  # first: a copy without its record is damage
    objects.delete(finished_key(job))


def read_finished(objects: Objects, job: str) -> Receipt | None:
    """Return the record that a job was finished, or its copy; None if neither can be read.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    job : str
        The job.
    """
    for key in (finished_key(job), finished_copy_key(job)):
        try:
            return unseal(objects.read(key), Receipt, f"{objects.url}/{key}")
        except (FileNotFoundError, FormatError, CorruptDataError):
            continue  # another check reports it
        except RunFaultError as error:
            if not of_one_object(error):
                raise
    return None


def put_back_finished(objects: Objects, job: str) -> bool:
    """Restore a record that is lost from its copy; return whether it was restored.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    job : str
        The job.
    """
    if objects.size(finished_key(job)) is not None or read_finished(objects, job) is None:
        return False
    return objects.create(finished_key(job), [objects.read(finished_copy_key(job))])


def _derived_units(objects: Objects, plan_sha256: str, job: str) -> dict[str, str]:
    """Return the seals of the receipt of a job's only unit, and of derived units it is made from.

    Those of extraction have a record of their own, and repairs write them anew.
    """
    key = receipt_key(job, 0)
    receipt = Receipts(objects, job, 1, plan_sha256).read(0)
    units = (k for k in receipt.inputs if k.startswith("ledger/receipts/"))
    derived = {k: receipt.inputs[k] for k in units if k.split("/")[2] != EXTRACT}
    return {key: seal_of(objects.read(key)), **derived}


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
