"""Comparison of a command's options, and of the model's files, with a store's frozen plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actlas.jobs.config import Asked
from actlas.pipeline.model.filenames import CONFIG_FILE
from actlas.pipeline.model.files import (
    BUILTIN_PREFIX,
    file_sha256,
    locate_model,
    weight_files,
    weights_sha256,
)
from actlas.pipeline.model.pins import (
    changed_files,
    differences,
    folder_files,
    without_weights,
)
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.store.errors import HookpointError, PlanMismatchError
from actlas.store.format.aliases import lens_name, stored_name
from actlas.store.format.schema import Plan
from actlas.store.ledger.model_files import read_model_files
from actlas.store.read.reader import StoreReader

_RESOLVED: Mapping[str, Callable[[Plan], Any]] = {
    "model": lambda plan: plan.model.id,
    "corpus": lambda plan: plan.corpus.uri,
    "hookpoints": lambda plan: [h.name for h in plan.hookpoints],
    "tokenizer": lambda plan: plan.tokenizer.id if plan.tokenizer else None,
    "revision": lambda plan: plan.model.revision,
    "text_field": lambda plan: plan.corpus.text_field,
    "label_field": lambda plan: plan.corpus.label_field,
    "delimiter": lambda plan: next(iter(plan.corpus.delimiters), None),
    "max_length": lambda plan: plan.windows.max_length,
    "long": lambda plan: plan.windows.long,
    "order": lambda plan: plan.order,
    "sample": lambda plan: plan.corpus.sample,
    "dtype": lambda plan: plan.dtype,
    "model_dtype": lambda plan: plan.model.compute_dtype,
    "trust_remote_code": lambda plan: plan.model.trust_remote_code,
    "compression": lambda plan: plan.compression,
    "shard_rows": lambda plan: plan.shard_rows,
    "seed": lambda plan: plan.seed,
}
"""The resolved value in the plan of each field that may have been left to its default."""


def check_same_plan(plan: Plan, asked: Asked, path: str) -> None:
    """Raise if an option differs from the one that the store was planned with.

    An option that is not given comes from the plan. An option that was left open when planning
    (such as ``max_length``) may now be given with its resolved value. A model is identified by its
    files: another folder with the same files is the same model.

    Parameters
    ----------
    plan : Plan
        The store's plan.
    asked : Asked
        The options that were given.
    path : str
        The path or URL of the store, for the message.

    Raises
    ------
    PlanMismatchError
        An option differs. The message names the first one, with both values.
    """
    defaults = PlanOptions(model="", corpus="").model_dump(mode="json")
    for field, value in asked.plan.items():
        resolved = _RESOLVED[field](plan) if field in _RESOLVED else None
        planned = plan.request.get(field, defaults[field] if resolved is None else resolved)
        same = value == planned or (resolved is not None and value == resolved)
        if field == "hookpoints" and not same:
            same = set(_names(value, plan)) in (set(_names(planned, plan)), set(resolved or ()))
        if same or (field == "model" and moved_model(plan, asked)):
            continue
        shown = resolved if planned is None else planned
        where = asked.origin.get(f"plan.{field}", field)
        raise PlanMismatchError(
            f"{path}: planned with {field} = {shown!r}, now asked for {value!r} ({where}). A plan "
            f"is frozen: leave {field} out to resume this store, or give another path for a new "
            "one.",
            field=field,
            planned=shown,
            asked=value,
        )


def _names(patterns: Sequence[str], plan: Plan) -> list[str]:
    """Return patterns of hookpoints, as stored names where they name one in any way."""
    found = []
    for pattern in patterns:
        try:
            model = plan.model
            named = stored_name(pattern, plan.hookpoints, model.architecture, model.n_layers)
        except HookpointError:
            named = lens_name(pattern, plan.model.architecture) or pattern
        found.append(named)
    return found


def moved_model(plan: Plan, asked: Asked) -> str | None:
    """Return the folder given as the model if it holds the plan's model; None otherwise.

    Parameters
    ----------
    plan : Plan
        The store's plan.
    asked : Asked
        The options that were given.

    Raises
    ------
    ModelError
        A weight file in that folder is truncated or missing.
    """
    given = asked.plan.get("model")
    if given in (None, plan.model.id) or not Path(given, CONFIG_FILE).is_file():
        return None
    folder = Path(given)
    same = (
        file_sha256(folder / CONFIG_FILE) == plan.model.config_sha256
        and weights_sha256(weight_files(folder)) == plan.model.weights_sha256
    )
    return given if same else None


def check_model_files(store: StoreReader, run: RunOptions, say: Callable[[str], None]) -> None:
    """Compare the small files of the model's folder with the store's record, before a run.

    Each worker compares all files, weights included. Here the folder is looked at before anything
    is written, where it is on this machine; a tokenizer's own folder too, where it still exists.

    Parameters
    ----------
    store : StoreReader
        A store that was planned earlier.
    run : RunOptions
        ``model_path`` and ``allow_remote_code`` are read.
    say : callable
        Receives a line where the store was planned without a record of these files.

    Raises
    ------
    ModelError
        A file was changed, removed or added since planning; the message names it.
    """
    spec = store.plan.model
    if spec.trust_remote_code and not run.allow_remote_code:
        return  # the run is refused; until then a plan does not decide what is read
    pinned = read_model_files(store.objects, store.plan_file)
    folder = _local(run.model_path or spec.id)
    if pinned is None:
        found = folder and folder_files(folder, spec.id, code=spec.trust_remote_code)
        names = [name for name in found.read if name != CONFIG_FILE] if found else []
        if names:
            say(
                "this store's plan records the weights and config.json alone (it is of an earlier "
                f"version): {', '.join(names)} in {folder} cannot be compared with what was planned"
            )
        return
    folders = [(pinned.model, folder)]
    if pinned.tokenizer is not None:
        folders.append((pinned.tokenizer, _local(pinned.tokenizer.id)))
    for kept, at in folders:
        if at is not None:
            now = folder_files(at, kept.id, code=spec.trust_remote_code)
            if changed := differences(without_weights(kept), now):
                raise changed_files(changed, at)


def _local(model: str) -> Path | None:
    """Return the folder of a model where it is on this machine and no download is needed."""
    if Path(model).expanduser().is_dir() or model.startswith(BUILTIN_PREFIX):
        return locate_model(model, None).folder
    return None
