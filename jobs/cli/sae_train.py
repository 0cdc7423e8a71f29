"""``actlas sae train``: train a sparse autoencoder on one hookpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actlas.analysis.sae.train.options import TrainOptions
from actlas.jobs.cli.flags import debug_option, figure_options, json_option
from actlas.jobs.cli.options import model_options
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, counted, duration, is_are
from actlas.jobs.logs import NowAndThen
from actlas.jobs.output import refuse_inside_store, refuse_url
from actlas.jobs.run.reports.analysis import SaeTrainReport
from actlas.jobs.scheduler.stop import Stop
from actlas.jobs.terminal import echo
from actlas.store.store import open_store

if TYPE_CHECKING:
    from actlas.analysis.sae.train.api import TrainedSae
    from actlas.analysis.sae.train.curves import Point


@click.command("train", short_help="Train a sparse autoencoder on shuffled rows of a store.")
@click.argument("store")
@click.option("--hookpoint", required=True, help="Hookpoint to train on, such as resid_post.3.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Output folder: new or empty, or with an unfinished training to resume.",
)
@model_options(
    TrainOptions,
    "d_sae",
    "architecture",
    "k",
    "l1",
    "fraction",
    "steps",
    "batch_size",
    "lr",
    "seed",
    aliases={"d_sae": "--width", "architecture": "--kind"},
)
@click.option(
    "--device",
    default="auto",
    help="Device: cpu, cuda, cuda:N or mps.  [default: auto, the accelerator if there is one]",
)
@model_options(TrainOptions, "threads", "checkpoint_every")
@figure_options
@json_option
@debug_option
def command(
    store: str, hookpoint: str, out: Path, device: str, as_json: bool, **options: Any
) -> None:
    """Train a sparse autoencoder on one hookpoint of STORE.

    The output folder is in SAELens format, with metrics.json, curve.csv and the picture curves. The
    same command resumes an interrupted training; a finished training is left as it is.
    """
    refuse_url(out)
    refuse_inside_store(out)
    opened = open_store(store)
    from actlas.analysis.sae.train.api import train_sae
    from actlas.pipeline.model.device import resolve_device

    if opened.plan.dense and (n_missing := len(opened.missing())):
        echo(
            f"{n_missing:,} of {counted(opened.n_shards(), 'shard')} {is_are(n_missing)} not "
            "extracted: training on the rows of the others",
            err=True,
        )
    stop = Stop(lambda _: echo("saving a checkpoint after this step", err=True))
    with stop, _Progress() as progress:
        made = train_sae(
            opened,
            hookpoint,
            out,
            device=resolve_device(device),
            tell=progress.tell,
            stop=lambda: stop.requested,
            **{name: value for name, value in options.items() if value is not None},
        )
    if as_json:
        metrics = json.loads((made.folder / "metrics.json").read_text())
        echo(SaeTrainReport(out=str(out), **metrics).to_json())
    else:
        echo(_line(made, store, out))


class _Progress(NowAndThen):
    """Prints the progress of the training as lines are due, with the last held-out measurement."""

    def __init__(self) -> None:
        super().__init__()
        self._held_out = ""

    def tell(self, point: Point, n_steps: int, rows_per_second: float) -> None:
        """Take a point of the learning curves."""
        rate = "" if math.isnan(rows_per_second) else f", {count(rows_per_second)} rows/s"
        held_out = point.held_out_explained_variance
        if held_out is not None:
            self._held_out = f" (held-out {held_out:.3f} at step {count(point.step)})"
        self(
            f"step {count(point.step)} of {count(n_steps)}, {counted(point.tokens, 'token')}: loss "
            f"{point.loss:.4g}, explained variance {point.explained_variance:.3f}{self._held_out}, "
            f"L0 {point.l0:.1f}, dead {100 * point.dead_share:.1f} %{rate}"
        )


def _line(made: TrainedSae, store: str, out: Path) -> str:
    metrics = made.metrics
    rows = "held-out" if made.held_out else "training"
    done = "already trained, nothing to do:" if made.was_done else "trained"
    return (
        f"{done} {out}: explained variance {metrics.explained_variance:.3f}, L0 {metrics.l0:.1f}, "
        f"dead {100 * metrics.dead_share:.1f} % of {counted(made.sae.d_sae, 'feature')} (on "
        f"{count(metrics.n_tokens)} {rows} tokens); {counted(made.n_steps, 'step')} in "
        f"{duration(made.seconds)}, {count(made.n_tokens / max(made.seconds, 1e-9))} rows/s "
        f"-> next: {shell('sae', 'encode', store, '--sae', str(out))}"
    )
