"""A kind of derived job: the unit of work, the folder of its data, its inputs, how to redo it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from actlas.store.ledger.receipts import PlannedStore, Receipts

MARK_DIGITS = 12
"""Hexadecimal digits of the mark that ends the name of an attempt's group."""


class Unit(NamedTuple):
    """One unit of work of a derived job.

    Attributes
    ----------
    job : str
        The job's name, such as ``encode.sae``, which is the folder of its receipts.
    number : int
        The unit's number, which names its receipt.
    n : int
        The limit of unit numbers: they are in [0, n).
    folder : str
        The folder of the unit's group without the attempt's mark:
        ``features/sae/tokens/00000003``.
    start, stop : int
        The range [start, stop) that the unit covers, counted in what the kind says.
    """

    job: str
    number: int
    n: int
    folder: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class JobKind:
    """A kind of derived job, the same for every subject.

    Attributes
    ----------
    name : str
        The part of a job's name before the first dot, such as ``encode``.
    unit : str
        The noun for a unit of work, such as ``shard``, ``block`` or ``table``.
    inputs : tuple of str
        The kinds whose receipts a unit's receipt names as its inputs; or ``extract``.
    folder : str
        The folder of a unit's group without the attempt's mark, with ``{subject}``, and with
        ``{unit:08d}`` if a job may have several units.
    n_units : callable of (store, subject)
        Returns the limit n of unit numbers, which are in [0, n).
    covers : {"tokens", "shards", "features", "units"}
        The noun for what the range [start, stop) of a receipt counts.
    plain_groups : tuple of str
        The folders of the plain groups above the units' groups; they are created first.
    table : str or None
        The kind of the table over all units, a job of one unit that is committed last: without its
        receipt the job is not complete.
    sparse : bool
        Whether a unit's number is the start of its range, so that not every number in [0, n) is a
        unit. The number of units is then unknown until the table is written.
    of_feature_set : bool
        Whether a subject is the name of a set of features, which has a sealed description.
    command : tuple of str
        The arguments of ``actlas`` that begin and resume the job, with ``{store}`` and
        ``{subject}``; empty if the command of another kind does.
    redo : str or None
        ``module:function`` by which `repair` recomputes the missing units of a subject's jobs; see
        :data:`actlas.jobs.run.repair_derived.Redo`. None if the data is recomputed only when a
        command asks for it.
    open : str or None
        ``module:function`` that returns a subject's data, and computes it first if that was not
        done yet. None if only a command or a call of its own computes it.
    """

    name: str
    unit: str
    inputs: tuple[str, ...]
    folder: str
    n_units: Callable[[PlannedStore, str], int]
    covers: Literal["tokens", "shards", "features", "units"]
    plain_groups: tuple[str, ...] = ()
    table: str | None = None
    sparse: bool = False
    of_feature_set: bool = False
    command: tuple[str, ...] = ()
    redo: str | None = None
    open: str | None = None

    def opened(self, store: PlannedStore, subject: str) -> Any:
        """Return the data of a subject's job, computed first if that was not done yet.

        The function ``open`` is loaded here, since it belongs to a room above this one.

        Parameters
        ----------
        store : PlannedStore
            The store.
        subject : str
            The subject: the name of a set of features, a hookpoint.
        """
        assert self.open is not None, f"{self.name}: no function opens it"
        module, _, function = self.open.partition(":")
        return getattr(importlib.import_module(module), function)(store, subject)

    @property
    def root(self) -> str:
        """The folder at the top of the store that the kind's data lies in."""
        return self.folder.partition("/")[0]

    def job(self, subject: str) -> str:
        """Return the name of a subject's job.

        >>> from actlas.store.ledger.job_kinds import ENCODE
        >>> ENCODE.job("sae")
        'encode.sae'
        """
        return f"{self.name}.{subject}"

    def receipts(self, store: PlannedStore, subject: str) -> Receipts:
        """Return the receipts of a subject's job.

        Parameters
        ----------
        store : PlannedStore
            The store.
        subject : str
            The subject: the name of a set of features, a hookpoint.
        """
        return receipts_of(store, self.job(subject), self.n_units(store, subject))

    def unit_of_work(
        self, store: PlannedStore, subject: str, number: int, start: int, stop: int
    ) -> Unit:
        """Return a unit of a subject's job.

        Parameters
        ----------
        store : PlannedStore
            The store.
        subject : str
            The subject: the name of a set of features, a hookpoint.
        number : int
            The unit's number.
        start, stop : int
            The range [start, stop) that the unit covers.
        """
        folder = self.folder.format(subject=subject, unit=number)
        return Unit(self.job(subject), number, self.n_units(store, subject), folder, start, stop)

    def groups(self, subject: str) -> tuple[str, ...]:
        """Return the folders of the plain groups above a subject's data."""
        return tuple(folder.format(subject=subject) for folder in self.plain_groups)

    def parent(self, subject: str) -> str:
        """Return the folder that the groups of a subject's units lie in."""
        return self.folder.rpartition("/")[0].format(subject=subject)

    def unit_in(self, name: str, subject: str) -> int | None:
        """Return the number of the unit whose attempt wrote a group of this name.

        Returns None if no attempt at a unit of this kind gives a group such a name.

        >>> from actlas.store.ledger.job_kinds import ENCODE
        >>> ENCODE.unit_in("00000003-0123456789ab", "sae"), ENCODE.unit_in("zarr.json", "sae")
        (3, None)
        """
        last = self.folder.rpartition("/")[2]
        stem, dash, mark = name.rpartition("-")
        if not dash or not re.fullmatch(rf"[0-9a-f]{{{MARK_DIGITS}}}", mark):
            return None
        if "{unit" not in last:
            return 0 if stem == last.format(subject=subject) else None
        return int(stem) if re.fullmatch(r"[0-9]{8}", stem, re.ASCII) else None


def receipts_of(store: PlannedStore, job: str, n: int) -> Receipts:
    """Return the receipts of a derived job whose units are numbered in [0, n)."""
    return Receipts(store.objects, job, n, store.plan_sha256)
