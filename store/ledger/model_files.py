"""The record of the files of a model's folder: which were read, with their sha256."""

from __future__ import annotations

import hashlib

from actlas.store.errors import CorruptDataError
from actlas.store.format.schema import ModelFiles, PlanFile
from actlas.store.format.sealing import unseal
from actlas.store.objects.base import Objects

MODEL_FILES_KEY = "ledger/model_files.json"

MODEL_FILES_COPY_KEY = "ledger/model_files.copy.json"
"""A copy of the record, from which a damaged one is restored."""


def read_model_files(objects: Objects, plan_file: PlanFile) -> ModelFiles | None:
    """Return the record of the model's files; None for a store that was planned without one.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    plan_file : PlanFile
        The plan, which holds the sha256 of the record.

    Raises
    ------
    CorruptDataError
        Neither the record nor its copy is the one that was written.
    """
    keys = [k for k in (MODEL_FILES_KEY, MODEL_FILES_COPY_KEY) if k in plan_file.objects]
    for key in keys:
        try:
            data = objects.read(key)
        except FileNotFoundError:
            continue
        if hashlib.sha256(data).hexdigest() == plan_file.objects[key][0]:
            return unseal(data, ModelFiles, f"{objects.url}/{key}")
    if keys:
        raise CorruptDataError(
            f"{objects.url}: {' and '.join(keys)} are not the files that were written: without "
            "them the model's files cannot be compared with those of the plan. Restore one of "
            "them from a backup.",
            path=objects.url,
        )
    return None
