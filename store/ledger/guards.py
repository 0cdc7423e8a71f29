"""Guards of lazy arrays: which shards may be read, and the record that each object is held against.

The objects of a job's shards are recorded in the job's receipts, those of derived data in the
receipts of its units, those of the documents in the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import CorruptDataError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.recorded import Recorded
from actlas.store.format.schema import ObjectRecord, PlanFile
from actlas.store.format.validation import CHANGED
from actlas.store.ledger.completion import Completion
from actlas.store.objects.base import Objects

CHECKSUMS = "ledger/checksums"
"""The folder of the chunk checksums of large objects of the documents."""


@dataclass(frozen=True, slots=True)
class JobGuard:
    """The guard of the arrays of a job: its shards may be read once they are done.

    Attributes
    ----------
    completion : Completion
        Which shards are done.
    job : str
        The job whose shards the array holds.
    """

    completion: Completion
    job: str

    def require(self, shards: NDArray[np.int64]) -> None:
        """Raise ``NotExtractedError``, or ``CorruptDataError``, if a shard is not done."""
        self.completion.require(shards, self.job)

    def record(self, shard: int, key: str) -> Recorded:
        """Return what a shard's receipt records of an object."""
        return self.completion.record(shard, key, self.job)

    def repaired_since(self, shard: int) -> Callable[[], bool]:
        """Return a function that tells whether a shard was repaired after this call."""
        return self.completion.repaired_since(shard, self.job)


@dataclass(frozen=True, slots=True)
class UnitGuard:
    """The guard of the arrays of one unit of derived data, which its receipt records.

    Attributes
    ----------
    where : str
        The unit, for messages.
    objects : tuple of ObjectRecord
        The objects that the receipt names.
    """

    where: str
    objects: tuple[ObjectRecord, ...]

    def require(self, shards: NDArray[np.int64]) -> None:
        """Do nothing: the unit has a receipt."""

    def record(self, shard: int, key: str) -> Recorded:
        """Return what the receipt records of an object."""
        found = next((record for record in self.objects if record.key == key), None)
        if found is None:
            raise CorruptDataError(f"{self.where}: its receipt names no {key}. {CHANGED}", path=key)
        return Recorded.of(found)

    def repaired_since(self, shard: int) -> Callable[[], bool]:
        """Return a function that returns False: the group of a unit never changes."""
        return _never


@dataclass(frozen=True, slots=True)
class PlannedGuard:
    """The guard of an array of the documents, whose objects the plan records.

    Of an object of more than ``WHOLE_BYTES`` the planner has also written the checksums of the
    chunks, in ``ledger/checksums``. Earlier versions have not: of their large objects only the size
    is compared.

    Attributes
    ----------
    objects : Objects
        The store's objects.
    planned : dict of str to (str, int)
        The sha256 and the size of the array's objects, and of their checksums, by key.
    """

    objects: Objects
    planned: dict[str, tuple[str, int]]

    @classmethod
    def of(cls, objects: Objects, plan_file: PlanFile, spec: ArraySpec) -> PlannedGuard:
        """Return the guard of an array.

        Parameters
        ----------
        objects : Objects
            The store's objects.
        plan_file : PlanFile
            The plan and its objects.
        spec : ArraySpec
            The array.
        """
        keys = [spec.key(shard) for shard in range(spec.n_shards)]
        keys += [checksums_key(key) for key in keys]
        planned = {key: plan_file.objects[key] for key in keys if key in plan_file.objects}
        return cls(objects, planned)

    def require(self, shards: NDArray[np.int64]) -> None:
        """Do nothing: the documents are written before the plan."""

    def record(self, shard: int, key: str) -> Recorded:
        """Return what the plan records of an object."""
        if key not in self.planned:
            raise CorruptDataError(
                f"{self.objects.url}/{key}: the plan names no such object. {CHANGED}", path=key
            )
        sha256, n_bytes = self.planned[key]
        return Recorded(n_bytes, sha256, self._chunks(checksums_key(key)), by="plan")

    def repaired_since(self, shard: int) -> Callable[[], bool]:
        """Return a function that returns False: documents are repaired to the same bytes."""
        return _never

    def _chunks(self, key: str) -> tuple[int, ...] | None:
        """Return the recorded checksums of an object's chunks, or None if there are none."""
        if key not in self.planned:
            return None
        sha256, n_bytes = self.planned[key]
        recorded = Recorded(n_bytes, sha256, by="plan")
        try:
            data = self.objects.read(key)
        except FileNotFoundError:
            data = b""
        where = f"{self.objects.url}/{key}"
        recorded.check_size(len(data), where, key)
        recorded.check_whole(data, where, key)
        return tuple(np.frombuffer(data, "<u4").tolist())


def checksums_key(key: str) -> str:
    """Return the key of the checksums of the chunks of an object.

    >>> checksums_key("documents/text/c/0")
    'ledger/checksums/documents/text/c/0'
    """
    return f"{CHECKSUMS}/{key}"


def _never() -> bool:
    return False
