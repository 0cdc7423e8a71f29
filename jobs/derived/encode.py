"""Encoding of stored activations by a sparse autoencoder: the jobs ``encode`` and ``encoded``."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.jobs import logs
from actlas.jobs.config import resolve
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted, printable
from actlas.jobs.run.outcome import Outcome
from actlas.jobs.run.repair_derived import outcome_or_error
from actlas.jobs.run.run import on_stderr, run_work
from actlas.jobs.run.work import DerivedUnits, Work
from actlas.pipeline.options import RunOptions
from actlas.store.errors import (
    EXIT_DONE,
    EXIT_RESUME,
    ConfigError,
)
from actlas.store.extras import explains_missing
from actlas.store.ledger import lease
from actlas.store.ledger.job_kinds import ENCODE
from actlas.store.store import Store, as_store, open_store

if TYPE_CHECKING:
    from actlas.analysis.features.encode import Encoder
    from actlas.store.features.features import Features


@explains_missing
def encode_sae(
    store: Store | str | os.PathLike[str],
    sae: str | os.PathLike[str],
    *,
    name: str | None = None,
    hookpoint: str | None = None,
    accept: Collection[str] = (),
    **run: Any,
) -> Features:
    """Encode every token of a store, as ``actlas sae encode`` does, and return the features.

    Parameters
    ----------
    store : Store or path
        The store, or its path or URL.
    sae : path or str
        The folder of a sparse autoencoder, or the name of a set that was begun.
    name, hookpoint : str, optional
        See :func:`encode`.
    accept : collection of str
        See :func:`encode`.
    **run
        Fields of :class:`~actlas.pipeline.options.RunOptions`: ``executor``, ``workers``,
        ``device``.

    Raises
    ------
    SaeError
        The sparse autoencoder cannot be loaded, or does not fit this store.
    QuarantineError
        Shards are left in quarantine.
    InterruptedRunError
        The store is not extracted whole.
    KeyboardInterrupt, SignalledExit
        SIGINT or SIGTERM stopped the run; the same call resumes it.
    """
    opened = as_store(store)
    asked = resolve({"plan": {}, "run": run}).run
    outcome, made = encode(opened, os.fspath(sae), name, hookpoint, asked, accept)
    outcome.require_done()
    return opened.features(made)


def encode(
    store: Store,
    sae: str,
    name: str | None,
    hookpoint: str | None,
    run: RunOptions,
    accept: Collection[str] = (),
) -> tuple[Outcome, str]:
    """Encode the missing shards of a set of features, then write the table over all of them.

    An autoencoder that was trained on other activations is refused when a set is begun. What else
    differs, and what was accepted, is printed to standard error.

    Parameters
    ----------
    store : Store
        The store.
    sae : str
        The folder of a sparse autoencoder, or the name of a set that was begun.
    name : str, optional
        The name of the set; by default the folder's.
    hookpoint : str, optional
        The hookpoint to encode; by default the one that the sparse autoencoder was trained on.
    run : RunOptions
        Executor, workers, device.
    accept : collection of str
        Fields of the autoencoder's ``cfg.json`` that may differ from the store, such as
        ``model_name``.

    Raises
    ------
    SaeError
        The sparse autoencoder cannot be loaded, or does not fit this store.
    ConfigError
        ``accept`` has a name that is no such field; or ``sae`` is the name of a set that was begun,
        and ``name`` is another.
    CorruptDataError
        The extraction was finished, and receipts are lost since.

    Returns
    -------
    Outcome, str
        How the run ended, and the name of the set.
    """
    from actlas.analysis.features.encode import create_features, finish
    from actlas.analysis.features.fit import check_sae
    from actlas.analysis.sae.differences import check_accepted
    from actlas.analysis.sae.saelens_format import load_sae
    from actlas.analysis.sae.trained_on import FIELDS
    from actlas.pipeline.model.device import resolve_device
    from actlas.store.ledger.feature_sets import names

    if run.executor != "ray":
        resolve_device(run.device)  # before anything is written
    check_accepted(accept)
    folder, begun = _folder_of(store, sae, name)
    name = begun or folder.name
    loaded = load_sae(folder)
    encoded = store.features(name).hookpoint if name in names(store) else None
    if encoded is not None and hookpoint in (None, encoded):
        hookpoint, accept = encoded, FIELDS  # what differs was accepted when the set was begun
    hookpoint, said = check_sae(store, loaded, hookpoint, accept)
    features = create_features(store, loaded, name, str(folder), hookpoint, accept)
    for line in said:
        on_stderr(printable(f"{folder}: {line}"))
    work = Work(
        job=ENCODE.job(features.name),
        units=DerivedUnits(store, ENCODE, features.name, store.shard_range, store.whole),
        doing="encoding",
        what=f"{features.name}, {counted(features.n_features, 'feature')} of {features.hookpoint}",
        per_row=counted(features.n_features, "feature"),
        after=shell("sae", "index", store.path, "--sae", features.name),
    )
    make_worker = functools.partial(open_encoder, sae=str(folder), name=features.name)
    outcome = run_work(store, work, run, make_worker)
    if outcome.exit_code != EXIT_DONE:
        return outcome, features.name
    left = store.plan.n_shards - len(ENCODE.receipts(store, features.name).done())
    if left:
        are = f"{counted(left, 'shard')} {'is' if left == 1 else 'are'}"
        then = f"{shell('extract', store.path)}, then the same command again"
        waiting = f"{are} not extracted"
        waits = replace(outcome, exit_code=EXIT_RESUME, state="incomplete", left=waiting, next=then)
        return waits, features.name
    with lease.hold(store.objects, log=on_stderr):
        finish(store, features, socket.gethostname())
    return outcome, features.name


def _folder_of(store: Store, sae: str, name: str | None) -> tuple[Path, str | None]:
    """Return the folder of a sparse autoencoder, and the name of the set if it was begun."""
    from actlas.store.ledger.feature_sets import names

    folder = Path(sae).expanduser()
    if not folder.is_dir() and sae in names(store):
        if name not in (None, sae):
            raise ConfigError(
                f"--sae {sae} is a set of features that was begun; --name {name} is another. Give "
                "the autoencoder's folder to begin a new set, or leave --name out.",
                field="name",
            )
        name, folder = sae, Path(store.features(sae).spec.sae_path)
    return folder.absolute(), name


def open_encoder(store: str, run: RunOptions, *, sae: str, name: str) -> Encoder:
    """Open a store and load a sparse autoencoder, in the worker's own process.

    Parameters
    ----------
    store : str
        The path or URL of the store.
    run : RunOptions
        Device, threads.
    sae : str
        The folder of the sparse autoencoder.
    name : str
        The name of the set of features.
    """
    import torch

    from actlas.analysis.features.encode import Encoder
    from actlas.analysis.sae.saelens_format import load_sae
    from actlas.pipeline.model.device import resolve_device
    from actlas.pipeline.model.host import n_cpus

    if run.executor == "ray":
        logs.start(store, "worker")
    torch.set_num_threads(run.threads or max(1, n_cpus() // run.n_workers))
    opened = open_store(store)
    return Encoder(opened, opened.features(name), load_sae(sae), resolve_device(run.device))


def redo(
    store: Store,
    name: str,
    dropped: Collection[str],
    run: RunOptions,
    log: Callable[[str], None],
) -> str | None:
    """Encode the missing shards of a set by the autoencoder of its description, for a repair.

    Parameters
    ----------
    store : Store
        The store.
    name : str
        The name of the set of features.
    dropped : collection of str
        The kinds of this set's jobs of which a repair dropped units.
    run : RunOptions
        Executor, workers, device.
    log : callable
        Called with a line for each step.

    Returns
    -------
    str or None
        Why a dropped unit could not be recomputed; None if all were, even if shards that are not
        extracted yet are left to encode.

    Raises
    ------
    InterruptedRunError
        A signal stopped the run.
    """
    log(f"encoding the missing shards of {name}")
    outcome = outcome_or_error(lambda: encode(store, name, None, None, run)[0])
    if isinstance(outcome, str):
        again = shell("sae", "encode", store.path, "--sae", "DIR", "--name", name)
        return f"{outcome} If the autoencoder is in another folder DIR: {again}"
    waits = outcome.exit_code == EXIT_RESUME and not {*dropped} - {ENCODE.name}
    return None if outcome.exit_code == EXIT_DONE or waits else outcome.line
