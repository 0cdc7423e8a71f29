"""The ledger of what is done: one receipt per shard of a job, written last."""

from __future__ import annotations

import re
from collections.abc import Iterator

from actlas.store.errors import FormatError
from actlas.store.objects import Objects
from actlas.store.schema import Receipt, seal, unseal

_NAME = re.compile(r"[0-9]{8}\.json")

EXTRACT = "extract"
"""The job that every store begins with: every token's rows."""
POOLED = "pooled"
"""The job of pooled rows; its shards are ranges of documents."""


def receipt_key(job: str, shard: int) -> str:
    """Return the key of a shard's receipt."""
    return f"ledger/receipts/{job}/{shard:08d}.json"


class Receipts:
    """The receipts of one job. A shard is done if and only if its receipt exists.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    job : str
        Such as ``extract``.
    n_shards : int
        How many shards the job has.
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
        return frozenset(self._listed())

    def exists(self, shard: int) -> bool:
        """Whether a shard is done."""
        return self.objects.size(receipt_key(self.job, shard)) is not None

    def read(self, shard: int) -> Receipt:
        """Return a shard's receipt, checked.

        Raises
        ------
        FileNotFoundError
            The shard is not done.
        CorruptDataError, FormatError
            The receipt is not the one that was written, or belongs elsewhere.
        """
        key = receipt_key(self.job, shard)
        receipt = unseal(self.objects.read(key), Receipt, f"{self.objects.url}/{key}")
        if (receipt.job, receipt.shard) != (self.job, shard):
            raise FormatError(
                f"{self.objects.url}/{key}: this is the receipt of {receipt.job} shard "
                f"{receipt.shard}; the file was moved.",
                path=key,
            )
        if receipt.plan_sha256 != self.plan_sha256:
            raise FormatError(
                f"{self.objects.url}/{key}: this receipt was written for another plan "
                f"({receipt.plan_sha256[:16]}…, this store's is {self.plan_sha256[:16]}…), by a "
                "worker of an earlier store at this path: plan again at a new path.",
                path=key,
            )
        return receipt

    def write(self, receipt: Receipt) -> Receipt:
        """Write a receipt and return the one that stands: the first writer's."""
        if self.objects.create(receipt_key(self.job, receipt.shard), [seal(receipt)]):
            return receipt
        return self.read(receipt.shard)

    def _listed(self) -> Iterator[int]:
        for name in self.objects.names(f"ledger/receipts/{self.job}"):
            if _NAME.fullmatch(name) and int(name[:8]) < self.n_shards:
                yield int(name[:8])
