"""Checks of derived data: every receipt against its bytes and against its inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from actlas.store.errors import ActlasError
from actlas.store.features.features import open_features
from actlas.store.format.schema import Receipt
from actlas.store.format.sealing import seal_of
from actlas.store.format.zarr_json import group_metadata, metadata_bytes
from actlas.store.ledger.feature_sets import (
    FOLDER,
    copies,
    copy_key,
    names,
    read_description,
    spec_key,
)
from actlas.store.ledger.finished import (
    LOST,
    PREFIX,
    finished_copy_key,
    finished_key,
    noted_jobs,
    read_finished,
)
from actlas.store.ledger.job_kind import MARK_DIGITS
from actlas.store.ledger.job_kinds import ENCODE, is_root, job_receipts, kind_of, kinds
from actlas.store.ledger.lost import lost_derived
from actlas.store.ledger.receipts import EXTRACT, POOLED, Receipts, receipt_key
from actlas.store.objects.digests import object_digest
from actlas.store.objects.threads import map_in_order
from actlas.store.verify.damage import Check, Checked, Damage, raise_if_outside, size_words

if TYPE_CHECKING:
    from actlas.store.read.reader import StoreReader

_EXTRACTED = re.compile(
    r"ledger/(?:receipts|repairs)/extract/([0-9]{8})\.(?:[0-9]{4}\.)?json", re.A
)
"""The key of a receipt of extraction, of any generation."""

_MARKED = re.compile(rf"(([^/ ]+)/[^ ]*-[0-9a-f]{{{MARK_DIGITS}}})/", re.ASCII)
"""A key inside a group of one attempt, if its first folder is one for derived data."""


def derived_jobs(store: StoreReader) -> dict[str, list[int]]:
    """Return the derived jobs that have receipts, with the units that have one.

    Parameters
    ----------
    store : StoreReader
        The store.
    """
    found = {}
    for job in sorted(store.objects.names("ledger/receipts")):
        if job not in (EXTRACT, POOLED):
            found[job] = sorted(job_receipts(store, job).done())
    return found


def derived_checks(store: StoreReader, full: bool) -> Iterator[Check]:
    """Yield the checks of all derived data of a store.

    Parameters
    ----------
    store : StoreReader
        The store.
    full : bool
        Whether every byte is read; otherwise sizes are compared and metadata is read.
    """
    for name in names(store):
        yield Check(partial(_check_spec, store, name), partial(Damage, spec_key(name)))
    for name in copies(store):
        yield Check(partial(_check_copy, store, name), partial(Damage, copy_key(name)))
    for key in plain_groups(store):
        yield Check(partial(_check_plain, store, key), partial(Damage, key))
    yield from _lost_checks(store)
    for job, units in derived_jobs(store).items():
        receipts = job_receipts(store, job)
        for unit in units:
            damage = partial(Damage, job=job, shard=unit)
            check = partial(_check_receipt, store, receipts, unit, full, damage)
            yield Check(check, partial(damage, receipt_key(job, unit)))


def _lost_checks(store: StoreReader) -> Iterator[Check]:
    """Yield a check of each lost receipt, and of each record of a finished job that is lost."""
    for job in sorted(noted_jobs(store.objects)):
        lost = partial(Damage, finished_key(job), job=f"{PREFIX}{job}", shard=0)
        if store.objects.size(finished_key(job)) is None and read_finished(store.objects, job):
            what = f"the record that {job} was finished is lost: {finished_copy_key(job)} is there"
            yield Check(partial(_found, lost(what)), lost)
    for job, units in lost_derived(store).items():
        for unit in units:
            lost = partial(Damage, receipt_key(job, unit), job=job, shard=unit)
            yield Check(partial(_found, lost(LOST)), lost)


def _found(damage: Damage) -> Checked:
    return Checked(1, 0, [damage])


def claimed(store: StoreReader) -> frozenset[str]:
    """Return every key that belongs to derived data.

    Parameters
    ----------
    store : StoreReader
        The store.
    """
    keys = {spec_key(name) for name in names(store)} | set(plain_groups(store))
    keys |= {copy_key(name) for name in copies(store) if _stands_for_something(store, name)}
    for job, units in derived_jobs(store).items():
        keys.update(receipt_key(job, unit) for unit in units)
        receipts = job_receipts(store, job)
        for receipt in map_in_order(partial(_readable, receipts), units, store.objects.n_readers):
            if receipt is not None:
                keys.update(record.key for record in receipt.objects)
    return frozenset(keys)


def is_leftover(key: str, standing: frozenset[str]) -> bool:
    """Whether a key belongs to the group of an attempt that was killed or came second.

    Parameters
    ----------
    key : str
        A key that belongs to no receipt.
    standing : frozenset of str
        The keys that belong to derived data: a group with one of them is no leftover.
    """
    match = _MARKED.match(key)
    if match is None or f"{match[1]}/zarr.json" in standing:
        return False
    return is_root(match[2])


def plain_groups(store: StoreReader) -> list[str]:
    """Return the metadata keys of the plain groups above derived data, present or required.

    Plain groups are created before the first unit: if any unit has a receipt, all are required.

    Parameters
    ----------
    store : StoreReader
        The store.
    """
    jobs, sets = derived_jobs(store), names(store)
    required: dict[str, bool] = {}
    for job, units in jobs.items():
        kind, subject = kind_of(job)
        if kind is not None and (not kind.of_feature_set or subject in sets):
            for folder in kind.groups(subject):
                required[folder] = required.get(folder, False) or bool(units)
    for kind in kinds():
        for subject in sets if kind.of_feature_set else ():
            for folder in kind.groups(subject):
                required.setdefault(folder, False)
        for folder in kind.plain_groups:
            if "{subject}" not in folder:
                required.setdefault(folder, False)
    keys = {f"{folder}/zarr.json": begun for folder, begun in required.items()}
    return [key for key, begun in keys.items() if begun or store.objects.size(key) is not None]


def _readable(receipts: Receipts, unit: int) -> Receipt | None:
    try:
        return receipts.read(unit)
    except (ActlasError, OSError):
        return None  # another check reports why


def _check_spec(store: StoreReader, name: str) -> Checked:
    features, size = open_features(store, name), store.objects.size(spec_key(name)) or 0
    if features.spec.has_copy and store.objects.size(copy_key(name)) is None:
        return Checked(1, size, [Damage(copy_key(name), size_words(None, size))])
    return Checked(1, size, [])


def _check_copy(store: StoreReader, name: str) -> Checked:
    """Compare the copy of a description with it; if the description is missing, report that."""
    data = store.objects.read(copy_key(name))
    try:
        same = data == store.objects.read(spec_key(name))
    except FileNotFoundError:
        # The copy is written first: a killed `sae encode` may have left nothing else.
        lost = Damage(spec_key(name), size_words(None, len(data)))
        return Checked(1, len(data), [lost] if _begun(store, name) else [])
    what = f"is not the same as {spec_key(name)}"
    return Checked(1, len(data), [] if same else [Damage(copy_key(name), what)])


def _begun(store: StoreReader, name: str) -> bool:
    folder = f"ledger/receipts/{ENCODE.job(name)}"
    return next(iter(store.objects.names(folder)), None) is not None


def _stands_for_something(store: StoreReader, name: str) -> bool:
    """Whether a copy has a description or encoded shards, or is undamaged itself."""
    if store.objects.size(spec_key(name)) is not None or _begun(store, name):
        return True
    key = copy_key(name)
    try:
        read_description(store.objects.read(key), name, f"{store.path}/{key}")
    except (ActlasError, OSError) as error:
        raise_if_outside(error)
        return False
    return True


def _check_plain(store: StoreReader, key: str) -> Checked:
    expected = metadata_bytes(group_metadata())
    if store.objects.size(key) is None:
        return Checked(1, 0, [Damage(key, size_words(None, len(expected)))])
    data = store.objects.read(key)
    wrong = [] if data == expected else [Damage(key, "is not a plain group's metadata")]
    return Checked(1, len(data), wrong)


def _check_receipt(
    store: StoreReader,
    receipts: Receipts,
    unit: int,
    full: bool,
    damage_of: Callable[..., Damage],
) -> Checked:
    job, receipt = receipts.job, receipts.read(unit)
    kind, _ = kind_of(job)
    of_tokens = kind is not None and kind.covers == "tokens"
    tokens = (receipt.start, receipt.stop) if of_tokens else (None, None)
    key = receipt_key(job, unit)
    damages = [
        damage_of(key, f"was made from another {source} than lies there now", *tokens)
        for source, seal in receipt.inputs.items()
        if _seal_there(store, source) != seal and not _is_lost(store, job, source)
    ]
    n_bytes = 0
    for record in receipt.objects:
        size = store.objects.size(record.key)
        n_bytes += size or 0
        read = full or record.key.endswith("/zarr.json")
        if size != record.n_bytes:
            damages.append(damage_of(record.key, size_words(size, record.n_bytes), *tokens))
        elif read and object_digest(store.objects, record.key)[1] != record.xxh3:
            what = "its bytes are not those that the receipt describes"
            damages.append(damage_of(record.key, what, *tokens))
    return Checked(1 + len(receipt.objects), n_bytes, damages)


def _is_lost(store: StoreReader, job: str, source: str) -> bool:
    """Whether a receipt is lost that a record of a finished job names: it is reported itself."""
    return job.startswith(PREFIX) and store.objects.size(source) is None


def _seal_there(store: StoreReader, key: str) -> str | None:
    """Return the seal of a valid record; None if it is missing or superseded."""
    if not key.startswith(("ledger/receipts/", "ledger/repairs/", FOLDER)):
        return None
    match = _EXTRACTED.fullmatch(key)
    if match is not None and store.receipts(EXTRACT).key(int(match[1])) != key:
        return None
    try:
        return seal_of(store.objects.read(key))
    except (FileNotFoundError, ValueError):
        return None
