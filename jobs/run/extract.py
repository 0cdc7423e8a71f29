"""Extraction from Python: plan if there is no plan, then extract or resume."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actlas.jobs.config import SECTIONS, Asked, Section, resolve
from actlas.jobs.formatting import command, counted
from actlas.jobs.ray.cluster import planning_device
from actlas.jobs.run.resume import check_model_files, check_same_plan, moved_model
from actlas.store.errors import (
    ConfigError,
    StoreExistsError,
    StoreNotFoundError,
)

if TYPE_CHECKING:
    from actlas.jobs.run.outcome import Outcome
    from actlas.store.store import Store


def extract(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Store:
    """Plan if there is no plan, extract the missing shards, and return the store.

    Parameters
    ----------
    path : path
        The path or URL of the store: a new one, or one to resume.
    config : path, optional
        A YAML file with the sections ``plan`` and ``run``.
    overrides : sequence of str
        Values that override it, such as ``"run.workers=4"``.
    **options
        Any field of :class:`~actlas.pipeline.options.PlanOptions` and
        :class:`~actlas.pipeline.options.RunOptions`: ``model``, ``corpus``, ``hookpoints``,
        ``executor``, ``workers``.

    Raises
    ------
    QuarantineError
        Shards are left in quarantine.
    KeyboardInterrupt, SignalledExit
        SIGINT or SIGTERM stopped the run; the same call resumes it. Neither is an ``Exception``.

    Examples
    --------
    >>> store = actlas.extract(                                        # doctest: +SKIP
    ...     "run.zarr", model="builtin:actlas-6m", corpus="builtin:python-docs"
    ... )
    """
    sorted_options: dict[Section, dict[str, Any]] = {"plan": {}, "run": {}}
    for name, value in options.items():
        sorted_options[_section_of(name)][name] = value
    asked = resolve(sorted_options, overrides, config)
    store, outcome = extract_at(os.fspath(path), asked)
    outcome.require_done()
    return store


def extract_at(path: str, asked: Asked, *, verbose: bool = False) -> tuple[Store, Outcome]:
    """Open or plan the store at a path, then extract its missing shards.

    Parameters
    ----------
    path : str
        The path or URL of the store.
    asked : Asked
        The options of the plan and of the run.
    verbose : bool
        Whether all lines of a new plan's estimate are printed.
    """
    from actlas.jobs.run.run import on_stderr, run_extraction

    store, run = open_or_plan(path, asked, verbose=verbose), asked.run
    if asked.plan.get("trust_remote_code"):
        run = run.model_copy(update={"allow_remote_code": True})
    if run.model_path is None:
        run = run.model_copy(update={"model_path": moved_model(store.plan, asked)})
    if any(store.missing(job) for job in store.jobs):
        check_model_files(store, run, on_stderr)
    return store, run_extraction(store, run)


def open_or_plan(path: str, asked: Asked, *, verbose: bool = False) -> Store:
    """Open a store and compare its plan with the options; plan a new one if there is none.

    Parameters
    ----------
    path : str
        The path or URL of the store.
    asked : Asked
        The options of the plan and of the run.
    verbose : bool
        Whether all lines of a new plan's estimate are printed.

    Raises
    ------
    PlanMismatchError
        An option that was given differs from the store's plan.
    StoreExistsError
        The path holds something that is not a store.
    """
    from actlas.store.store import open_store

    try:
        store = open_store(path)
    except StoreNotFoundError:
        pass

        try:
            return make(path, asked, verbose=verbose)
        except StoreExistsError as exists:  # another planner was faster, or it is no store
            try:
                store = open_store(path)
            except StoreNotFoundError as error:
                if "begun" in exists.details:
                    raise exists from error
                raise StoreExistsError(
                    f"{path}: expected a store or nothing, found something else. Give another "
                    "path, or remove it.",
                    path=path,
                ) from error
    check_same_plan(store.plan, asked, path)
    return store


def _section_of(name: str) -> Section:
    if name in SECTIONS["plan"].model_fields:
        return "plan"
    if name in SECTIONS["run"].model_fields:
        return "run"
    known = [*SECTIONS["plan"].model_fields, *SECTIONS["run"].model_fields]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(known)}."
    raise ConfigError(f"unknown option {name!r}. {hint}", key=name, near=near)


def make(path: str, asked: Asked, *, verbose: bool = False) -> Store:
    """Plan a new store and return it.

    Parameters
    ----------
    path : str
        The path or URL of the store.
    asked : Asked
        The options of the plan and of the run.
    verbose : bool
        Whether all lines of the plan's estimate are printed.
    """
    options = asked.plan_options()
    from actlas.jobs.run.run import on_stderr
    from actlas.pipeline.plan.make import make_plan

    return make_plan(path, options, on_stderr, planning_device(asked.run), verbose=verbose)


def dry_run(path: str, asked: Asked, *, verbose: bool = False) -> list[str]:
    """Return the lines that say what planning or extracting a store would amount to.

    Nothing is written.

    Parameters
    ----------
    path : str
        The path or URL of the store. If there is one, its plan is compared with the options.
    asked : Asked
        The options of the plan and of the run.
    verbose : bool
        Whether all lines of the estimate are returned.

    Raises
    ------
    PlanMismatchError
        An option that was given differs from the store's plan.
    StoreExistsError
        The path holds something that is not a store.
    """
    from actlas.pipeline.plan.dry_run import estimate
    from actlas.store.objects.base import is_url
    from actlas.store.store import open_store
    from actlas.store.write.staging import refuse_existing

    try:
        store = open_store(path)
    except StoreNotFoundError:
        refuse_existing(path)
        found = estimate(asked.plan_options(), planning_device(asked.run))
        nothing = "dry run: nothing was written -> next: run the command without --dry-run"
        return [*found.lines(verbose=verbose, bucket=is_url(path)), nothing]
    check_same_plan(store.plan, asked, path)
    n_missing = sum(len(store.missing(job)) for job in store.jobs)
    left = f"{counted(n_missing, 'shard')} to extract" if n_missing else "all shards are extracted"
    then = command("extract" if n_missing else "verify", path)
    return [
        f"planned already: {size_of(store)}; {left}",
        f"dry run: nothing was written -> next: {then}",
    ]


def size_of(store: Store) -> str:
    """Return the documents, rows, hookpoints and shards of a store in words.

    Parameters
    ----------
    store : Store
        The store.
    """
    plan = store.plan
    rows = [counted(plan.n_tokens, "row")] * plan.dense
    if plan.pools:
        rows.append(counted(plan.n_documents * len(plan.pools), "pooled row"))
    n_shards = sum(store.n_shards(job) for job in store.jobs)
    return (
        f"{counted(plan.n_documents, 'document')}, {' and '.join(rows)} x "
        f"{counted(len(plan.hookpoints), 'hookpoint')} in {counted(n_shards, 'shard')}"
    )
