"""Extraction from Python: plan if there is no plan, then extract or resume."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from actlas.jobs.config import SECTIONS, Asked, Section, resolve
from actlas.jobs.formatting import command, counted
from actlas.jobs.ray.cluster import planning_device
from actlas.jobs.run.resume import check_model_files, check_same_plan, moved_model
from actlas.jobs.terminal import echo
from actlas.store.errors import (
    ConfigError,
    StoreExistsError,
    StoreNotFoundError,
)
from actlas.store.extras import explains_missing

if TYPE_CHECKING:
    from actlas.jobs.run.outcome import Outcome
    from actlas.pipeline.options import PlanOptions
    from actlas.store.format.schema import Plan
    from actlas.store.store import Store


@explains_missing
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
        ``executor``, ``workers``. ``corpus`` may also be the documents themselves: an iterable of
        strings or of mappings with a field of text, a ``Dataset`` or ``IterableDataset`` of
        ``datasets``, a ``DataFrame``. They are written into the store when it is planned; the
        same documents resume it.

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
    asked = _asked(options, overrides, config)
    store, outcome = extract_at(os.fspath(path), asked)
    outcome.require_done()
    return store


@explains_missing
def plan(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Store:
    """Plan a new store and return it; return the store that is there if it has the same plan.

    Parameters
    ----------
    path : path
        The path or URL of the store.
    config, overrides
        See :func:`extract`.
    **options
        See :func:`extract`.

    Raises
    ------
    PlanMismatchError
        The store at this path was planned with another value of an option.
    ConfigError, CorpusError, ModelError, HookpointError
        The model, the corpus or a hookpoint does not exist, or options conflict.

    Examples
    --------
    >>> store = actlas.plan(                                           # doctest: +SKIP
    ...     "run.zarr", model="builtin:actlas-6m", corpus=["A text.", "Another."]
    ... )
    """
    return open_or_plan(os.fspath(path), _asked(options, overrides, config))


def _asked(
    options: Mapping[str, Any], overrides: Sequence[str], config: str | os.PathLike[str] | None
) -> Asked:
    """Return the options of a call in Python, where values may be objects of other libraries."""
    sorted_options: dict[Section, dict[str, Any]] = {"plan": {}, "run": {}}
    documents = None
    for name, value in options.items():
        plain = plain_value(name, value)
        if name == "corpus" and not isinstance(plain, str):
            from actlas.pipeline.corpus.in_memory import PREFIX, GivenDocuments

            documents, plain = GivenDocuments(value), PREFIX
        sorted_options[_section_of(name)][name] = plain
    return replace(resolve(sorted_options, overrides, config), documents=documents)


def plain_value(name: str, value: Any) -> Any:
    """Return an option's value in Python as text where it is a path, a dtype or a device.

    Parameters
    ----------
    name : str
        The option.
    value : object
        Its value.

    Raises
    ------
    ConfigError
        It is a model or a tokenizer, and not the name of one.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if name in ("model", "tokenizer") and hasattr(value, "save_pretrained"):
        raise ConfigError(
            f"{name}: got a {type(value).__name__} object, expected a hub id, a local folder or "
            f"builtin:NAME. Save it with {name}.save_pretrained(DIR), a model's tokenizer too, and "
            f"give {name}=DIR.",
            key=name,
        )
    return value


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
    check_same_plan(store.plan, _with_name(asked, store.plan), path)
    return store


def _with_name(asked: Asked, plan: Plan) -> Asked:
    """Name the documents that Python gave, as the store's plan would have named them."""
    if asked.documents is None:
        return asked
    from actlas.pipeline.corpus.in_memory import name_of
    from actlas.pipeline.options import PlanOptions

    fields = ("text_field", "label_field", "messages_field", "span_fields", "image_field")
    planned = {name: plan.request[name] for name in fields if name in plan.request}
    options = PlanOptions.model_validate({"model": "", "corpus": "", **planned})
    spec = plan.corpus
    named = name_of(asked.documents, options, spec.n_records_read, whole=spec.sample != "head")
    return replace(asked, plan={**asked.plan, "corpus": named})


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
    options = _announced(asked)
    from actlas.jobs.run.run import on_stderr
    from actlas.pipeline.plan.make import make_plan

    return make_plan(path, options, on_stderr, planning_device(asked.run), verbose=verbose)


def _announced(asked: Asked) -> PlanOptions:
    """Return the options of a plan, and print what comes first, before torch is imported for it."""
    options = asked.plan_options()
    what = "configuration" if options.untrained is not None else "configuration, weights' sha256"
    echo(f"reading {options.model}: {what}, tokenizer", err=True)
    return options


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
    from actlas.store.objects.base import is_url
    from actlas.store.store import open_store
    from actlas.store.write.staging import refuse_existing

    try:
        store = open_store(path)
    except StoreNotFoundError:
        refuse_existing(path)
        options = _announced(asked)
        from actlas.pipeline.plan.dry_run import estimate

        found = estimate(options, planning_device(asked.run))
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
