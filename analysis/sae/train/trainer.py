"""Train a sparse autoencoder on a store's shuffled batches; stop and go on exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actlas.analysis.sae.metrics import Metrics
from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.saelens_format import load_sae
from actlas.analysis.sae.train import checkpoint as run_state
from actlas.analysis.sae.train import data as train_data
from actlas.analysis.sae.train.loop import DENSITY_FILE, METRICS_FILE, Run, Tell
from actlas.analysis.sae.train.options import TrainOptions
from actlas.analysis.sae.train.step import Recipe, Trainer, initialize
from actlas.pipeline.model.device import torch_threads
from actlas.store.errors import ConfigError, CorruptDataError, StoreExistsError
from actlas.store.read.reader import StoreReader


@dataclass(frozen=True, slots=True)
class TrainedSae:
    """A finished training.

    Attributes
    ----------
    sae : SparseAutoencoder
        It takes raw rows.
    metrics : Metrics
    held_out : bool
        Whether the metrics are of rows that it was not trained on.
    folder : Path
    n_steps, n_tokens : int
        Steps, and rows seen: a row counts once for each time.
    seconds : float
        Of training alone, over all of its parts.
    was_done : bool
        Whether it was finished before, and nothing was done now.
    """

    sae: SparseAutoencoder
    metrics: Metrics
    held_out: bool
    folder: Path
    n_steps: int
    n_tokens: int
    seconds: float
    was_done: bool = False


def train_sae(
    store: StoreReader,
    hookpoint: str,
    out: str | os.PathLike[str],
    *,
    width: int = 2048,
    kind: str = "topk",
    k: int = 32,
    l1: float = 5.0,
    fraction: float = 0.9,
    steps: int | None = None,
    batch_size: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    checkpoint_every: int = 1000,
    tell: Tell | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainedSae:
    """Train a sparse autoencoder on one hookpoint's rows, or go on with an unfinished training.

    The folder gets ``cfg.json`` and ``sae_weights.safetensors`` (SAELens loads them),
    ``actlas.json``, ``metrics.json``, ``curve.csv`` and ``curves.png``. The result depends on the
    store and the options alone; on a CPU with one thread it is the same to the bit, however often
    the training was stopped or killed and begun again.

    Parameters
    ----------
    store : StoreReader
    hookpoint : str
        Such as ``resid_post.3``.
    out : path
        A new or empty folder, or one with a training of the same options: an unfinished one goes
        on, of a finished one what is there is returned.
    width : int
        Features.
    kind : {"topk", "relu"}
    k : int
        Of topk: features kept on each token.
    l1 : float
        Of relu: weight of the sparsity loss.
    fraction : float
        The share of rows to train on. Metrics are of others, which are never seen: a tenth of all
        rows or what is left, at most 1,000,000. With 1 they are of training rows.
    steps : int, optional
        By default one epoch, or as many whole ones as make 1,000 steps.
    batch_size : int
        Rows of a step.
    lr : float, optional
        The largest; by default 4e-3 (topk) or 1e-3 (relu), times ``sqrt(2048 / width)`` where the
        width is larger.
    seed : int
        Of the first weights, of the rows chosen and of their order.
    device : str
        Of torch.
    threads : int, optional
        Of torch, on a CPU, while it trains.
    checkpoint_every : int
        Steps from one checkpoint to the next.
    tell : callable, optional
        Called about 200 times with a :class:`~actlas.analysis.sae.train.curves.Point`, the number
        of steps, and rows a second.
    stop : callable, optional
        Asked after each step: where it says yes, a checkpoint is saved.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    ConfigError
        An option makes no sense, or differs from those of the training in ``out``.
    StoreExistsError
        There is something else in ``out``.
    InterruptedRunError
        ``stop`` said yes; the same call goes on.
    NonFiniteError
        Rows hold NaN or infinity, or the loss became NaN.

    Examples
    --------
    >>> store = actlas.open("run.zarr")                                      # doctest: +SKIP
    >>> trained = actlas.train_sae(store, "resid_post.3", "sae", k=16)       # doctest: +SKIP
    >>> trained.metrics.explained_variance                                   # doctest: +SKIP
    """
    asked = TrainOptions.parse(
        hookpoint=hookpoint,
        width=width,
        kind=kind,
        k=k,
        l1=l1,
        fraction=fraction,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        device=device,
        threads=threads,
        checkpoint_every=checkpoint_every,
    )
    with torch_threads(asked.threads):
        return _train(store, asked, Path(out).expanduser().absolute(), tell, stop)


def _train(
    store: StoreReader,
    asked: TrainOptions,
    folder: Path,
    tell: Tell | None,
    stop: Callable[[], bool] | None,
) -> TrainedSae:
    array = store.activations[asked.hookpoint]
    saved, metrics_before = run_state.read_state(folder), folder / METRICS_FILE
    if saved is None and not metrics_before.exists():
        _require_free(folder)
    stream = train_data.train_stream(store, asked)
    n_steps = asked.n_steps(stream.batches_per_epoch)
    key = asked.model_dump() | {"lr": asked.peak_lr, "steps": n_steps, "plan": store.plan_sha256}
    if saved is not None:
        run_state.require_same(folder, key, saved.state["options"])
    elif metrics_before.exists():
        return _finished(folder, key)
    on = train_data.evaluated(store, asked, stream)
    data = train_data.prepare(store, asked, stream)
    sae = SparseAutoencoder(
        array.shape[1],
        asked.width,
        kind=asked.kind,
        k=asked.k if asked.kind == "topk" else None,
        hookpoint=asked.hookpoint,
        model_id=store.plan.model.id,
    )
    initialize(sae, data.mean, asked.seed)
    n_rows = n_steps * asked.batch_size
    recipe = Recipe(asked.kind, asked.k, asked.l1, asked.peak_lr, n_steps, n_rows)
    trainer = Trainer(sae.to(_device(asked.device)), recipe, data.variance)
    run = Run(folder, asked, key, trainer, data, tell)
    if saved is not None:
        run.resume(saved)
    run.go(stop or (lambda: False))
    metrics = run.finish(store, on)
    return TrainedSae(sae, metrics, on.held_out, folder, n_steps, run.tokens, run.seconds)


def _require_free(folder: Path) -> None:
    left = f".{run_state.STATE_FILE}.part"  # of a run that was killed while it wrote its first
    if folder.exists() and (
        not folder.is_dir() or any(path.name != left for path in folder.iterdir())
    ):
        raise StoreExistsError(
            f"{folder}: there is something here already that is no training, and it is left as it "
            "is. Give another --out.",
            path=str(folder),
        )


def _finished(folder: Path, key: dict[str, Any]) -> TrainedSae:
    """Return the finished training of a folder, if it is the one that is asked for."""
    path = folder / METRICS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        options = dict(values["options"])
        metrics = Metrics.from_dict(values, np.load(folder / DENSITY_FILE, allow_pickle=False))
        facts = {name: values[name] for name in ("n_steps", "seconds")}
        held_out, n_tokens = values["evaluated_on"] == "held-out rows", values["n_tokens_seen"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise CorruptDataError(
            f"{path}: expected what a finished training leaves, with {DENSITY_FILE} ({error}). "
            "Give another --out.",
            path=str(path),
        ) from error
    run_state.require_same(folder, key, options, what="a finished")
    return TrainedSae(
        load_sae(folder), metrics, held_out, folder, n_tokens=n_tokens, was_done=True, **facts
    )


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device: got {name!r}: {first}", field="device") from error
