"""Orphans: files in a store that no plan and no receipt names, and shards not committed yet."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import partial
from typing import NamedTuple

from actlas.store.errors import ActlasError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.ledger.plan_file import PLAN_COPY_KEY, PLAN_KEY
from actlas.store.ledger.receipts import receipt_key
from actlas.store.objects.threads import map_in_order
from actlas.store.read.reader import StoreReader
from actlas.store.shards.reader import ShardReader
from actlas.store.verify.damage import Damage, raise_if_outside
from actlas.store.verify.derived import claimed, is_leftover
from actlas.store.verify.shards import shard_specs

VOLATILE = (
    *("ledger/staging/", "ledger/lease/", "ledger/logs/", "ledger/quarantine/"),
    "ledger/repairing/",
)
"""Folders of runs, not of the store's content."""

_SHARD = re.compile(r".*/c/([0-9]+)(?:/0)*", re.ASCII)


class _Begun(NamedTuple):
    """An object of a shard that has no receipt."""

    key: str
    job: str
    number: int
    spec: ArraySpec


def find_orphans(
    store: StoreReader, full: bool, only: Collection[str] | None = None
) -> tuple[list[Damage], tuple[str, ...]]:
    """Return the orphans of a store, and the keys of shards that have no receipt yet.

    A shard without a receipt is left for the next run to adopt. With ``full`` it is read, and is
    an orphan where it cannot be.

    Parameters
    ----------
    store : StoreReader
        The store.
    full : bool
        Whether to read shards that have no receipt.
    only : collection of str, optional
        Keys that were found before: of shards without a receipt only these are read.
    """
    standing = claimed(store)
    expected = {PLAN_KEY, PLAN_COPY_KEY, *store.plan_file.objects, *standing}
    done = {job: store.done(job) for job in store.jobs}
    in_shards: dict[str, tuple[str, int]] = {}
    for job in store.jobs:
        for number in range(store.n_shards(job)):
            in_shards.update(dict.fromkeys(shard_specs(store, job, number), (job, number)))
            expected.add(receipt_key(job, number))
        for number, generations in store.receipts(job).generations.items():
            expected.update(receipt_key(job, number, g) for g in generations)
    orphans, unclaimed, begun = [], [], []
    for key in store.objects.walk():
        if key in in_shards:
            job, number = in_shards[key]
            if number not in done[job]:
                begun.append(key)
        elif key not in expected and is_leftover(key, standing):
            unclaimed.append(key)
        elif key not in expected and not key.startswith(VOLATILE):
            what = "an orphan: no part of this store has this name"
            orphans.append(Damage(key, what, orphan=True))
    harmed = _harmed(store, begun if only is None else sorted({*begun} & {*only})) if full else {}
    for key, why in harmed.items():
        orphans.append(
            Damage(key, f"no receipt names it, and it cannot be used: {why}", orphan=True)
        )
    unclaimed += [key for key in begun if key not in harmed]
    return orphans, tuple(sorted(unclaimed))


def remove_orphan(store: StoreReader, key: str) -> bool:
    """Remove an orphan, unless a receipt names it by now; return whether it was removed.

    The caller must hold the lease.
    """
    begun = _begun(store, key)
    if begun is not None:
        store.forget(begun.job)
        if begun.number in store.done(begun.job):
            return False
    store.objects.delete(key)
    return True


def _begun(store: StoreReader, key: str) -> _Begun | None:
    """Return the shard that a key's object is of; None where it is of no shard."""
    match = _SHARD.fullmatch(key)
    number = -1 if match is None else int(match[1])
    for job in store.jobs:
        if 0 <= number < store.n_shards(job):
            spec = shard_specs(store, job, number).get(key)
            if spec is not None:
                return _Begun(key, job, number, spec)
    return None


def _harmed(store: StoreReader, keys: Iterable[str]) -> dict[str, str]:
    """Return the objects of shards without a receipt that no run can adopt, with the reason."""
    found = [begun for key in keys if (begun := _begun(store, key)) is not None]
    whys = map_in_order(partial(_why_unreadable, store), found, store.objects.n_readers)
    harmed = {begun.key: why for begun, why in zip(found, whys, strict=True) if why is not None}
    for begun in found:  # statistics belong to the bits of the stored rows
        rows = store.arrays.activations.get(begun.spec.path.partition("statistics/")[2])
        if rows is None:
            continue
        key = rows.key(begun.number)
        if key in harmed:
            harmed.setdefault(begun.key, f"its rows, {key}, cannot be read")
        elif store.objects.size(key) is None:
            harmed.setdefault(begun.key, f"its rows, {key}, are missing")
    for job in store.jobs:
        store.forget(job)
    done = {job: store.done(job) for job in store.jobs}  # a run may be working meanwhile
    numbers = {begun.key: begun.number in done[begun.job] for begun in found}
    return {key: why for key, why in harmed.items() if not numbers[key]}


def _why_unreadable(store: StoreReader, begun: _Begun) -> str | None:
    """Return why an object without a receipt cannot be read, by its own checksums."""
    try:
        reader = ShardReader(store.objects, begun.spec, begun.number)
        for chunk in range(begun.spec.n_chunks(begun.number)):
            reader.read_chunk(chunk)
    except FileNotFoundError:  # removed meanwhile
        return None
    except (ActlasError, OSError, ValueError) as error:
        raise_if_outside(error)
        return None if store.objects.size(begun.key) is None else str(error)
    return None
