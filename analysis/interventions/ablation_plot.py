"""The picture of an ablation: the loss increase without the top units, and without random ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from actlas.analysis.interventions.conditions import Condition

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, DARK = "#7fa8c9", "#d95f02", "#1a1a1a"


def draw(conditions: Sequence[Condition], heading: str) -> Figure:
    """Draw the loss increase of the top units and of each random draw, with standard errors.

    Parameters
    ----------
    conditions : sequence of Condition
        The intact model, the condition without the top units, and those without random ones.
    heading : str
        The last line of the title.
    """
    intact, top, *random = conditions
    figure = Figure(figsize=(8, min(60, 2.2 + 0.38 * (len(random) + 1))), layout="constrained")
    ax = figure.subplots()
    if random:
        _spread(ax, np.array([condition.loss_delta for condition in random]))
    for place, condition in enumerate((top, *random)):
        ax.barh(
            place,
            condition.loss_delta,
            color=BLUE if place else ORANGE,
            edgecolor=DARK,
            linewidth=0.6,
            height=0.72,
            zorder=2,
        )
        error = condition.se if np.isfinite(condition.se) else 0
        ax.errorbar(
            condition.loss_delta,
            place,
            xerr=error,
            color=DARK,
            capsize=3,
            linewidth=1,
            fmt="none",
            zorder=3,
            label="± 1 standard error, over documents" if place == 0 and error else None,
        )
    ax.axvline(0, color=DARK, linewidth=0.8, zorder=4)
    names = ["top units", *(condition.title for condition in random)]
    ax.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= 40 else 7)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.08)
    ax.set_xlabel(f"loss above the intact model's {intact.loss:.4f} (nats per token)")
    ax.spines[["right", "top"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    ax.set_title(heading, loc="left", fontsize=10, parse_math=False)
    return figure


def _spread(ax: Axes, deltas: np.ndarray) -> None:
    if not np.isfinite(deltas).all():
        return
    low, high, mean = float(deltas.min()), float(deltas.max()), float(deltas.mean())
    ax.axvspan(low, high, color=BLUE, alpha=0.25, linewidth=0, zorder=0, label="range of random")
    ax.axvline(mean, color=DARK, linestyle="--", linewidth=1, zorder=4, label="mean of random")
