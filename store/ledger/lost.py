"""Receipts of derived jobs that are lost: those that a finished job's record names, or its data.

Every receipt that is lost is named, whatever else is lost with it. Three things name one:

- the record that a job was finished, or its copy (:mod:`actlas.store.ledger.finished`): the receipt
  of its unit, and those of the derived units that this unit was made from;
- the number of units of a finished job, where it is known;
- the groups of a job of unknown size, if its table was finished and has no receipt.

Stores of earlier versions may lack the records. There a job was finished if it has no receipt at
all, and a group of data that is made only when all of its units have one: a killed worker leaves
groups without receipts, but only behind jobs that were finished.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from actlas.store.errors import CorruptDataError, FormatError, RunFaultError, of_one_object
from actlas.store.ledger.feature_sets import names
from actlas.store.ledger.finished import is_finished, noted_jobs, read_finished
from actlas.store.ledger.job_kind import JobKind
from actlas.store.ledger.job_kinds import job_receipts, kind_of, kinds
from actlas.store.ledger.receipts import EXTRACT, POOLED, PlannedStore, receipt_key

_KEY = re.compile(r"ledger/receipts/([^/]+)/([0-9]{8})\.json", re.ASCII)


def finished_jobs(store: PlannedStore) -> list[str]:
    """Return the derived jobs that were finished once, by a record or by what was made from them.

    Parameters
    ----------
    store : PlannedStore
        The store.
    """
    found = noted_jobs(store.objects) - {EXTRACT, POOLED}
    for kind in kinds():
        for name in names(store) if kind.of_feature_set else ():
            if _shown(store, kind, name):
                found.add(kind.job(name))
    return sorted(found)


def was_finished(store: PlannedStore, kind: JobKind, subject: str) -> bool:
    """Return whether a derived job was finished once.

    Parameters
    ----------
    store : PlannedStore
        The store.
    kind : JobKind
        The kind of the job.
    subject : str
        The subject of the job: the name of a set of features, a hookpoint.
    """
    return is_finished(store.objects, kind.job(subject)) or _shown(store, kind, subject)


def lost_derived(store: PlannedStore) -> dict[str, list[int]]:
    """Return the units of derived jobs whose receipts are lost, ascending, by job.

    Parameters
    ----------
    store : PlannedStore
        The store.
    """
    lost: dict[str, set[int]] = {}
    for job in finished_jobs(store):
        kind, subject = kind_of(job)
        for key in _recorded(store, job):
            match = _KEY.fullmatch(key)
            if match is not None and store.objects.size(key) is None:
                lost.setdefault(match[1], set()).add(int(match[2]))
        if kind is not None:
            made_from = [each for each in kinds() if each.table == kind.name]
            for each in (kind, *made_from):
                lost.setdefault(each.job(subject), set()).update(_absent(store, each, subject))
    return {job: sorted(units) for job, units in sorted(lost.items()) if units}


def _recorded(store: PlannedStore, job: str) -> Iterator[str]:
    record = read_finished(store.objects, job)
    yield from () if record is None else record.inputs


def _absent(store: PlannedStore, kind: JobKind, subject: str) -> set[int]:
    """Return the units of a finished job that have no receipt.

    The units of a job of unknown size are those of its groups. They are asked only where its table
    has no receipt: that would name them, and a group may be left over.
    """
    done = job_receipts(store, kind.job(subject)).done()
    if not kind.sparse:
        return set(range(_n_units(store, kind, subject))) - done
    table = f"{kind.table}.{subject}"
    if store.objects.size(receipt_key(table, 0)) is not None:
        return set()
    return {unit for unit in _groups(store, kind, subject) if unit not in done}


def _n_units(store: PlannedStore, kind: JobKind, subject: str) -> int:
    try:
        return kind.n_units(store, subject)
    except (FormatError, CorruptDataError, FileNotFoundError):
        return 0  # its subject's description is damaged, which another check reports
    except RunFaultError as error:
        if not of_one_object(error):
            raise
        return 0


def _shown(store: PlannedStore, kind: JobKind, subject: str) -> bool:
    """Whether a job without receipts has data of a later job that begins when it is finished."""
    is_table = any(each.table == kind.name for each in kinds())
    later = [
        each
        for each in kinds()
        if kind.name in each.inputs and (is_table or each.name == kind.table)
    ]
    if not any(_groups(store, each, subject) for each in later):
        return False
    return not job_receipts(store, kind.job(subject)).done()


def _groups(store: PlannedStore, kind: JobKind, subject: str) -> set[int]:
    """Return the units of which there is a group, with or without a receipt."""
    found = (kind.unit_in(name, subject) for name in store.objects.names(kind.parent(subject)))
    return {unit for unit in found if unit is not None}
