"""Planning: a store is created with a frozen plan of all its rows, before a model runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from actlas.pipeline.corpus.in_memory import GivenDocuments
from actlas.pipeline.corpus.spans import span_columns
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.borders import crossing_share, fit_borders
from actlas.pipeline.plan.columns import DraftColumns
from actlas.pipeline.plan.draft import Draft, Log, collect
from actlas.pipeline.plan.estimate import summarize
from actlas.pipeline.plan.settings import Settings, assemble, resolve_settings
from actlas.pipeline.plan.spool import Spool, open_spool
from actlas.pipeline.plan.store_size import sample_rates
from actlas.store.display.text import counted
from actlas.store.errors import ActlasError, ModelError
from actlas.store.format import layout
from actlas.store.format.schema import Plan
from actlas.store.objects.base import is_url
from actlas.store.objects.leftovers import temporary_folder
from actlas.store.store import Store, open_store
from actlas.store.verify.repair_plan import put_back_from
from actlas.store.write.create import create
from actlas.store.write.staging import refuse_existing


def make_plan(
    path: str | os.PathLike[str],
    options: PlanOptions,
    progress: Log | None = None,
    device: str | None = "auto",
    *,
    verbose: bool = True,
) -> Store:
    """Read, tokenize and order a corpus, and write a new store with its plan.

    Texts and tokens pass through a folder next to the store, which is removed at the end, even
    after an error. Memory holds about 140 bytes per document, one batch, and 100 MB of buffers
    (docs/scale.md).

    Parameters
    ----------
    path : path
        The new store; nothing, or an empty folder, may be there.
    options : PlanOptions
        The definition of the rows.
    progress : callable, optional
        Receives lines of text: the progress, and at the end the estimate of the plan.
    device : str or None
        The device that the model will run on, which decides the dtype that it computes in where
        ``model_dtype`` is ``auto``; None where it runs on other machines.
    verbose : bool
        Whether all lines of the estimate are logged, or those that a person decides by.

    Raises
    ------
    StoreExistsError
        Something exists at ``path``.
    ConfigError, CorpusError, ModelError, HookpointError
        The model, the corpus or a hookpoint does not exist, or options conflict.
    RunFaultError
        The disk is full or fails. Nothing is left behind.
    """
    refuse_existing(path)
    log = progress or (lambda _: None)
    return plan_settings(path, resolve_settings(options, device, log), log, verbose=verbose)


def plan_settings(
    path: str | os.PathLike[str], settings: Settings, log: Log, *, verbose: bool = True
) -> Store:
    """Make the plan of decided options, as :func:`make_plan` does.

    Parameters
    ----------
    path : path
        The new store.
    settings : Settings
        The decided options.
    log : callable
        Receives lines of progress, and the estimate of the plan.
    verbose : bool
        Whether all lines of the estimate are logged.
    """
    log(f"planning {settings.corpus.describe()}")
    with open_spool(path) as spool:
        draft = collect_documents(settings, spool, log)
        _check_vocabulary(settings, draft.tokenized.largest_id)
        draft = _fit(settings, draft)
        columns = columns_of(settings, draft)
        plan = _plan(settings, draft, columns)
        images = columns if plan.processor is not None else None
        found = summarize(
            settings,
            plan,
            columns,
            sample_rates(plan, columns, images),
            crossing_share=crossing_share(
                draft.lengths, plan.shard_rows, settings.windows.kept, causal=plan.model.causal
            ),
        )
        for line in found.lines(verbose=verbose, bucket=is_url(path)):
            log(line)
        create(path, plan, columns, images, settings.files)
    return open_store(path)


def collect_documents(settings: Settings, spool: Spool, log: Log = lambda _: None) -> Draft:
    """Read, tokenize and order the documents of a plan, as its settings say."""
    return collect(
        settings.corpus,
        settings.tokenizer,
        settings.windows,
        spool,
        columns=span_columns(settings.options),
        order=settings.order,
        sample=settings.sample,
        max_tokens=settings.options.max_tokens,
        seed=settings.options.seed,
        log=log,
    )


def columns_of(settings: Settings, draft: Draft) -> DraftColumns:
    """Return the documents of a draft in the plan's order."""
    labelled = settings.corpus.labelled
    return DraftColumns(draft, labelled=labelled, names=settings.tokenizer.columns)


def _fit(settings: Settings, draft: Draft) -> Draft:
    """Reorder documents near shard borders, so that fewer sequences cross them."""
    if settings.order == "corpus":
        return draft
    shard_rows = settings.shard_rows(draft.tokenized.n_tokens)
    places = fit_borders(draft.lengths, shard_rows, settings.windows.kept)
    return draft._replace(order=draft.order[places])


def _check_vocabulary(settings: Settings, largest_id: int) -> None:
    spec = settings.tokenizer.spec
    if spec is None:
        return
    largest = max(largest_id, *spec.prefix_ids, *spec.suffix_ids, -1)
    n_known = settings.model.skeleton.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if largest >= n_known:
        raise ModelError(
            f"{spec.id} produces token {largest:,}, and {settings.model.spec.id} has embeddings "
            f"for {n_known:,} tokens. Expected the model's own tokenizer, or a compatible one.",
            field="tokenizer",
        )


def _plan(settings: Settings, draft: Draft, columns: DraftColumns) -> Plan:
    return assemble(
        settings,
        fingerprint=columns.fingerprint(),
        sample=draft.sample,
        n_documents=columns.n_documents,
        n_tokens=columns.n_tokens,
        n_text_bytes=columns.n_text_bytes,
        n_image_bytes=columns.n_image_bytes,
        n_windows=layout.n_windows(draft.lengths, settings.windows.kept),
    )


def restore_documents(
    store: Store,
    keys: Sequence[str],
    log: Log,
    documents: GivenDocuments | None = None,
) -> list[str]:
    """Plan again in a temporary folder, and copy the objects that come out as they were.

    Parameters
    ----------
    store : Store
        A store with damaged objects of documents.
    keys : sequence of str
        Their keys.
    log : callable
        Called with a line for each step.
    documents : GivenDocuments, optional
        The documents, where the corpus was given in Python.

    Returns
    -------
    list of str
        The keys of the objects that were restored.
    """
    # Neither the plan nor its request is trusted: a stranger may have written either.
    if store.plan.model.trust_remote_code or store.plan.request.get("trust_remote_code"):
        log(f"{keys[0]}: the model comes with code of its own, which a repair does not run")
        return []
    damaged = counted(len(keys), "damaged object")
    log(f"{damaged} of documents: planning again from the corpus")
    with temporary_folder("repair") as folder:
        try:
            options = PlanOptions.model_validate(store.plan.request)
            again = make_plan(folder / "again.zarr", options.with_documents(documents))
        except (ActlasError, ValueError) as error:
            log(f"planning again failed: {error}")
            return []
        return put_back_from(store, again, keys)
