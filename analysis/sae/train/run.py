"""The run of a training: its steps, its checkpoints, and its results."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actlas.analysis.figures import PNG, Figures, title_name
from actlas.analysis.sae.metrics import Metrics, evaluate
from actlas.analysis.sae.record import sync
from actlas.analysis.sae.saelens_format import save_sae
from actlas.analysis.sae.train import checkpoint, curves
from actlas.analysis.sae.train.curves import Point
from actlas.analysis.sae.train.data import EvaluationRows, TrainingRows
from actlas.analysis.sae.train.options import TrainOptions
from actlas.analysis.sae.train.trainer import Progress, Trainer, fold
from actlas.store.errors import ConfigError, InterruptedRunError, NonFiniteError
from actlas.store.objects.faults import writing
from actlas.store.read.reader import StoreReader

N_POINTS, N_HELD_OUT = 200, 20
"""Points of the learning curves, and about how many of them measure held-out rows."""

METRICS_FILE, DENSITY_FILE = "metrics.json", "density.npy"

CURVE_FILE, PICTURE = "curve.csv", "curves"

Tell = Callable[[Point, int, float], None]
"""Called with a point of the learning curves, the steps of the whole run, and rows per second."""


class TrainingRun:
    """The run of a training, from its first step or a checkpoint to its results.

    Parameters
    ----------
    folder : Path
        The folder of checkpoints and results.
    options : TrainOptions
        The options as given.
    key : dict
        The options with all defaults filled in, by their saved names, and the store's plan.
    trainer : Trainer
        The trainer, initialized.
    data : TrainingRows
        The rows to train on.
    tell : callable, optional
        Called about N_POINTS times; see ``Tell``.
    held_out : sequence of Tensor, shape [rows, d_in]
        Raw rows that are not trained on, measured about N_HELD_OUT times.
    figures : Figures
        Formats and resolution of the picture.
    """

    def __init__(
        self,
        folder: Path,
        options: TrainOptions,
        key: dict[str, Any],
        trainer: Trainer,
        data: TrainingRows,
        tell: Tell | None,
        held_out: Sequence[torch.Tensor] = (),
        figures: Figures = PNG,
    ) -> None:
        self.held_out, self.figures = held_out, figures
        self.folder, self.options, self.key = folder, options, key
        self.trainer, self.data, self.tell = trainer, data, tell
        self.points: list[Point] = []
        self.tokens, self.seconds = 0, 0.0
        self._begun_with = 0, 0.0

    def resume(self, saved: checkpoint.Saved) -> None:
        """Restore the state of a checkpoint.

        Raises
        ------
        ConfigError
            An earlier version saved it, which gave the rows in another order.
        """
        state = saved.state
        if state["batches"].get("version") == 1:
            raise ConfigError(
                f"{self.folder}: an earlier actlas trained the first {state['step']:,} steps, and "
                "gave the rows in another order than this one, so that they cannot be continued "
                "exactly. Finish with that actlas, or remove the folder and train again.",
                field="batches",
            )
        self.data.stream.load_state_dict(state["batches"])
        self.trainer.load_state(state["step"], saved.tensors)
        measured = dict(state.get("held_out", ()))  # earlier versions saved none
        self.points = [
            Point(*point)._replace(held_out_explained_variance=measured.get(point[0]))
            for point in state["points"]
        ]
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        self._begun_with = self.tokens, self.seconds

    def save(self) -> None:
        """Save a checkpoint."""
        state = {
            "options": self.key,
            "step": self.trainer.step_number,
            "tokens": self.tokens,
            "batches": self.data.stream.state_dict(),
            "points": [list(point[:-1]) for point in self.points],
            "held_out": [[p.step, p[-1]] for p in self.points if p[-1] is not None],
            "seconds": self.seconds,
        }
        checkpoint.save_state(self.folder, self.trainer.state(), state)

    def train(self, stop: Callable[[], bool]) -> None:
        """Take the remaining steps.

        Parameters
        ----------
        stop : callable
            Called after each step; True saves a checkpoint and ends the run.

        Raises
        ------
        InterruptedRunError
            ``stop`` returned True before the last step.
        NonFiniteError
            The loss became NaN or infinite.
        """
        n_steps = self.trainer.recipe.n_steps
        device = self.trainer.silent_rows.device
        with closing(iter(self.data.stream)) as stream:
            while self.trainer.step_number < n_steps:
                began = time.monotonic()
                seen = self._step(next(stream).activations.to(device) * self.data.scale)
                self.seconds += time.monotonic() - began
                if seen is not None:
                    self._note(seen)
                done = self.trainer.step_number
                if stop() and done < n_steps:
                    self.save()
                    raise InterruptedRunError(
                        f"stopped after step {done:,} of {n_steps:,}, saved in {self.folder}. "
                        "Run the same command again to continue."
                    )
                if done % self.options.checkpoint_every == 0 or done == n_steps:
                    self.save()

    def _step(self, x: torch.Tensor) -> Progress | None:
        """Take a step; return its measurements if it is a point of the curves."""
        number = self.trainer.step_number
        saved_next = (number + 1) % self.options.checkpoint_every == 0
        shown = self._is_point(number, N_POINTS)
        seen = self.trainer.step(x, measure=shown or saved_next)
        self.tokens += len(x)
        if seen is None:
            return None
        if not math.isfinite(seen.loss):
            raise NonFiniteError(
                f"the loss is {seen.loss} at step {number + 1:,}: give an --lr smaller than "
                f"{self.key['lr']:g}, and another --out."
            )
        return seen if shown else None

    def _is_point(self, number: int, n_points: int) -> bool:
        """Return whether a step is one of so many evenly spaced ones, or the last."""
        n_steps = self.trainer.recipe.n_steps
        every = math.ceil(n_steps / N_POINTS) * (N_POINTS // n_points)
        return number % every == 0 or number == n_steps - 1

    def _note(self, seen: Progress) -> None:
        """Add the point of the last step to the curves, and tell of it."""
        number, recipe = self.trainer.step_number - 1, self.trainer.recipe
        held_out = None
        if self.held_out and self._is_point(number, N_HELD_OUT):
            rows = (batch * self.data.scale for batch in self.held_out)
            held_out = evaluate(self.trainer.sae, rows).explained_variance
        self.points.append(Point(number + 1, self.tokens, *seen, recipe.lr_at(number), held_out))
        if self.tell is not None:
            tokens, seconds = self._begun_with
            timed = self.seconds - seconds
            rate = (self.tokens - tokens) / timed if timed > 0 else math.nan
            self.tell(self.points[-1], recipe.n_steps, rate)

    def finish(self, store: StoreReader, on: EvaluationRows) -> Metrics:
        """Fold the scale into the weights, evaluate, write all results, remove the checkpoint.

        The checkpoint is removed last, when all results are on the disk: a run that is killed
        before does all this again.

        Parameters
        ----------
        store : StoreReader
            The store of the rows, for the record.
        on : EvaluationRows
            The rows to evaluate on.
        """
        sae = self.trainer.sae
        fold(sae, self.data.scale)
        sae.eval()
        metrics = evaluate(sae, on.rows.tensors())
        title = (
            f"{sae.architecture} {sae.d_in} → {sae.d_sae}, {sae.hookpoint} of "
            f"{title_name(store.plan.model.id)}"
        )
        final = metrics.explained_variance, "held-out" if on.held_out else "training"
        with writing(self.folder):
            curves.write_csv(self.folder / CURVE_FILE, self.points)
            if self.figures.formats:
                picture = curves.draw(self.points, title, final, sae.k)
                self.figures.save(picture, self.folder, PICTURE)
            np.save(self.folder / DENSITY_FILE, metrics.density, allow_pickle=False)
            _write_json(self.folder / METRICS_FILE, {**metrics.as_dict(), **self._about(on)})
            pictures = self.figures.names(PICTURE)
            results = METRICS_FILE, DENSITY_FILE, CURVE_FILE, *pictures
            save_sae(sae, self.folder, self._metadata(store), results)
            sync(self.folder)
            (self.folder / checkpoint.STATE_FILE).unlink()
        return metrics

    def _about(self, on: EvaluationRows) -> dict[str, Any]:
        return {
            "explained_variance_is": "1 - sum |x - x'|^2 / sum |x - mean|^2 over the whole set",
            "evaluated_on": "held-out rows" if on.held_out else "training rows",
            "held_out_curve": curves.held_out_curve(self.points),
            "options": self.key,
            "n_steps": self.trainer.step_number,
            "n_tokens_seen": self.tokens,
            "seconds": self.seconds,
            "rows_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
        }

    def _metadata(self, store: StoreReader) -> dict[str, Any]:
        return {
            "model": store.plan.model.model_dump(),
            "store_plan_sha256": store.plan_sha256,
            "corpus_fingerprint": store.plan.corpus.fingerprint,
            "options": self.key,
            "torch_version": str(torch.__version__),
        }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
