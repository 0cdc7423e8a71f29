"""Verifying finished shards: the objects that their receipts name, against bytes and plan."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from actlas.store.errors import ActlasError, CorruptDataError
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.recorded import Recorded
from actlas.store.format.schema import ObjectRecord
from actlas.store.ledger.finished import LOST
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts, receipt_key
from actlas.store.objects.digests import object_digest
from actlas.store.read.reader import StoreReader
from actlas.store.shards.reader import ShardReader
from actlas.store.verify.damage import Check, Checked, Damage, raise_if_outside, size_words


class Shard(NamedTuple):
    """One shard of a job, and the rows that are lost with damage to it."""

    job: str
    number: int
    start: int
    stop: int
    specs: dict[str, ArraySpec]

    def damage(
        self, key: str, what: str, start: int | None = None, stop: int | None = None
    ) -> Damage:
        """Return a damage with which these rows are lost, or all rows of the shard."""
        lo = self.start if start is None else start
        hi = self.stop if stop is None else stop
        of = "documents" if self.job == POOLED else "rows"
        return Damage(key, what, lo, hi, of, self.job, self.number)


def shard_of(store: StoreReader, job: str, number: int) -> Shard:
    """Return a shard of a job."""
    start, stop = store.covered(number, job)
    return Shard(job, number, start, stop, shard_specs(store, job, number))


def shard_specs(store: StoreReader, job: str, number: int) -> dict[str, ArraySpec]:
    """Return the spec of every array of a shard, by the key of the shard's object."""
    return {spec.key(number): spec for spec in store.arrays.in_shards(pooled=job == POOLED)}


def shard_checks(store: StoreReader, shard: Shard, full: bool) -> Iterator[Check]:
    """Yield the checks of one finished shard: its receipts, then every object that they name."""
    receipts = store.receipts(shard.job)
    for generation in [0, *receipts.generations.get(shard.number, [])][:-1]:
        key = receipt_key(shard.job, shard.number, generation)
        earlier = partial(_check_superseded, receipts, shard, generation)
        yield Check(earlier, partial(shard.damage, key))
    key = receipts.key(shard.number)
    try:
        receipt = receipts.read(shard.number)
    except (ActlasError, OSError) as error:
        raise_if_outside(error)
        damage = shard.damage(key, f"unreadable receipt: {error}")
        yield Check(lambda: Checked(0, 0, [damage]), partial(shard.damage, key))
        return
    named = {record.key for record in receipt.objects}
    if named != set(shard.specs) or (receipt.start, receipt.stop) != (shard.start, shard.stop):
        odd = sorted(set(shard.specs) ^ named)
        unfit = shard.damage(key, f"does not fit the plan ({odd})")
        yield Check(lambda: Checked(0, 0, [unfit]), partial(shard.damage, key))
    for record in receipt.objects:
        if record.key in shard.specs:
            check = partial(_check_record, store, shard, record, full)
            yield Check(check, partial(shard.damage, record.key))
    if full and shard.job == EXTRACT:
        columns = store.arrays.rows["doc_idx"].key(shard.number)
        run = partial(_check_columns, store, shard)
        yield Check(run, partial(shard.damage, columns))


def lost_shards(store: StoreReader, done: Mapping[str, Collection[int]]) -> list[Shard]:
    """Return the shards without a receipt of jobs that were finished once.

    Parameters
    ----------
    store : StoreReader
        The store.
    done : mapping of str to collection of int
        The shards of each job that have a receipt.
    """
    return [
        shard_of(store, job, number)
        for job, numbers in done.items()
        for number in store.completion.lost(job, numbers)
    ]


def check_lost(shard: Shard) -> Check:
    """Return the check of a lost shard, which reports its receipt as damage."""
    damage = partial(shard.damage, receipt_key(shard.job, shard.number))
    return Check(lambda: Checked(1, 0, [damage(LOST)]), damage)


def _check_superseded(receipts: Receipts, shard: Shard, generation: int) -> Checked:
    """Check a receipt that a repair has superseded. It may have been removed."""
    key = receipt_key(shard.job, shard.number, generation)
    if receipts.objects.size(key) is None:
        return Checked(0, 0, [])
    try:
        receipts.read(shard.number, generation)
    except CorruptDataError as error:
        return Checked(1, 0, [shard.damage(key, f"unreadable receipt: {error}")])
    return Checked(1, 0, [])


def _check_record(store: StoreReader, shard: Shard, record: ObjectRecord, full: bool) -> Checked:
    size = store.objects.size(record.key)
    if size != record.n_bytes:
        return Checked(1, 0, [shard.damage(record.key, size_words(size, record.n_bytes))])
    if full and object_digest(store.objects, record.key)[1] != record.xxh3:
        what = "its bytes are not those that the receipt describes"
        return Checked(1, size, _locate(store, shard, record, what))
    return Checked(1, size, [])


def _locate(store: StoreReader, shard: Shard, record: ObjectRecord, what: str) -> list[Damage]:
    """Return the damage of an object chunk by chunk, where its chunks can be told apart."""
    whole, spec = [shard.damage(record.key, what)], shard.specs[record.key]
    if spec.path.startswith("statistics/"):
        return whole
    try:
        recorded = replace(Recorded.of(record), digest="")  # its chunks are to be told apart
        reader = ShardReader(store.objects, spec, shard.number, recorded)
    except CorruptDataError:
        return whole
    damages, n_chunks = [], spec.n_chunks(shard.number)
    for chunk in range(n_chunks):
        try:
            reader.read_chunk(chunk)
        except (CorruptDataError, FileNotFoundError) as error:
            first = shard.start + chunk * spec.chunk_rows
            last = min(first + spec.chunk_rows, shard.stop)
            damages.append(shard.damage(record.key, f"{what}; {error}", first, last))
    return damages if damages and (len(damages) < n_chunks or n_chunks == 1) else whole


def _check_columns(store: StoreReader, shard: Shard) -> Checked:
    """Compare the stored row columns with those that the plan gives."""
    try:
        columns = store.shard_columns(shard.number)
    except (ActlasError, OSError, ValueError) as error:
        raise_if_outside(error)
        # The documents are damaged, and are reported: recomputing the shard would not help.
        key = store.arrays.rows["doc_idx"].key(shard.number)
        unchecked = Damage(key, f"cannot be checked: {error}", shard.start, shard.stop)
        return Checked(0, 0, [unchecked])
    damages = []
    for name, expected in columns.items():
        spec = store.arrays.rows[name]
        try:
            reader = ShardReader(store.objects, spec, shard.number)
            stored = reader.read_rows(0, shard.stop - shard.start)
        except (CorruptDataError, FileNotFoundError):
            continue  # _check_record reports it
        if not np.array_equal(stored, expected):
            damages.append(shard.damage(spec.key(shard.number), "not the rows of this plan"))
    return Checked(0, 0, damages)
