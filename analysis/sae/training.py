"""Train a sparse autoencoder on a store's shuffled batches; stop and go on exactly."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from actlas.analysis.batches import Batches, batches
from actlas.analysis.sae import curves, run_state
from actlas.analysis.sae.autoencoder import SparseAutoencoder
from actlas.analysis.sae.checkpoint import WEIGHTS_FILE, save_sae
from actlas.analysis.sae.curves import Point
from actlas.analysis.sae.metrics import Metrics, evaluate
from actlas.analysis.sae.options import TrainOptions
from actlas.analysis.sae.steps import Recipe, Trainer, fold, initialize
from actlas.store.errors import (
    ConfigError,
    InterruptedRunError,
    NonFiniteError,
    StoreExistsError,
)
from actlas.store.moments import Moments
from actlas.store.store import Store

EVALUATED_ROWS = 1_000_000
"""The most rows that metrics are taken over."""
MEASURED_ROWS = 1_000_000
"""The most rows that mean and variance are taken over where special tokens must be left out."""
N_POINTS = 200

Tell = Callable[[Point, int, float], None]
"""Called with a point of the course, the steps of the whole run, rows a second."""


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
    """

    sae: SparseAutoencoder
    metrics: Metrics
    held_out: bool
    folder: Path
    n_steps: int
    n_tokens: int
    seconds: float


def train_sae(
    store: Store,
    hookpoint: str,
    out: str | os.PathLike[str],
    *,
    tell: Tell | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Any,
) -> TrainedSae:
    """Train a sparse autoencoder on one hookpoint's rows, or go on with an unfinished training.

    The folder gets ``cfg.json`` and ``sae_weights.safetensors`` (SAELens loads them),
    ``actlas.json``, ``metrics.json``, ``curve.csv`` and ``curves.png``. The result depends on the
    store and the options alone; on a CPU with one thread it is the same to the bit, however often
    the training was stopped or killed and begun again.

    Parameters
    ----------
    store : Store
    hookpoint : str
        Such as ``resid_post.3``.
    out : path
        A new or empty folder, or one with an unfinished training of the same options.
    tell : callable, optional
        Called now and then with a :class:`Point`, the number of steps, and rows a second.
    stop : callable, optional
        Asked after each step: where it says yes, a checkpoint is saved.
    width : int
        Features; 2048.
    kind : {"topk", "relu"}
    k : int
        Of topk: features a token; 32.
    l1 : float
        Of relu: weight of the sparsity loss; 5.
    fraction : float
        The share of rows to train on, 0.9: metrics are of the others, which are never seen (at
        most 1,000,000). With 1 they are of the training rows.
    steps : int, optional
        By default one epoch, or as many as make 2,000,000 rows.
    batch_size : int
        1024.
    lr : float, optional
        By default 2e-3 (topk) or 1e-3 (relu).
    seed : int
        Of the first weights, of the rows chosen and of their order.
    device : str
    checkpoint_every : int
        Steps; 1000.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    ConfigError
        An option makes no sense, or differs from those of the unfinished training.
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
    asked = TrainOptions.parse(hookpoint=hookpoint, **options)
    array = store.activations[hookpoint]
    folder = Path(out).expanduser().absolute()
    saved = _claim(folder)
    stream = _stream(store, asked, asked.fraction, 0.0)
    n_steps = asked.n_steps(stream.n_rows, stream.batches_per_epoch)
    key = asked.model_dump() | {"lr": asked.peak_lr, "steps": n_steps, "plan": store.plan_sha256}
    if saved is not None:
        run_state.require_same(folder, key, saved.state["options"])
    data = _data(store, asked, stream)
    sae = SparseAutoencoder(
        array.shape[1],
        asked.width,
        kind=asked.kind,
        k=asked.k if asked.kind == "topk" else None,
        hookpoint=hookpoint,
        model_id=store.plan.model.id,
    )
    initialize(sae, data.mean, asked.seed)
    recipe = Recipe(
        asked.kind, asked.k, asked.l1, asked.peak_lr, n_steps, n_steps * asked.batch_size
    )
    trainer = Trainer(sae.to(_device(asked.device)), recipe, data.variance)
    run = _Run(folder, asked, key, trainer, stream, data.scale, tell)
    if saved is not None:
        run.resume(saved)
    run.go(stop or (lambda: False))
    return run.finish(store)


class _Data(NamedTuple):
    """The rows' scale, and the mean [d_in] and summed variance of rows times it."""

    scale: float
    mean: torch.Tensor
    variance: float


def _claim(folder: Path) -> run_state.Saved | None:
    """Return the unfinished training of a folder; refuse one that holds anything else."""
    if (saved := run_state.read_state(folder)) is not None:
        return saved
    left = f".{run_state.STATE_FILE}.part"  # of a run that was killed while it wrote its first
    if folder.exists() and (
        not folder.is_dir() or any(path.name != left for path in folder.iterdir())
    ):
        raise StoreExistsError(
            f"{folder}: there is something here already, and it is left as it is: no unfinished "
            "training. Give another --out.",
            path=str(folder),
        )
    return None


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device: got {name!r}: {first}", field="device") from error


def _stream(
    store: Store, asked: TrainOptions, fraction: float, skip: float, epochs: int | None = None
) -> Batches:
    return batches(
        store,
        asked.hookpoint,
        batch_size=asked.batch_size,
        seed=asked.seed,
        fraction=fraction,
        skip=skip,
        epochs=epochs,
    )


def _data(store: Store, asked: TrainOptions, stream: Batches) -> _Data:
    """Return scale, mean and variance: exact, of the statistics that the extraction left.

    Those count special tokens too, which are left out of batches and can be of huge norm: in a
    store that keeps them the first rows of the stream are measured instead.
    """
    if store.rows.special is None:
        moments = store.statistics(asked.hookpoint)
    else:
        parts, n_rows = [], 0
        with closing(iter(_stream(store, asked, asked.fraction, 0.0, epochs=1))) as first:
            for batch in first:
                parts.append(Moments.of(batch.activations.numpy()))
                n_rows += len(batch.rows)
                if n_rows >= min(MEASURED_ROWS, stream.n_rows):
                    break
        moments = Moments.combine(parts)
    if (moments.n < moments.n.max()).any():
        raise NonFiniteError(f"{store.path}: {asked.hookpoint} holds NaN or infinity.")
    variance = float((moments.m2 / moments.n).sum())
    if not variance > 0:
        raise ConfigError(
            f"{store.path}: all rows of {asked.hookpoint} are the same: nothing to learn.",
            field="hookpoint",
        )
    d_in = len(moments.mean)
    scale = (d_in / (variance + float((moments.mean**2).sum()))) ** 0.5
    return _Data(scale, torch.from_numpy(moments.mean * scale).float(), variance * scale**2)


class _Run:
    """A training under way."""

    def __init__(
        self,
        folder: Path,
        asked: TrainOptions,
        key: dict[str, Any],
        trainer: Trainer,
        stream: Batches,
        scale: float,
        tell: Tell | None,
    ) -> None:
        self.folder, self.asked, self.key = folder, asked, key
        self.trainer, self.stream, self.scale, self.tell = trainer, stream, scale, tell
        self.points: list[Point] = []
        self.tokens, self.seconds = 0, 0.0

    def resume(self, saved: run_state.Saved) -> None:
        """Go on where a checkpoint was saved."""
        state = saved.state
        self.stream.load_state_dict(state["batches"])
        self.trainer.load_state(state["step"], saved.tensors)
        self.points = [Point(*point) for point in state["points"]]
        self.tokens, self.seconds = state["tokens"], state["seconds"]

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "options": self.key,
            "step": self.trainer.step_number,
            "tokens": self.tokens,
            "batches": self.stream.state_dict(),
            "points": [list(point) for point in self.points],
            "seconds": self.seconds,
        }
        run_state.save_state(self.folder, self.trainer.state(), state)

    def go(self, stop: Callable[[], bool]) -> None:
        """Take the steps that are left."""
        n_steps = self.trainer.recipe.n_steps
        device = self.trainer.silent_rows.device
        with closing(iter(self.stream)) as stream:
            while self.trainer.step_number < n_steps:
                began = time.monotonic()
                x = next(stream).activations.to(device) * self.scale
                self._step(x)
                self.seconds += time.monotonic() - began
                done = self.trainer.step_number
                if stop() and done < n_steps:
                    self.save()
                    raise InterruptedRunError(
                        f"stopped after step {done:,} of {n_steps:,}, which {self.folder} keeps. "
                        "Run the same command again to go on."
                    )
                if done % self.asked.checkpoint_every == 0 or done == n_steps:
                    self.save()

    def _step(self, x: torch.Tensor) -> None:
        n_steps = self.trainer.recipe.n_steps
        number = self.trainer.step_number
        every = max(1, n_steps // N_POINTS)
        seen = self.trainer.step(x, measure=number % every == 0 or number == n_steps - 1)
        self.tokens += len(x)
        if seen is None:
            return
        if seen.loss != seen.loss:
            raise NonFiniteError(
                f"the loss is NaN at step {number:,}: give a smaller --lr than {self.key['lr']:g}."
            )
        lr = self.trainer.recipe.lr_at(number)
        self.points.append(Point(number + 1, self.tokens, *seen, lr))
        if self.tell is not None:
            self.tell(self.points[-1], n_steps, self.tokens / max(self.seconds, 1e-9))

    def finish(self, store: Store) -> TrainedSae:
        """Fold the scale in, evaluate, and write all results; the checkpoint goes last."""
        sae = self.trainer.sae
        fold(sae, self.scale)
        sae.eval()
        held_out, rows = self._evaluated(store)
        metrics = evaluate(sae, rows)
        name = f"{sae.kind} {sae.d_in} → {sae.d_sae}, {sae.hookpoint} of {store.plan.model.id}"
        about = {
            "explained_variance_is": "1 - sum |x - x'|^2 / sum |x - mean|^2 over the whole set",
            "evaluated_on": "held-out rows" if held_out else "training rows",
        }
        made = {
            "options": self.key,
            "n_steps": self.trainer.step_number,
            "n_tokens_seen": self.tokens,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
        }
        curves.write_csv(self.folder / "curve.csv", self.points)
        curves.draw(self.folder / "curves.png", self.points, name, metrics.explained_variance)
        _write_json(self.folder / "metrics.json", {**metrics.as_dict(), **about, **made})
        save_sae(sae, self.folder, self._metadata(store))
        _add_weights_hash(self.folder)
        (self.folder / run_state.STATE_FILE).unlink()
        return TrainedSae(
            sae,
            metrics,
            held_out,
            self.folder,
            self.trainer.step_number,
            self.tokens,
            self.seconds,
        )

    def _evaluated(self, store: Store) -> tuple[bool, Iterator[torch.Tensor]]:
        """Return whether rows were kept apart, and the rows to evaluate on, each once."""
        asked = self.asked
        n_rows = self.stream.n_rows / asked.fraction
        n_left = round(n_rows * (1 - asked.fraction))
        held_out = n_left >= 1
        wanted = min(EVALUATED_ROWS, n_left if held_out else self.stream.n_rows)
        size = min(asked.batch_size, max(1, wanted // 2))
        share = min(wanted / n_rows, 1 - asked.fraction if held_out else asked.fraction)
        skip = asked.fraction if held_out else 0.0
        chosen = batches(
            store,
            asked.hookpoint,
            batch_size=size,
            seed=asked.seed,
            fraction=share,
            skip=skip,
        )
        return held_out, chosen.tensors()

    def _metadata(self, store: Store) -> dict[str, Any]:
        model = store.plan.model
        return {
            "model": model.model_dump(),
            "store_plan_sha256": store.plan_sha256,
            "corpus_fingerprint": store.plan.corpus.fingerprint,
            "options": self.key,
            "torch_version": str(torch.__version__),
        }


def _add_weights_hash(folder: Path) -> None:
    digest = hashlib.sha256()
    with (folder / WEIGHTS_FILE).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    own = json.loads((folder / "actlas.json").read_text())
    _write_json(folder / "actlas.json", {**own, "sae_weights_sha256": digest.hexdigest()})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
