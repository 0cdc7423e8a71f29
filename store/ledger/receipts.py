"""Receipts: the completion records in the ledger, one per shard of a job, written last.

A shard that was repaired with other bytes has a receipt of a later *generation* beside the first::

    ledger/receipts/extract/00000003.json          written by the run
    ledger/repairs/extract/00000003.0001.json      written by a repair: the valid one
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Protocol

from actlas.store.errors import FormatError
from actlas.store.format.schema import Plan, Receipt
from actlas.store.format.sealing import seal, unseal
from actlas.store.objects.base import Objects
from actlas.store.objects.threads import map_in_order

_NAME = re.compile(r"[0-9]{8}\.json", re.ASCII)

_REPAIRED = re.compile(r"([0-9]{8})\.([0-9]{4})\.json", re.ASCII)

EXTRACT = "extract"
"""The job that computes every token's row."""

POOLED = "pooled"
"""The job that computes pooled rows; its shards are ranges of documents."""


def receipt_key(job: str, shard: int, generation: int = 0) -> str:
    """Return the key of a shard's receipt; generation 0 is that of a run, not of a repair."""
    if generation:
        return f"ledger/repairs/{job}/{shard:08d}.{generation:04d}.json"
    return f"ledger/receipts/{job}/{shard:08d}.json"


class Receipts:
    """The receipts of one job. A shard is done if and only if it has a receipt.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    job : str
        The job's name, such as ``extract``.
    n_shards : int
        The number of shards of the job.
    plan_sha256 : str
        The seal of the store's plan.
    """

    def __init__(self, objects: Objects, job: str, n_shards: int, plan_sha256: str) -> None:
        self.objects = objects
        self.job = job
        self.n_shards = n_shards
        self.plan_sha256 = plan_sha256

    def done(self) -> frozenset[int]:
        """Return the shards that have a receipt, by a fresh listing."""
        self.__dict__.pop("generations", None)
        return frozenset(self._listed()) | frozenset(self.generations)

    @cached_property
    def generations(self) -> dict[int, list[int]]:
        """The generations of each repaired shard, ascending; listed once and cached."""
        found: dict[int, list[int]] = {}
        for name in self.objects.names(f"ledger/repairs/{self.job}"):
            match = _REPAIRED.fullmatch(name)
            if match is not None and int(match[1]) < self.n_shards and int(match[2]):
                found.setdefault(int(match[1]), []).append(int(match[2]))
        return {shard: sorted(generations) for shard, generations in found.items()}

    def generation(self, shard: int) -> int:
        """Return the valid generation of a shard's receipt: the highest one."""
        return self.generations.get(shard, [0])[-1]

    def key(self, shard: int) -> str:
        """Return the key of a shard's valid receipt."""
        return receipt_key(self.job, shard, self.generation(shard))

    def exists(self, shard: int) -> bool:
        """Return whether a shard is done."""
        first = receipt_key(self.job, shard)
        return self.objects.size(first) is not None or shard in self.generations

    def read(self, shard: int, generation: int | None = None) -> Receipt:
        """Return a shard's receipt, checked.

        Parameters
        ----------
        shard : int
            The shard's number.
        generation : int, optional
            The receipt's generation; without it, the valid receipt is read.

        Raises
        ------
        FileNotFoundError
            The shard is not done.
        CorruptDataError
            The receipt is not the one that was written.
        FormatError
            The receipt belongs to another shard, job or plan.
        """
        if generation is None:
            generation = self.generation(shard)
        key = receipt_key(self.job, shard, generation)
        receipt = unseal(self.objects.read(key), Receipt, f"{self.objects.url}/{key}")
        if (receipt.job, receipt.shard, receipt.generation) != (self.job, shard, generation):
            raise FormatError(
                f"{self.objects.url}/{key}: got the receipt of {receipt.job} shard "
                f"{receipt.shard}, generation {receipt.generation}, expected the one that the "
                "file's name says; the file was moved.",
                path=key,
            )
        if receipt.plan_sha256 != self.plan_sha256:
            raise FormatError(
                f"{self.objects.url}/{key}: this receipt was written for another plan (got "
                f"{receipt.plan_sha256[:16]}…, expected {self.plan_sha256[:16]}…), by a worker of "
                "an earlier store at this path: plan again at a new path.",
                path=key,
            )
        return receipt

    def read_many(self, shards: Iterable[int]) -> Iterator[Receipt]:
        """Yield the receipts of several shards in the given order, read in threads.

        Raises
        ------
        FileNotFoundError, CorruptDataError, FormatError
            As :meth:`read` does.
        """
        yield from map_in_order(self.read, shards, self.objects.n_readers)

    def write(self, receipt: Receipt) -> Receipt:
        """Write a receipt and return the valid one: that of the first writer."""
        key = receipt_key(self.job, receipt.shard, receipt.generation)
        created = self.objects.create(key, [seal(receipt)])
        if receipt.generation:
            self.__dict__.pop("generations", None)
        return receipt if created else self.read(receipt.shard)

    def _listed(self) -> Iterator[int]:
        for name in self.objects.names(f"ledger/receipts/{self.job}"):
            if _NAME.fullmatch(name) and int(name[:8]) < self.n_shards:
                yield int(name[:8])


class PlannedStore(Protocol):
    """What the ledger needs of a store: its objects, its plan with the seal, its jobs' receipts."""

    @property
    def path(self) -> str:
        """The store's folder or URL."""

    @property
    def objects(self) -> Objects:
        """The store's objects."""

    @property
    def plan(self) -> Plan:
        """The store's plan."""

    @property
    def plan_sha256(self) -> str:
        """The seal of the store's plan."""

    def receipts(self, job: str = EXTRACT) -> Receipts:
        """Return the receipts of a job."""
