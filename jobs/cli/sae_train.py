"""``actlas sae train``: a sparse autoencoder of one hookpoint, from shuffled batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, duration
from actlas.jobs.logs import NowAndThen
from actlas.jobs.output import refuse_url
from actlas.jobs.scheduler.stop import Stop
from actlas.store.store import open_store

if TYPE_CHECKING:
    from actlas.analysis.sae.train.api import TrainedSae
    from actlas.analysis.sae.train.curves import Point


@click.command("train", short_help="Train one on shuffled batches of a store's rows.")
@click.argument("store")
@click.option("--hookpoint", required=True, help="Whose rows, such as resid_post.3.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the results: new or empty, or with an unfinished training, which goes on.",
)
@click.option(
    "--d-sae", "--width", "d_sae", default=2048, help="Number of features.  [default: 2,048]"
)
@click.option(
    "--architecture",
    "--kind",
    "architecture",
    type=click.Choice(["topk", "relu"]),
    default="topk",
    help="topk, or relu with an L1 loss.  [default: topk]",
)
@click.option("--k", default=32, help="Of topk: features kept on each token.  [default: 32]")
@click.option("--l1", default=5.0, help="Of relu: weight of the sparsity loss.  [default: 5]")
@click.option(
    "--fraction",
    default=0.9,
    help="Share of the rows to train on; metrics are of others, a tenth at most. 0.1 reads a "
    "tenth; with 1, metrics are of training rows.  [default: 0.9]",
)
@click.option(
    "--steps",
    type=int,
    help="[default: one epoch, or as many whole ones as make 1,000 steps]",
)
@click.option("--batch-size", default=4096, help="Rows of a step.  [default: 4,096]")
@click.option(
    "--lr",
    type=float,
    help="Largest learning rate.  [default: topk 4e-3, relu 1e-3; times sqrt(2048 / d_sae) above "
    "2,048 features]",
)
@click.option("--seed", default=0, help="Of weights, rows and their order.  [default: 0]")
@click.option(
    "--device",
    default="auto",
    help="auto, cpu, cuda, cuda:N or mps.  [default: auto: the accelerator, where there is one]",
)
@click.option("--threads", type=int, help="Of torch, on a CPU.  [default: torch's: one a core]")
@click.option(
    "--checkpoint-every", default=1000, help="Steps between checkpoints.  [default: 1,000]"
)
@json_option
@debug_option
def command(
    store: str, hookpoint: str, out: Path, device: str, as_json: bool, **options: Any
) -> None:
    """Train a sparse autoencoder on one hookpoint of STORE.

    The folder is what SAELens loads, with metrics.json, curve.csv and curves.png. The same command
    goes on where it was stopped or killed; of a finished training it says that it is done.
    """
    refuse_url(out)
    opened = open_store(store)
    from actlas.analysis.sae.train.api import train_sae
    from actlas.pipeline.model.device import resolve_device

    with Stop(lambda _: click.echo("saving a checkpoint after this step", err=True)) as stop:
        made = train_sae(
            opened,
            hookpoint,
            out,
            device=resolve_device(device),
            tell=_Teller(),
            stop=lambda: stop.requested,
            **options,
        )
    if as_json:
        metrics = json.loads((made.folder / "metrics.json").read_text())
        click.echo(json.dumps({"out": str(out), **metrics}))
    else:
        click.echo(_line(made, store, out))


class _Teller:
    """Says how far it is, every few seconds."""

    def __init__(self) -> None:
        self._say = NowAndThen()

    def __call__(self, point: Point, n_steps: int, rows_per_second: float) -> None:
        rate = "" if math.isnan(rows_per_second) else f", {count(rows_per_second)} rows/s"
        self._say(
            f"step {count(point.step)} of {count(n_steps)}, {count(point.tokens)} tokens: loss "
            f"{point.loss:.4g}, explained variance {point.explained_variance:.3f}, L0 "
            f"{point.l0:.1f}, dead {100 * point.dead_share:.1f} %{rate}"
        )


def _line(made: TrainedSae, store: str, out: Path) -> str:
    metrics = made.metrics
    rows = "held-out" if made.held_out else "training"
    done = "trained before, nothing to do:" if made.was_done else "trained"
    return (
        f"{done} {out}: explained variance {metrics.explained_variance:.3f}, L0 {metrics.l0:.1f}, "
        f"dead {100 * metrics.dead_share:.1f} % of {count(made.sae.d_sae)} features (on "
        f"{count(metrics.n_tokens)} {rows} tokens); {count(made.n_steps)} steps in "
        f"{duration(made.seconds)}, {count(made.n_tokens / max(made.seconds, 1e-9))} rows/s "
        f"-> next: {shell('sae', 'encode', store, '--sae', str(out))}"
    )
