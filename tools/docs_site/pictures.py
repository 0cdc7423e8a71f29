"""The pictures of the README, from what `make demo` has made.

``python -m docs_site.pictures demo`` writes docs/pictures/unit-map.png and contexts.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import actlas
from actlas.analysis.localizer.plots import brain_map
from actlas.store.features.contexts import ActivationContext, Contexts

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"

FEATURES = 3
CONTEXTS = 4
CHARACTERS = 46
"""Of a context's line, on both sides of its token."""

ORANGE = (0.90, 0.47, 0.0)


def unit_map(demo: Path) -> Figure:
    """Return Welch's t of every unit, sentences against strings of non-words.

    Parameters
    ----------
    demo : Path
        The folder that the demo wrote to.
    """
    figure = brain_map(actlas.localize(demo / "language.zarr", "S:N"))
    figure.set_size_inches(9, 3.7)
    return figure


def contexts(demo: Path, features: list[int]) -> Figure:
    """Return the contexts in which some features are most active, shaded.

    Parameters
    ----------
    demo : Path
        The folder that the demo wrote to.
    features : list of int
        The features; empty for some of the clearest.
    """
    found = actlas.open(demo / "python-docs.zarr").features("docs-sae")
    chosen = features or found.some(FEATURES)
    figure = Figure(figsize=(9, 0.24 * len(chosen) * (CONTEXTS + 2)))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    width = 2 * CHARACTERS + 16
    ax.set_xlim(0, width)
    ax.set_ylim(len(chosen) * (CONTEXTS + 2), 0)
    line = 1.0
    for feature in chosen:
        each = found.contexts(feature, k=CONTEXTS, words=12, distinct=True)
        title = f"feature {feature}, active on {100 * found.density[feature]:.2g} % of the tokens"
        ax.text(1, line, title, va="center", fontsize=10, fontweight="bold")
        for context in each:
            line += 1
            _line(ax, line, context, each)
        line += 2
    return figure


def _line(ax: object, y: float, context: ActivationContext, each: Contexts) -> None:
    """Draw one context on a line, its token in the middle."""
    shown = [token.replace("\n", " ") for token in context.tokens]
    starts = [sum(map(len, shown[:i])) for i in range(len(shown) + 1)]
    middle = 12 + CHARACTERS
    shift = middle - starts[context.peak]
    ax.text(1, y, f"{context.value:7.1f}", va="center", fontsize=9, family="monospace")  # type: ignore[attr-defined]
    for i, (token, value) in enumerate(zip(shown, context.activations, strict=True)):
        left, right = starts[i] + shift, starts[i + 1] + shift
        if left < 12 or right > middle + CHARACTERS:
            continue
        share = min(1.0, abs(value) / each.scale)
        peak = i == context.peak
        if share > 0.01 or peak:
            edge = "black" if peak else "none"
            box = (left, y - 0.42), right - left, 0.84
            ax.add_patch(  # type: ignore[attr-defined]
                Rectangle(*box, facecolor=(*ORANGE, 0.75 * share), edgecolor=edge, lw=0.8)
            )
        for k, character in enumerate(token):
            ax.text(  # type: ignore[attr-defined]
                left + k + 0.5, y, character, ha="center", va="center", fontsize=9,
                family="monospace", parse_math=False,
            )  # fmt: skip


def main(arguments: list[str]) -> None:
    """Write both pictures.

    Parameters
    ----------
    arguments : list of str
        The demo's folder, then features to show.
    """
    demo = Path(arguments[0])
    for name, figure in (
        ("unit-map", unit_map(demo)),
        ("contexts", contexts(demo, [int(feature) for feature in arguments[1:]])),
    ):
        figure.savefig(PICTURES / f"{name}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1:])
