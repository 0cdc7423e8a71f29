"""What lies in a store and belongs to nobody, and what only no receipt names yet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from actlas.store.arrays import ArraySpec
from actlas.store.damage import Damage
from actlas.store.errors import CorruptDataError
from actlas.store.in_order import in_order
from actlas.store.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.receipts import receipt_key
from actlas.store.shardfile import ShardReader
from actlas.store.store import Store
from actlas.store.verify_derived import claimed, is_leftover
from actlas.store.verify_shards import shard_specs

VOLATILE = (
    *("ledger/staging/", "ledger/lease/", "ledger/logs/", "ledger/quarantine/"),
    "ledger/repairing/",
)
"""What belongs to runs, not to the store's content."""


class _Object(NamedTuple):
    """An object of a shard."""

    key: str
    job: str
    number: int
    spec: ArraySpec

    @property
    def hookpoint(self) -> str | None:
        """What a table of statistics is of."""
        return self.spec.path.partition("statistics/")[2] or None


def find_strays(
    store: Store, done: Mapping[str, frozenset[int]], full: bool
) -> tuple[list[Damage], tuple[str, ...]]:
    """Find whatever lies in the store and belongs to nobody, and shards without a receipt.

    These are read where ``full``: the next run adopts what is whole, and cannot what is not.
    """
    standing = claimed(store)
    expected = {PLAN_KEY, PLAN_COPY_KEY, *store.plan_file.objects, *standing}
    in_shards: dict[str, _Object] = {}
    for job in store.jobs:
        for number in range(store.n_shards(job)):
            specs = shard_specs(store, job, number)
            in_shards.update({k: _Object(k, job, number, spec) for k, spec in specs.items()})
            expected.add(receipt_key(job, number))
        for number, generations in store.receipts(job).generations.items():
            expected.update(receipt_key(job, number, g) for g in generations)
    strays, unclaimed, begun = [], [], []
    for key in store.objects.walk():
        if key in in_shards:
            if in_shards[key].number not in done[in_shards[key].job]:
                begun.append(in_shards[key])
        elif key not in expected and is_leftover(key, standing):
            unclaimed.append(key)
        elif key not in expected and not key.startswith(VOLATILE):
            what = "a stray file: nothing of this store has this name"
            strays.append(Damage(key, what, stray=True))
    whys = in_order(partial(_why_unreadable, store), begun if full else [], store.objects.n_readers)
    harmed = {b.key: why for b, why in zip(begun, whys, strict=False) if why is not None}
    for one in begun:  # statistics are of the very bits that lie there
        rows = store.arrays.activations.get(one.hookpoint or "")
        if rows is not None and (key := rows.key(one.number)) in harmed:
            harmed.setdefault(one.key, f"its rows, {key}, cannot be read")
    for key, why in harmed.items():
        strays.append(Damage(key, f"no receipt names it, and it is of no use: {why}", stray=True))
    unclaimed += [one.key for one in begun if one.key not in harmed]
    return strays, tuple(sorted(unclaimed))


def _why_unreadable(store: Store, begun: _Object) -> str | None:
    """Return why an object without a receipt cannot be read, by its own checksums."""
    try:
        reader = ShardReader(store.objects, begun.spec, begun.number)
        for chunk in range(begun.spec.n_chunks(begun.number)):
            reader.read_chunk(chunk)
    except CorruptDataError as error:
        return str(error)
    except FileNotFoundError:  # adopted or removed meanwhile
        return None
    return None
