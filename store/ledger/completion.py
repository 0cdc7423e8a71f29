"""Which shards of which job are finished: their receipts, read when asked for and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import NotExtractedError
from actlas.store.format.schema import Receipt
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts

if TYPE_CHECKING:
    from actlas.store.store import Store


class Finished:
    """What is known of a store's jobs. A shard that was seen finished is not asked for again.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, frozenset[int]] = {}
        self._receipts: dict[str, Receipts] = {}
        self._receipt = lru_cache(maxsize=4096)(self._read_receipt)

    def __reduce__(self) -> tuple[Any, ...]:
        return attrgetter("finished"), (self._store,)

    def receipts(self, job: str) -> Receipts:
        """Return the receipts of a job."""
        if job not in self._receipts:
            store, n_shards = self._store, self._store.n_shards(job)
            self._receipts[job] = Receipts(store.objects, job, n_shards, store.plan_sha256)
        return self._receipts[job]

    def receipt(self, shard: int, job: str) -> Receipt:
        """Return a shard's receipt.

        Raises
        ------
        NotExtractedError
            It has none.
        """
        return self._receipt(shard, job, self.receipts(job).generation(shard))

    def since(self, shard: int, job: str) -> Callable[[], bool]:
        """Return what tells, by a fresh listing, whether a shard was repaired with other bits.

        That is, under a later receipt than the one that is known now.
        """
        store, known = self._store, self.receipts(job).generation(shard)

        def repaired() -> bool:
            fresh = Receipts(store.objects, job, store.n_shards(job), store.plan_sha256)
            return fresh.generation(shard) > known

        return repaired

    def forget(self, job: str) -> None:
        """Forget what was read of a job's receipts: one of them was replaced."""
        self._receipts.pop(job, None)
        self._seen.pop(job, None)
        self._receipt.cache_clear()

    def shards(self, job: str) -> frozenset[int]:
        """Return the finished shards of a job, by a fresh listing."""
        self._seen[job] = self.receipts(job).done()
        return self._seen[job]

    def require(self, shards: NDArray[np.int64], job: str) -> None:
        """Raise ``NotExtractedError`` where one of these shards is not finished."""
        seen = self._seen.get(job)
        if seen is not None and seen.issuperset(shards.tolist()):
            return
        absent = sorted(set(shards.tolist()) - self.shards(job))
        if absent:
            raise self._not_finished(absent, job)

    def checksums(self, shard: int, key: str, job: str) -> tuple[int, ...] | None:
        """Return the crc32c of each chunk of an object, where the shard's receipt holds them."""
        records = self.receipt(shard, job).objects
        return next((r.chunk_crc32c for r in records if r.key == key), None)

    def _read_receipt(self, shard: int, job: str, generation: int) -> Receipt:
        try:
            return self.receipts(job).read(shard, generation)
        except FileNotFoundError:
            self.shards(job)
            # A repair removes a receipt that cannot be read: the one that stands is a later one.
            if self.receipts(job).generation(shard) > generation:
                return self.receipts(job).read(shard)
            self.require(np.array([shard], dtype=np.int64), POOLED if job == POOLED else EXTRACT)
            raise

    def _not_finished(self, absent: list[int], job: str) -> NotExtractedError:
        path, first = self._store.path, absent[0]
        start, stop = self._store.covered(first, job)
        if job == POOLED:
            what = (
                f"{path}: documents [{start}, {stop}) (shard {first} of the pooled rows) are not "
                f"pooled yet. `actlas extract {path}` goes on."
            )
        else:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            what = (
                f"{path}: rows [{start}, {stop}) (shard {first}{more}) are not extracted yet. "
                f"`actlas extract {path}` goes on, `actlas status {path}` tells how far it is."
            )
        return NotExtractedError(what, path=path, shards=absent)
