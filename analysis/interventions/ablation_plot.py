"""The picture of an ablation: what it costs to lose the top units, beside random ones."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actlas.analysis.interventions.ablation_result import Ablation

DPI = 150

BLUE, ORANGE, DARK = "#7fa8c9", "#d95f02", "#1a1a1a"


def draw(found: Ablation) -> Figure:
    """Draw the loss increase of the top units and of each random draw, with standard errors."""
    random = found.random
    figure = Figure(figsize=(8, min(60, 2.2 + 0.38 * (len(random) + 1))), layout="constrained")
    ax = figure.subplots()
    if random:
        _spread(ax, np.array([condition.loss_delta for condition in random]))
    conditions = (found.top, *random)
    for place, condition in enumerate(conditions):
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
    ax.set_xlabel(f"loss above the intact model's {found.conditions[0].loss:.3f} (nats per token)")
    ax.spines[["right", "top"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    title = (
        f"{_short(found.about['model'])}: {found.top.n_units:,} units set to zero\n"
        f"{_short(found.about['corpus'])}, {found.top.n_tokens:,} predicted tokens"
    )
    ax.set_title(title, loc="left", fontsize=10, parse_math=False)
    return figure


def write(found: Ablation, path: Path) -> None:
    """Write :func:`draw`'s picture as a PNG."""
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the table has it whole.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        draw(found).savefig(path, dpi=DPI)


def _spread(ax: Axes, deltas: np.ndarray) -> None:
    if not np.isfinite(deltas).all():
        return
    low, high, mean = float(deltas.min()), float(deltas.max()), float(deltas.mean())
    ax.axvspan(low, high, color=BLUE, alpha=0.25, linewidth=0, zorder=0, label="range of random")
    ax.axvline(mean, color=DARK, linestyle="--", linewidth=1, zorder=4, label="mean of random")


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else "…" + text[1 - limit :]
