"""Encoding of stored activations by a sparse autoencoder, from Python."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs import logs
from actlas.jobs.config import resolve
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted
from actlas.jobs.run.run import Outcome, Work, run_work
from actlas.pipeline.options import RunOptions
from actlas.store.errors import (
    EXIT_DONE,
    EXIT_RESUME,
    ActlasError,
    ConfigError,
    InterruptedRunError,
)
from actlas.store.ledger import lease
from actlas.store.store import Store, open_store

if TYPE_CHECKING:
    from actlas.analysis.features.encode import Encoder
    from actlas.store.features.features import Features


def encode_sae(
    store: Store | str | os.PathLike[str],
    sae: str | os.PathLike[str],
    *,
    name: str | None = None,
    hookpoint: str | None = None,
    **run: Any,
) -> Features:
    """Encode every token of a store, as ``actlas sae encode`` does, and return the features.

    Parameters
    ----------
    store : Store or path
    sae : path or str
        The folder of a sparse autoencoder, or the name of a set that was begun.
    name, hookpoint : str, optional
        See :func:`encode`.
    **run
        Fields of :class:`~actlas.pipeline.options.RunOptions`: ``executor``, ``workers``,
        ``device``.

    Raises
    ------
    SaeError
        It cannot be loaded, or does not fit this store.
    ActlasError
        Shards are left in quarantine, or the run was stopped.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    asked = resolve({"plan": {}, "run": run}).run
    outcome, made = encode(opened, os.fspath(sae), name, hookpoint, asked)
    if outcome.quarantined:
        raise ActlasError(outcome.line, shards=list(outcome.quarantined))
    if outcome.exit_code != EXIT_DONE:
        raise InterruptedRunError(outcome.line)
    return opened.features(made)


def encode(
    store: Store, sae: str, name: str | None, hookpoint: str | None, run: RunOptions
) -> tuple[Outcome, str]:
    """Encode what is missing of a set of features, and finish it where nothing is.

    Parameters
    ----------
    store : Store
    sae : str
        The folder of a sparse autoencoder, or the name of a set that was begun.
    name : str, optional
        Of the set; by default the folder's.
    hookpoint : str, optional
        By default the one that the sparse autoencoder was trained on.
    run : RunOptions
        Executor, workers, device.

    Raises
    ------
    SaeError
        It cannot be loaded, or does not fit this store.
    ConfigError
        A set that was begun is asked for under another name.

    Returns
    -------
    Outcome, str
        How it ended, and the name of the set.
    """
    from actlas.analysis.features.encode import create_features, finish
    from actlas.analysis.sae.saelens_format import load_sae
    from actlas.store.ledger.feature_sets import names

    folder = Path(sae).expanduser()
    if not folder.is_dir() and sae in names(store):
        if name not in (None, sae):
            raise ConfigError(
                f"--sae {sae} is a set of features that was begun; --name {name} is another. Give "
                "the autoencoder's folder to begin one, or no --name.",
                field="name",
            )
        name, folder = sae, Path(store.features(sae).spec.sae_path)
    folder = folder.absolute()
    loaded = load_sae(folder)
    features = create_features(store, loaded, name or folder.name, str(folder), hookpoint)
    work = Work(
        job=f"encode.{features.name}",
        doing="encoding",
        what=f"{features.name}, {features.n_features:,} features of {features.hookpoint}",
        per_row=f"{features.n_features:,} features",
        after=shell("sae", "index", store.path, "--sae", features.name),
    )
    make_worker = functools.partial(open_encoder, sae=str(folder), name=features.name)
    outcome = run_work(store, work, run, make_worker)
    if outcome.exit_code != EXIT_DONE:
        return outcome, features.name
    left = len(store.missing(work.job))
    if left:
        are = f"{counted(left, 'shard')} {'is' if left == 1 else 'are'}"
        made = outcome.line.partition(" -> next: ")[0].removeprefix("done: ")
        line = (
            f"not whole yet: {made}; {are} not extracted -> next: "
            f"{shell('extract', store.path)}, then the same command again"
        )
        return Outcome(EXIT_RESUME, line, outcome.quarantined), features.name
    with lease.hold(store.objects, log=lambda text: click.echo(text, err=True)):
        finish(store, features, socket.gethostname())
    return outcome, features.name


def open_encoder(store: str, run: RunOptions, *, sae: str, name: str) -> Encoder:
    """Open a store and load a sparse autoencoder, in the worker's own process."""
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
