"""``actlas.train_sae``: train a sparse autoencoder on shuffled batches, with exact resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actlas.analysis.figures import DPI, Figures
from actlas.analysis.sae.metrics import Metrics
from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.record import OWN_FILE, check_files, read_record
from actlas.analysis.sae.saelens_format import load_sae
from actlas.analysis.sae.train import checkpoint
from actlas.analysis.sae.train import data as train_data
from actlas.analysis.sae.train.options import TrainOptions
from actlas.analysis.sae.train.run import DENSITY_FILE, METRICS_FILE, Tell, TrainingRun
from actlas.analysis.sae.train.trainer import Recipe, Trainer, initialize
from actlas.analysis.sae.trained_on import of_plan
from actlas.pipeline.model.device import torch_threads
from actlas.store.display.html import table_html
from actlas.store.errors import ConfigError, CorruptDataError, StoreExistsError
from actlas.store.objects.faults import writing
from actlas.store.read.reader import StoreReader
from actlas.store.store import as_store


@dataclass(frozen=True, slots=True)
class TrainedSae:
    """The result of a finished training.

    Attributes
    ----------
    sae : SparseAutoencoder
        The sparse autoencoder, for raw rows.
    metrics : Metrics
        Its metrics over the evaluation rows.
    held_out : bool
        Whether the evaluation rows were kept from training.
    folder : Path
        The folder of the results.
    n_steps, n_tokens : int
        Steps taken and rows seen; a row counts once for each time.
    seconds : float
        Time of training without evaluation, over all interrupted parts.
    was_done : bool
        Whether the training was finished before the call.
    """

    sae: SparseAutoencoder
    metrics: Metrics
    held_out: bool
    folder: Path
    n_steps: int
    n_tokens: int
    seconds: float
    was_done: bool = False

    def __repr__(self) -> str:
        sae, metrics = self.sae, self.metrics
        return (
            f"<trained {sae.architecture} of {sae.d_sae:,} features on {sae.hookpoint}, "
            f"{self.n_steps:,} steps: explained variance {metrics.explained_variance:.3f}, "
            f"l0 {metrics.l0:.1f}, in {self.folder}>"
        )

    def _repr_html_(self) -> str:
        sae, metrics = self.sae, self.metrics
        return table_html(
            [
                ("sparse autoencoder", f"{sae.architecture}, {sae.d_sae:,} features"),
                ("hookpoint", sae.hookpoint),
                ("folder", self.folder),
                ("steps, rows seen", f"{self.n_steps:,}, {self.n_tokens:,}"),
                ("measured on", "held-out rows" if self.held_out else "training rows"),
                ("explained variance", f"{metrics.explained_variance:.4f}"),
                ("features per token", f"{metrics.l0:.1f}"),
                ("dead features", f"{metrics.dead_share:.1%}"),
            ]
        )


def train_sae(
    store: StoreReader | str | os.PathLike[str],
    hookpoint: str,
    out: str | os.PathLike[str],
    *,
    d_sae: int = 2048,
    architecture: str = "topk",
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
    figures: str | Sequence[str] = "png",
    dpi: int = DPI,
    width: int | None = None,
    kind: str | None = None,
) -> TrainedSae:
    """Train a sparse autoencoder on one hookpoint's rows, or resume an unfinished training.

    The folder gets ``cfg.json`` and ``sae_weights.safetensors`` (SAELens loads them),
    ``actlas.json``, ``metrics.json``, ``curve.csv`` and ``curves.png``. The result depends only on
    the store and the options; on a CPU with one thread it is the same to the bit, however often the
    training was stopped or killed and resumed.

    Parameters
    ----------
    store : Store, path or URL
        The store of the rows.
    hookpoint : str
        The name of a hookpoint, such as ``resid_post.3``.
    out : path
        A new or empty folder, or one with a training of the same options: an unfinished training is
        resumed, the result of a finished one is returned.
    d_sae : int
        Number of features.
    architecture : {"topk", "relu"}
        The architecture of the sparse autoencoder.
    k : int
        For topk: features kept on each token.
    l1 : float
        For relu: weight of the sparsity loss.
    fraction : float
        The share of rows to train on. Metrics are of held-out rows: a tenth of all rows or the rest
        of them, at most 1,000,000. With 1 they are of training rows.
    steps : int, optional
        Number of steps. Default: one epoch, or as many whole epochs as make 1,000 steps.
    batch_size : int
        Rows of a step.
    lr : float, optional
        The largest learning rate. Default: 4e-3 (topk) or 1e-3 (relu), times
        ``sqrt(2048 / d_sae)`` where ``d_sae`` is larger.
    seed : int
        Seed of the initial weights, of the chosen rows and of their order.
    device : str
        The torch device.
    threads : int, optional
        CPU threads of torch during the training. Default: torch's own number.
    checkpoint_every : int
        Steps from one checkpoint to the next.
    tell : callable, optional
        Called about 200 times with a :class:`~actlas.analysis.sae.train.curves.Point`, the number
        of steps, and rows per second.
    stop : callable, optional
        Called after each step; True saves a checkpoint and ends the call.
    figures : str or sequence of str
        Formats of the learning curves: ``png``, ``svg``, ``pdf``, several of them, or ``none``.
    dpi : int
        Pixels per inch of the picture.
    width, kind : optional
        Aliases of ``d_sae`` and ``architecture``.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    CorruptDataError, SaeError
        A file in ``out`` is damaged.
    ConfigError
        An option is out of range, or differs from those of the training in ``out``.
    StoreExistsError
        ``out`` holds something else.
    InterruptedRunError
        ``stop`` returned True; the same call resumes the training.
    NonFiniteError
        Rows hold NaN or infinity, or the loss became NaN.

    Examples
    --------
    >>> store = actlas.open("run.zarr")                                      # doctest: +SKIP
    >>> trained = actlas.train_sae(store, "resid_post.3", "sae", k=16)       # doctest: +SKIP
    >>> trained.metrics.explained_variance                                   # doctest: +SKIP
    """
    store = as_store(store)
    options = TrainOptions.parse(
        hookpoint=store.name_of(hookpoint),
        d_sae=d_sae if width is None else width,
        architecture=architecture if kind is None else kind,
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
    wanted = Figures.parse(figures, dpi)
    with torch_threads(options.threads):
        folder = Path(out).expanduser().absolute()
        return _train(store, options, folder, wanted, tell, stop)


def _train(
    store: StoreReader,
    options: TrainOptions,
    folder: Path,
    figures: Figures,
    tell: Tell | None,
    stop: Callable[[], bool] | None,
) -> TrainedSae:
    array = store.activations[options.hookpoint]
    saved, metrics_before = checkpoint.read_state(folder), folder / METRICS_FILE
    if saved is None and not metrics_before.exists():
        _require_free(folder)
    stream = train_data.train_stream(store, options)
    n_steps = options.n_steps(stream.batches_per_epoch)
    key = options.saved() | {"lr": options.peak_lr, "steps": n_steps, "plan": store.plan_sha256}
    if saved is not None:
        checkpoint.require_same(folder, key, saved.state["options"])
    elif metrics_before.exists():
        return _finished(folder, key)
    on = train_data.evaluation_rows(store, options, stream)
    data = train_data.training_rows(store, options, stream)
    sae = SparseAutoencoder(
        array.shape[1],
        options.d_sae,
        architecture=options.architecture,
        k=options.k if options.architecture == "topk" else None,
        hookpoint=options.hookpoint,
        model_id=store.plan.model.id,
        trained_on=of_plan(store.plan),
    )
    initialize(sae, data.mean, options.seed)
    n_rows = n_steps * options.batch_size
    recipe = Recipe(options.architecture, options.k, options.l1, options.peak_lr, n_steps, n_rows)
    trainer = Trainer(sae.to(_device(options.device)), recipe, data.variance)
    followed = train_data.followed_rows(store, options, on, array.shape[1])
    run = TrainingRun(folder, options, key, trainer, data, tell, followed, figures)
    if saved is not None:
        run.resume(saved)
    checkpoint.try_folder(folder)
    run.train(stop or (lambda: False))
    metrics = run.finish(store, on)
    return TrainedSae(sae, metrics, on.held_out, folder, n_steps, run.tokens, run.seconds)


def _require_free(folder: Path) -> None:
    with writing(folder):
        free = not folder.exists() or (
            folder.is_dir() and all(map(checkpoint.is_leftover, folder.iterdir()))
        )
    if not free:
        raise StoreExistsError(
            f"{folder}: expected a new or empty folder, or one with a training; this one has other "
            "files, which are left as they are. Give another --out.",
            path=str(folder),
        )


def _finished(folder: Path, key: dict[str, Any]) -> TrainedSae:
    """Return the result of the finished training in a folder, if its options are the same."""
    path = folder / METRICS_FILE
    record = read_record(folder)
    if record is None:
        raise CorruptDataError(
            f"{folder}: the results of a finished training, without their record {OWN_FILE}. "
            "Restore the folder from a copy, or give another --out.",
            path=str(folder / OWN_FILE),
        )
    for damage in check_files(folder, record):
        raise CorruptDataError(damage.message, path=str(damage.details["path"])) from damage
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        options = dict(values["options"])
        metrics = Metrics.from_dict(values, np.load(folder / DENSITY_FILE, allow_pickle=False))
        facts = {name: values[name] for name in ("n_steps", "seconds")}
        held_out, n_tokens = values["evaluated_on"] == "held-out rows", values["n_tokens_seen"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise CorruptDataError(
            f"{path}: expected the metrics of a finished training, with {DENSITY_FILE} beside "
            f"them ({error}). Give another --out.",
            path=str(path),
        ) from error
    checkpoint.require_same(folder, key, options, what="a finished")
    return TrainedSae(
        load_sae(folder), metrics, held_out, folder, n_tokens=n_tokens, was_done=True, **facts
    )


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device: got {name!r}: {first}", field="device") from error
