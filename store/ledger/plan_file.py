"""The plan as it lies in a store: where, how it is read, and what is held against it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from typing import Any

from actlas.store.errors import ConflictError, CorruptDataError, FormatError, StoreNotFoundError
from actlas.store.format.schema import PlanFile
from actlas.store.format.sealing import FORMAT_VERSION, seal_of, unseal, version_error
from actlas.store.format.validation import check_objects
from actlas.store.objects.base import Objects, is_url

PLAN_KEY = "ledger/plan.json"

PLAN_COPY_KEY = "ledger/plan.copy.json"
"""The same bytes once more: without them nothing else could be proved or repaired."""


def read_plan(objects: Objects, path: str | os.PathLike[str]) -> tuple[PlanFile, str]:
    """Return a store's plan and the sha256 that it is sealed with.

    Parameters
    ----------
    objects : Objects
    path : path or URL
        Of the store, as it was asked for.

    Raises
    ------
    StoreNotFoundError
        There is no store here.
    FormatError
        It was written by another version of the format, or its metadata was changed.
    CorruptDataError
        The plan is not the one that was written.
    """
    try:
        root = read_json(objects, "zarr.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFoundError(
            f"{objects.url}: there is no store here. `actlas plan {path} --model M --corpus C` "
            "makes one.",
            path=objects.url,
        ) from error
    ours = attributes_of(root).get("actlas")
    version = ours.get("format_version") if isinstance(ours, dict) else None
    if version is None:
        raise FormatError(f"{objects.url}: a Zarr group, but no store of actlas.", path=path)
    if version != FORMAT_VERSION:
        raise version_error(objects.url, version)
    try:
        return read_sealed_plan(objects, PLAN_KEY)
    except FileNotFoundError as error:
        again = "Plan again." if is_url(objects.url) else "Remove the folder and plan again."
        if objects.size(PLAN_COPY_KEY) is not None:
            again = (
                f"Its copy is there: `actlas repair {objects.url}` puts it back, or says why not."
            )
        raise StoreNotFoundError(
            f"{objects.url}: {PLAN_KEY} is missing: it is lost, or planning was not finished here. "
            + again,
            path=objects.url,
        ) from error


def read_sealed_plan(objects: Objects, key: str) -> tuple[PlanFile, str]:
    """Return the plan that lies at a key, and its seal; see :func:`read_plan`."""
    data = objects.read(key)
    plan_file = unseal(data, PlanFile, f"{objects.url}/{key}")
    check_objects(plan_file, f"{objects.url}/{key}")
    return plan_file, seal_of(data)


def require_plan(objects: Objects, plan_sha256: str) -> None:
    """Raise ``ConflictError`` where the plan that lies there is not the one of this seal."""
    try:
        # Its end alone: a large store's plan is megabytes, and every commit asks.
        size = objects.size(PLAN_KEY) or 0
        now = seal_of(objects.read(PLAN_KEY, max(0, size - 128)))
    except FileNotFoundError:
        now = "none"
    if now != plan_sha256:
        raise ConflictError(
            f"{objects.url}: the plan here is {now[:16]}…, this worker's was "
            f"{plan_sha256[:16]}…. The store was replaced; nothing more is written.",
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
    """Return the strings that an attribute of a ``zarr.json`` of the plan lists.

    They are the names of codes, and so ``distinct``: each is there once.

    Raises
    ------
    CorruptDataError
        That ``zarr.json`` is not the one that was written.
    FormatError
        The attribute lists something else.
    """
    digest, _ = plan_file.objects.get(key, ("", 0))
    if hashlib.sha256(objects.read(key)).hexdigest() != digest:
        raise CorruptDataError(
            f"{objects.url}/{key}: its sha256 is not the plan's: the names in it were changed.",
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
    """Return the attributes of a ``zarr.json``; none where they are no JSON object."""
    attributes = metadata.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def read_json(objects: Objects, key: str) -> dict[str, Any]:
    """Return a JSON object of the store.

    Raises
    ------
    FormatError
        It is none.
    """
    data = objects.read(key)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{objects.url}/{key}: expected JSON ({error})", path=key) from error
    if not isinstance(value, dict):
        raise FormatError(f"{objects.url}/{key}: expected a JSON object", path=key)
    return value
