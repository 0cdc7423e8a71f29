"""The plan's files in a store: reading them, and checking that the plan is still the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from actlas.store.display.folders import kind_of_folder, store_around
from actlas.store.display.text import did_you_mean
from actlas.store.errors import ConflictError, CorruptDataError, FormatError, StoreNotFoundError
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import PlanFile
from actlas.store.format.sealing import FORMAT_VERSION, seal_of, unseal, version_error
from actlas.store.format.validation import check_objects
from actlas.store.format.zarr_json import metadata_bytes
from actlas.store.objects.base import Objects, is_url
from actlas.store.statistics.shard import EARLIER_STATISTICS, STATISTICS

PLAN_KEY = "ledger/plan.json"

PLAN_COPY_KEY = "ledger/plan.copy.json"
"""A copy of the plan: without the plan nothing else could be checked or repaired."""


def read_plan(objects: Objects, path: str | os.PathLike[str]) -> tuple[PlanFile, str]:
    """Return a store's plan and its seal.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    path : path or URL
        The store's location as the user gave it, for messages.

    Raises
    ------
    StoreNotFoundError
        There is no store at this location.
    FormatError
        The store was written by another version of the format, or its metadata was changed.
    CorruptDataError
        The plan is not the one that was written.
    """
    try:
        root = read_json(objects, "zarr.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFoundError(
            f"{objects.url}: there is no store here{instead_of_store(path)}", path=objects.url
        ) from error
    ours = attributes_of(root).get("actlas")
    version = ours.get("format_version") if isinstance(ours, dict) else None
    if version is None:
        around = None if is_url(path) else store_around(Path(path))
        advice = "" if around is None else f" It is a part of the store {around}: give that."
        raise FormatError(
            f"{objects.url}: got a Zarr group, expected a store of actlas.{advice}", path=path
        )
    if version != FORMAT_VERSION:
        raise version_error(objects.url, version)
    try:
        return read_sealed_plan(objects, PLAN_KEY)
    except FileNotFoundError as error:
        again = "Plan again." if is_url(objects.url) else "Remove the folder and plan again."
        if objects.size(PLAN_COPY_KEY) is not None:
            again = f"Its copy exists: `actlas repair {objects.url}` restores it, or says why not."
        raise StoreNotFoundError(
            f"{objects.url}: {PLAN_KEY} is missing: it was lost, or planning was not completed. "
            + again,
            path=objects.url,
        ) from error


def instead_of_store(path: str | os.PathLike[str]) -> str:
    """Return what is at a path that is no store, or the store nearest in name, and what to do.

    Parameters
    ----------
    path : path or URL
        The location as the user gave it.
    """
    at = Path(path)
    if not is_url(path) and at.is_file():
        return ", but a file. Give the folder of a store."
    if not is_url(path) and at.is_dir() and any(at.iterdir()):
        kind = kind_of_folder(at) or "a folder of other files"
        return f", but {kind}. Give the folder of a store."
    near = "" if is_url(path) else did_you_mean(at.name, _stores_beside(at), 1)
    return f".{near} `actlas plan {path} --model M --corpus C` creates one."


def _stores_beside(path: Path) -> list[str]:
    """Return the names of the stores in the folder of a path."""
    try:
        return sorted(each.name for each in path.parent.iterdir() if (each / PLAN_KEY).exists())
    except OSError:
        return []


def read_sealed_plan(objects: Objects, key: str) -> tuple[PlanFile, str]:
    """Return the plan stored under a key, and its seal; raises as :func:`read_plan` does."""
    data = objects.read(key)
    plan_file = unseal(data, PlanFile, f"{objects.url}/{key}")
    check_objects(plan_file, f"{objects.url}/{key}")
    return plan_file, seal_of(data)


def require_plan(objects: Objects, plan_sha256: str) -> None:
    """Raise ``ConflictError`` if the store's plan no longer has this seal."""
    try:
        # Only the end is read: a large store's plan has megabytes, and every commit checks it.
        size = objects.size(PLAN_KEY) or 0
        now = seal_of(objects.read(PLAN_KEY, max(0, size - 128)))
    except FileNotFoundError:
        now = "none"
    if now != plan_sha256:
        raise ConflictError(
            f"{objects.url}: got the plan {now[:16]}…, expected {plan_sha256[:16]}…, which this "
            "worker began with. The store was replaced; this worker writes nothing more.",
            path=objects.url,
        )


def names_in(
    objects: Objects,
    plan_file: PlanFile,
    key: str,
    attribute: str = "names",
    *,
    distinct: bool = True,
) -> list[str]:
    """Return the list of strings in an attribute of an array's ``zarr.json``.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    plan_file : PlanFile
        The plan, which records the sha256 of the ``zarr.json``.
    key : str
        The key of the ``zarr.json``.
    attribute : str
        The attribute's name.
    distinct : bool
        Whether the strings must be distinct, as the names of codes are.

    Raises
    ------
    CorruptDataError
        The ``zarr.json`` is not the one that was written.
    FormatError
        The attribute is not a list of strings, or repeats one that must be distinct.
    """
    digest, _ = plan_file.objects.get(key, ("", 0))
    if hashlib.sha256(objects.read(key)).hexdigest() != digest:
        raise CorruptDataError(
            f"{objects.url}/{key}: its sha256 is not the one in the plan: its names were changed.",
            path=key,
        )
    names = attributes_of(read_json(objects, key)).get(attribute, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{objects.url}/{key}: attribute `{attribute}` must list strings")
    if distinct and len(set(names)) < len(names):
        [(twice, _)] = Counter(names).most_common(1)
        raise FormatError(
            f"{objects.url}/{key}: attribute `{attribute}` must list each name once, got "
            f"{twice[:100]!r} more often"
        )
    return names


def attributes_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a ``zarr.json``, or an empty dict if they are no JSON object."""
    attributes = metadata.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def read_json(objects: Objects, key: str) -> dict[str, Any]:
    """Return an object of the store that holds a JSON object.

    Raises
    ------
    FileNotFoundError
        The object does not exist.
    FormatError
        The object is not JSON, or another JSON value.
    """
    data = objects.read(key)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{objects.url}/{key}: expected JSON ({error})", path=key) from error
    if not isinstance(value, dict):
        raise FormatError(
            f"{objects.url}/{key}: got another JSON value, expected a JSON object", path=key
        )
    return value


def planned_arrays(objects: Objects, plan_file: PlanFile) -> StoreArrays:
    """Return the specs of every array of a plan, with the statistics that the store has.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    plan_file : PlanFile
        The plan. Stores of earlier versions have fewer statistics, which their metadata tell.
    """
    plan = plan_file.plan
    first = plan.hookpoints[0]
    for names in (STATISTICS, EARLIER_STATISTICS):
        arrays = StoreArrays(plan, statistics_names=names)
        spec = arrays.statistic(first)
        digest, _ = plan_file.objects.get(spec.metadata_key, ("", 0))
        if digest == hashlib.sha256(metadata_bytes(spec.metadata())).hexdigest():
            return arrays
    if not plan.dense:
        return StoreArrays(plan)
    found = names_in(objects, plan_file, arrays.statistic(first).metadata_key, "statistics")
    return StoreArrays(plan, statistics_names=tuple(found))
