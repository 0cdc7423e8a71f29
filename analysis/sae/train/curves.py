"""The learning curves of a training: ``curve.csv`` and the picture ``curves``."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"
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
    """Write the measurements of the batches as CSV, with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields[:-1])
        writer.writerows(point[:-1] for point in points)


def held_out_curve(points: Sequence[Point]) -> list[dict[str, float]]:
    """Return the points at which held-out rows were measured, as plain values for JSON."""
    return [
        {"step": point.step, "tokens": point.tokens, "explained_variance": value}
        for point in points
        if (value := point.held_out_explained_variance) is not None and math.isfinite(value)
    ]


def draw(
    points: Sequence[Point],
    title: str,
    final: tuple[float, str] | None = None,
    k: int | None = None,
) -> Figure:
    """Draw loss, explained variance, L0 and dead share against tokens seen.

    What never changes is said in the title instead of drawn: an L0 that is ``k`` at every point,
    and a dead share of 0.

    Parameters
    ----------
    points : sequence of Point
        The points, in order.
    title : str
        The title of the figure.
    final : tuple of float and str, optional
        Explained variance after the training, drawn as a line, and the rows that it is of
        ("held-out", "training").
    k : int, optional
        Features kept on each token, where the architecture fixes them.
    """
    from matplotlib.figure import Figure

    panels = {
        "loss": "loss of the batch",
        "explained_variance": "explained variance",
        "l0": "L0: features above zero per token",
        "dead_share": "share of dead features",
    }
    constant = []
    if k is not None and all(round(point.l0, 1) == k for point in points):
        panels.pop("l0")
        constant.append(f"L0 {k}")
    if not any(point.dead_share for point in points):
        panels.pop("dead_share")
        constant.append("no dead features")
    n_rows, n_columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    size = 5 * n_columns - (n_columns == 3), 0.7 + 3 * n_rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True).flat
    for number, (axis, (field, label)) in enumerate(zip(axes, panels.items(), strict=True)):
        _panel(axis, field, label, points)
        if field == "explained_variance":
            _held_out(axis, points, final)
        if number >= len(panels) - n_columns:
            axis.set_xlabel("tokens seen")
    note = f"\n{' and '.join(constant)} throughout" if constant else ""
    figure.suptitle(title + note, fontsize=12, parse_math=False)
    return figure


def _panel(axis: Axes, field: str, label: str, points: Sequence[Point]) -> None:
    from matplotlib.ticker import (
        EngFormatter,
        FormatStrFormatter,
        LogLocator,
        NullFormatter,
        PercentFormatter,
    )

    values = [getattr(point, field) for point in points]
    axis.plot(
        [point.tokens for point in points],
        values,
        color=BLUE,
        linewidth=1.4,
        marker="o",
        markersize=2,
        clip_on=False,
        label="batch" if field == "explained_variance" else None,
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
    if field == "l0":
        axis.set_ylim(0, max(1.0, *values) * 1.15)
    if field == "dead_share":
        axis.set_ylim(0, max(0.05, *values) * 1.15)
        axis.yaxis.set_major_formatter(PercentFormatter(1))


def _held_out(axis: Axes, points: Sequence[Point], final: tuple[float, str] | None) -> None:
    """Add the held-out curve, and the final metric of all evaluation rows."""
    measured = held_out_curve(points)
    if measured:
        axis.plot(
            [point["tokens"] for point in measured],
            [point["explained_variance"] for point in measured],
            color=ORANGE,
            linewidth=1.2,
            marker="s",
            markersize=3,
            label="held-out rows",
        )
    if final is not None:
        label = f"{final[1]} rows, at the end: {final[0]:.3f}"
        axis.axhline(final[0], color=ORANGE, linestyle="--", linewidth=1, label=label)
    axis.legend(loc="lower right", frameon=False)
