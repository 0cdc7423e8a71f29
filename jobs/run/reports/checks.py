"""JSON outputs of ``actlas verify`` and ``actlas doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal, Self

from actlas.jobs.doctor.check import Check
from actlas.jobs.run.reports.base import Part, Report, Text
from actlas.store.verify.damage import Damage
from actlas.store.verify.verify import Report as Verified


class DamageEntry(Part):
    """An object of a store that is not as it was written."""

    key: Text
    """Key (relative path) of the object."""
    what: Text
    """Description of the damage."""
    start: int | None = None
    """First affected row, if the object holds rows: rows [start, stop)."""
    stop: int | None = None
    """End of the affected rows, exclusive."""
    of: str = "rows"
    """Unit of ``start`` and ``stop``: ``rows`` or ``documents``."""
    job: Text | None = None
    """Job whose shard the object belongs to."""
    shard: int | None = None
    """Index of that shard."""
    stray: bool = False
    """Whether the object is an orphan: its name belongs to no part of this store."""

    @classmethod
    def of_damage(cls, damage: Damage) -> Self:
        """Return the entry of a damaged object."""
        fields = asdict(damage)
        return cls(stray=fields.pop("orphan"), **fields)

    def damage(self) -> Damage:
        """Return the damaged object that this entry describes."""
        fields = self.model_dump()
        return Damage(orphan=fields.pop("stray"), **fields)


class VerifyReport(Report):
    """Output of ``actlas verify --json``, and the input of ``actlas repair --findings``."""

    store: Text
    """Path or URL of the store."""
    ok: bool
    """Whether nothing is damaged. An unfinished store can be ok."""
    complete: bool
    """Whether no shard is missing."""
    full: bool
    """Whether every byte was read; otherwise sizes, metadata and receipts were compared."""
    n_objects: int
    """Number of objects checked."""
    n_bytes: int
    """Bytes checked."""
    seconds: float
    """Duration in seconds."""
    missing: list[int]
    """Shards that are not extracted yet."""
    missing_pooled: list[int]
    """Shards of documents that are not pooled yet."""
    unclaimed: list[Text]
    """Keys of complete objects without a receipt, which the next extraction adopts."""
    damages: list[DamageEntry]
    """Damaged objects."""

    @classmethod
    def of(cls, found: Verified, path: str, seconds: float) -> Self:
        """Return the report of a verification.

        Parameters
        ----------
        found : Verified
            The result of :func:`actlas.verify`.
        path : str
            Path or URL of the store.
        seconds : float
            Duration of the verification.
        """
        return cls(
            store=path,
            ok=found.ok,
            complete=not (found.missing or found.missing_pooled or found.n_lost),
            full=found.full,
            n_objects=found.n_objects,
            n_bytes=found.n_bytes,
            seconds=seconds,
            missing=list(found.missing),
            missing_pooled=list(found.missing_pooled),
            unclaimed=list(found.unclaimed),
            damages=[DamageEntry.of_damage(damage) for damage in found.damages],
        )


class CheckEntry(Part):
    """A check of the environment."""

    name: str
    """Name of the check."""
    result: Literal["ok", "warning", "problem"]
    """Result; a run would fail on a problem."""
    found: Text
    """Finding."""
    remedy: Text
    """Remedy; empty if the result is ok."""


class DoctorReport(Report):
    """Output of ``actlas doctor --json``."""

    ok: bool
    """Whether no check found a problem."""
    checks: list[CheckEntry]
    """The checks in the order in which they ran."""

    @classmethod
    def of(cls, checks: Iterable[Check]) -> Self:
        """Return the report of some checks."""
        entries = [CheckEntry(**check._asdict()) for check in checks]
        return cls(ok=all(entry.result != "problem" for entry in entries), checks=entries)
