"""``actlas sae train``: a sparse autoencoder of one hookpoint, from shuffled batches."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.flags import debug_option, json_option
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import count, duration
from actlas.jobs.signals import Stop
from actlas.store.store import open_store

if TYPE_CHECKING:
    from actlas.analysis.sae.curves import Point
    from actlas.analysis.sae.training import TrainedSae

TELL_SECONDS = 5.0


@click.command("train", short_help="Train one on shuffled batches of a store's rows.")
@click.argument("store")
@click.option("--hookpoint", required=True, help="Whose rows, such as resid_post.3.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the results: new or empty, or one with an unfinished training to go on with.",
)
@click.option("--width", default=2048, show_default=True, help="Features.")
@click.option("--kind", type=click.Choice(["topk", "relu"]), default="topk", show_default=True)
@click.option("--k", default=32, show_default=True, help="Of topk: features a token.")
@click.option("--l1", default=5.0, show_default=True, help="Of relu: weight of the sparsity loss.")
@click.option(
    "--fraction",
    default=0.9,
    show_default=True,
    help="Share of the rows to train on; the others are for the metrics. 0.1 reads a tenth.",
)
@click.option("--steps", type=int, help="[default: one epoch, or as many as make 2,000,000 rows]")
@click.option("--batch-size", default=1024, show_default=True, help="Rows of a step.")
@click.option("--lr", type=float, help="Largest learning rate.  [default: topk 2e-3, relu 1e-3]")
@click.option("--seed", default=0, show_default=True, help="Of weights, rows and their order.")
@click.option("--device", default="cpu", show_default=True, help="Of torch, such as cuda.")
@click.option("--checkpoint-every", default=1000, show_default=True, help="Steps.")
@click.option("--threads", type=click.IntRange(min=1), help="Of torch.  [default: torch's]")
@json_option
@debug_option
def command(
    store: str, hookpoint: str, out: Path, threads: int | None, as_json: bool, **options: Any
) -> None:
    """Train a sparse autoencoder on one hookpoint of STORE.

    The folder is what SAELens loads, with metrics.json, curve.csv and curves.png. The same command
    goes on where it was stopped or killed.
    """
    opened = open_store(store)
    import torch

    from actlas.analysis.sae.training import train_sae

    if threads is not None:
        torch.set_num_threads(threads)
    with Stop(lambda _: click.echo("saving a checkpoint after this step", err=True)) as stop:
        made = train_sae(
            opened, hookpoint, out, tell=_Teller(), stop=lambda: stop.requested, **options
        )
    if as_json:
        metrics = json.loads((made.folder / "metrics.json").read_text())
        click.echo(json.dumps({"out": str(out), **metrics}))
    else:
        click.echo(_line(made, store, out))


class _Teller:
    """Says how far it is, every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, point: Point, n_steps: int, rows_per_second: float) -> None:
        now = time.monotonic()
        if now - self._last < TELL_SECONDS and point.step < n_steps:
            return
        self._last = now
        click.echo(
            f"step {count(point.step)} of {count(n_steps)}: loss {point.loss:.4g}, explained "
            f"variance {point.explained_variance:.3f}, L0 {point.l0:.1f}, dead "
            f"{100 * point.dead_share:.1f} %, {count(rows_per_second)} rows/s",
            err=True,
        )


def _line(made: TrainedSae, store: str, out: Path) -> str:
    metrics = made.metrics
    rows = "held-out" if made.held_out else "training"
    return (
        f"trained {out}: explained variance {metrics.explained_variance:.3f}, L0 {metrics.l0:.1f}, "
        f"dead {100 * metrics.dead_share:.1f} % of {count(made.sae.d_sae)} features (on "
        f"{count(metrics.n_tokens)} {rows} tokens); {count(made.n_steps)} steps in "
        f"{duration(made.seconds)}, {count(made.n_tokens / max(made.seconds, 1e-9))} rows/s "
        f"-> next: {shell('sae', 'encode', store, '--sae', str(out))}"
    )
