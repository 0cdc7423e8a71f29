"""The picture of an ablation: what it costs to lose the top units, beside random ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from actlas.analysis.localizer.ablation_result import Ablation

DPI = 150
BLUE, ORANGE, DARK = "#7fa8c9", "#d95f02", "#1a1a1a"


def draw(found: Ablation, path: Path) -> None:
    """Draw the loss increase of the top units and of each random draw, with standard errors."""
    random = found.random
    figure = Figure(figsize=(8, 2.1 + 0.38 * (len(random) + 1)), layout="constrained")
    ax = figure.subplots()
    rows = [("top units", found.top, ORANGE)]
    rows += [(f"random, seed {c.seed}", c, BLUE) for c in random]
    for place, (_, condition, colour) in enumerate(rows):
        error = condition.se if np.isfinite(condition.se) else 0
        ax.barh(place, condition.loss_delta, color=colour, edgecolor=DARK, linewidth=0.6, zorder=2)
        ax.errorbar(
            condition.loss_delta,
            place,
            xerr=error,
            color=DARK,
            capsize=3,
            linewidth=1,
            fmt="none",
            zorder=3,
        )
    if random:
        deltas = np.array([c.loss_delta for c in random])
        ax.axvline(float(deltas.mean()), color=DARK, linestyle="--", linewidth=1, zorder=4)
        ax.axvspan(
            float(deltas.min()), float(deltas.max()), color=BLUE, alpha=0.25, linewidth=0, zorder=0
        )
    ax.axvline(0, color=DARK, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.invert_yaxis()
    ax.margins(x=0.08)
    ax.set_xlabel(f"loss above the intact model's {found.conditions[0].loss:.3f}, nats per token")
    figure.supxlabel(
        "lines: ± 1 standard error over documents; dashed: mean of the random draws; shaded: "
        "their range",
        fontsize=8,
    )
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    about = found.about
    ax.set_title(
        f"{about['model']} without {found.top.n_units:,} units, on {about['corpus']} "
        f"({found.top.n_tokens:,} tokens)",
        loc="left",
        fontsize=10,
    )
    figure.savefig(path, dpi=DPI)
