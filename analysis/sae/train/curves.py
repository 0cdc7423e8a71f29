"""The learning curves of a training: ``curve.csv`` and ``curves.png``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BLUE = "#0072B2"
"""From the palette of Okabe and Ito, which colour-blind readers can tell apart."""


class Point(NamedTuple):
    """A point of the learning curves, measured on the batch of its step but for the last field.

    Attributes
    ----------
    step, tokens : int
        Steps taken and rows seen.
    loss, explained_variance, l0, dead_share : float
        Measurements; see :class:`~actlas.analysis.sae.train.trainer.Progress`.
    lr : float
        The learning rate of the step.
    held_out_explained_variance : float or None
        Explained variance of held-out rows after the step; None where it was not measured.
    """

    step: int
    tokens: int
    loss: float
    explained_variance: float
    l0: float
    dead_share: float
    lr: float
    held_out_explained_variance: float | None = None


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """Write the points as CSV, with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields)
        writer.writerows(points)


def draw(
    path: Path, points: Sequence[Point], title: str, final: tuple[float, str] | None = None
) -> None:
    """Draw loss, explained variance, L0 and dead share against tokens seen.

    Parameters
    ----------
    path : Path
        The PNG file to write.
    points : sequence of Point
        The points, in order.
    title : str
        The title of the figure.
    final : tuple of float and str, optional
        Explained variance after the training, drawn as a line, and the rows that it is of
        ("held-out", "training").
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import (
        EngFormatter,
        FormatStrFormatter,
        LogLocator,
        NullFormatter,
        PercentFormatter,
    )

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).flat
    tokens = [point.tokens for point in points]
    panels = {
        "loss": "loss of the batch",
        "explained_variance": "explained variance of the batch",
        "l0": "L0: features above zero per token",
        "dead_share": "share of dead features",
    }
    for axis, (field, label) in zip(axes, panels.items(), strict=True):
        values = [getattr(point, field) for point in points]
        axis.plot(
            tokens, values, color=BLUE, linewidth=1.4, marker="o", markersize=2, clip_on=False
        )
        axis.set_title(label, fontsize=11, loc="left")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        if field == "loss" and 0 < 5 * min(values) < max(values):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        if field == "explained_variance":
            axis.set_ylim(min(0.0, *values) if min(values) > -1 else -1, 1)
            if final is not None:
                label = f"{final[1]} rows, at the end: {final[0]:.3f}"
                axis.axhline(final[0], color="#D55E00", linestyle="--", linewidth=1.2, label=label)
                axis.legend(loc="lower right", frameon=False)
        if field == "l0":
            axis.set_ylim(0, max(1.0, *values) * 1.15)
        if field == "dead_share":
            axis.set_ylim(0, max(0.05, *values) * 1.15)
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        if field in ("l0", "dead_share"):
            axis.set_xlabel("tokens seen")
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=130)
