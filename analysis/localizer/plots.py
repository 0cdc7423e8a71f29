"""The pictures of a localization: t of every unit, selected units by layer, distribution of t."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from actlas.analysis.figures import PNG, Figures, shown, title_name
from actlas.store.display.text import counted
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actlas.analysis.localizer.contrast import Condition
    from actlas.analysis.localizer.masks import Mask
    from actlas.analysis.statistics.welch import Welch

COLUMNS_MAX = 1200
"""Columns of a row in the brain map; in wider hookpoints each is the strongest of several units."""

STRIP = 0.26
"""Share of a row's height in which its selected units are marked."""

BINS = 80

DARK, BLUE, ORANGE, GREY = "#1a1a1a", "#7fa8c9", "#d95f02", "#bdbdbd"

_SHOWN_SHARE, _SELECTED_SHARE = 99.5, 90
"""Percentiles of abs(t) of all units, and of the selected t, that the colours reach at least."""


class Plotted(Protocol):
    """The parts of a :class:`~actlas.analysis.localizer.result.Localization` that are drawn."""

    @property
    def mask(self) -> Mask:
        """The selected units, with the key that names the hookpoints."""

    @property
    def conditions(self) -> tuple[Condition, Condition]:
        """The positive and the negative side."""

    @property
    def test(self) -> Welch:
        """The test of every unit; shape [units of all hookpoints] each."""

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Whether each unit is selected; shape [units of all hookpoints]."""

    @property
    def t_threshold(self) -> float:
        """The smallest selected t; NaN where nothing is selected."""

    @property
    def n_significant(self) -> int:
        """Units with q below 0.05, of either sign."""


def save_all(found: Plotted, folder: Path, figures: Figures = PNG) -> None:
    """Write the pictures brain_map, layers and t_histogram.

    Parameters
    ----------
    found : Plotted
        The localization.
    folder : Path
        An existing folder.
    figures : Figures
        Formats and resolution.
    """
    for draw in (brain_map, layers, t_histogram) if figures.formats else ():
        figures.save(draw(found), folder, draw.__name__)


def brain_map(found: Plotted) -> Figure:
    """Draw t of every unit: a row per hookpoint, with selected units marked below it.

    Hookpoints of the same width share a panel.

    Parameters
    ----------
    found : Plotted
        The localization.
    """
    specs = found.mask.key.hookpoints
    widths = sorted({spec.width for spec in specs})
    panels = [[i for i, spec in enumerate(specs) if spec.width == width] for width in widths]
    rows = [len(panel) for panel in panels]
    height = 1.7 + sum(max(0.26, min(0.6, 3.2 / n)) * n + 0.55 for n in rows)
    figure = Figure(figsize=(12, min(height, 60)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    norm, beyond = _scale(found.test.t, found.selected)
    edges = np.cumsum([0, *(spec.width for spec in specs)])
    image = None
    for ax, panel in zip(axes, panels, strict=True):
        for row, i in enumerate(panel):
            part = slice(edges[i], edges[i + 1])
            image = _row(ax, row, found.test.t[part], found.selected[part], norm)
        _label_rows(ax, [specs[i] for i in panel])
    _title(axes[0], found, f"selected{_at_least(found)}: marked below each row")
    if image is not None:
        bar = figure.colorbar(
            image, ax=list(axes), extend=beyond, fraction=0.03, pad=0.01, aspect=25
        )
        bar.set_label(
            f"{_t_of(found)}\n{_words('red: {0} above {1}', found)}\nline: smallest selected",
            parse_math=False,
        )
        if np.isfinite(found.t_threshold) and abs(found.t_threshold) < float(norm.vmax or 0):
            bar.ax.axhline(found.t_threshold, color=DARK, linewidth=2)
    return figure


def _row(
    ax: Axes, row: int, t: NDArray[np.float64], selected: NDArray[np.bool_], norm: Normalize
) -> Any:
    image = ax.imshow(
        _strongest(t)[None],
        cmap=_colours(),
        norm=norm,
        aspect="auto",
        interpolation="nearest",
        extent=(0, len(t), row + 0.5 - STRIP, row - 0.46),
    )
    ax.vlines(
        np.flatnonzero(selected) + 0.5,
        row + 0.5 - STRIP,
        row + 0.47,
        colors=DARK,
        linewidth=max(0.8, min(2.5, 500 / len(t))),
    )
    return image


def _strongest(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at most COLUMNS_MAX values: of adjacent units, the value farthest from zero."""
    step = -(-len(t) // COLUMNS_MAX)
    if step == 1:
        return t
    padded = np.full(-(-len(t) // step) * step, np.nan)
    padded[: len(t)] = t
    groups = padded.reshape(-1, step)
    size = np.where(np.isnan(groups), -1, np.abs(groups))
    strongest: NDArray[np.float64] = np.take_along_axis(groups, size.argmax(1)[:, None], 1)[:, 0]
    return strongest


def _label_rows(ax: Axes, specs: Sequence[HookpointSpec]) -> None:
    width, n = specs[0].width, len(specs)
    step = -(-width // COLUMNS_MAX)
    more = f"; a column is the strongest of {step} adjacent units" if step > 1 else ""
    ax.set_xlim(0, width)
    ax.set_ylim(n - 0.5, -0.5)
    ax.set_yticks(range(n), [spec.name for spec in specs], fontsize=9 if n <= 40 else 7)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"unit, of {width:,}{more}")
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)


def layers(found: Plotted) -> Figure:
    """Draw the number of selected units of each hookpoint, and their share of its units.

    Parameters
    ----------
    found : Plotted
        The localization.
    """
    specs, mask = found.mask.key.hookpoints, found.mask
    n = len(specs)
    figure = Figure(figsize=(8, min(60, 1.6 + 0.3 * max(n, 4))), layout="constrained")
    ax = figure.subplots()
    places = np.arange(n)
    selected = np.array([len(mask.units.get(spec.name, ())) for spec in specs])
    widths = np.array([spec.width for spec in specs])
    ax.barh(places, selected, color=BLUE, edgecolor=DARK, linewidth=0.6, height=0.72)
    even = widths * mask.n_units / mask.key.n_units
    ax.vlines(
        even, places - 0.42, places + 0.42, colors=ORANGE, linewidth=2, label="if spread evenly"
    )
    top = max(1.0, float(selected.max()), float(even.max()))
    for place in range(n):
        share = 100 * selected[place] / widths[place]
        beside = max(selected[place], even[place])
        ax.text(
            beside + 0.012 * top,
            place,
            f"{selected[place]:,} ({share:.2g} %)",
            va="center",
            fontsize=8,
        )
    ax.set_yticks(places, [spec.name for spec in specs], fontsize=9 if n <= 40 else 7)
    ax.set_ylim(n - 0.4, -0.6)
    ax.set_xlim(0, 1.2 * top)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("selected units (and their share of the hookpoint's units)")
    ax.spines[["right", "top"]].set_visible(False)
    # Above the axes, where no bar can overlap it.
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    _title(ax, found, f"{mask.n_units:,} of {counted(mask.key.n_units, 'unit')} selected")
    return figure


def t_histogram(found: Plotted) -> Figure:
    """Draw the distribution of t over all units and the selected ones, with that of chance.

    Parameters
    ----------
    found : Plotted
        The localization.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    t = found.test.t
    finite = t[np.isfinite(t)]
    if len(finite):
        edges = _bins(finite, found.t_threshold)
        chosen = t[np.isfinite(t) & found.selected]
        label = f"all units ({len(finite):,})"
        ax.hist(finite, edges.tolist(), color=BLUE, edgecolor="white", linewidth=0.3, label=label)
        label = f"selected ({len(chosen):,})"
        ax.hist(chosen, edges.tolist(), color=ORANGE, edgecolor="white", linewidth=0.3, label=label)
        grid = np.linspace(min(edges[0], -4), max(edges[-1], 4), 500)
        chance = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi) * len(finite) * np.diff(edges)[0]
        tallest = float(np.histogram(finite, edges)[0].max())
        cut = ", goes on above" if chance.max() > 1.25 * tallest else ""
        label = f"if no unit differed (standard normal{cut})"
        ax.plot(grid, chance, color=DARK, linewidth=1.2, linestyle="--", label=label)
        ax.set_ylim(0, 1.25 * tallest)  # the curve of chance may be far taller
    if np.isfinite(found.t_threshold):
        label = f"smallest selected: t = {shown(found.t_threshold)}"
        ax.axvline(found.t_threshold, color=ORANGE, linewidth=1.5, linestyle=":", label=label)
    ax.set_xlabel(f"{_t_of(found)}; {_words('positive: {0} above {1}', found)}", parse_math=False)
    ax.set_ylabel("units")
    ax.spines[["right", "top"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    left_out = [f"{int(np.isinf(t).sum()):,} infinite", f"{int(np.isnan(t).sum()):,} untested"]
    note = f"{found.n_significant:,} of {counted(len(t), 'unit')} with q < 0.05"
    told = [text for text in left_out if not text.startswith("0 ")]
    _title(ax, found, note + (f"; not drawn: {', '.join(told)}" if told else ""))
    return figure


def _bins(t: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Return the edges of equal bins. The threshold is an edge, so no bin holds both sides."""
    edges: NDArray[np.float64] = np.asarray(np.histogram_bin_edges(t, bins=BINS), dtype=np.float64)
    if not np.isfinite(threshold):
        return edges
    width = float(edges[1] - edges[0])
    before = int(np.ceil((threshold - t.min()) / width))
    after = int(np.floor((t.max() - threshold) / width)) + 1
    return threshold + width * np.arange(-before, after + 1, dtype=np.float64)


def _scale(t: NDArray[np.float64], selected: NDArray[np.bool_]) -> tuple[Normalize, str]:
    """Return a colour scale symmetric about zero, which tells the selected units apart too."""
    size, chosen = np.abs(t[np.isfinite(t)]), t[np.isfinite(t) & selected]
    limit = float(np.percentile(size, _SHOWN_SHARE)) if len(size) else 0.0
    if len(chosen):
        limit = max(limit, float(np.percentile(chosen, _SELECTED_SHARE)))
    limit = limit or float(size.max(initial=0.0)) or 1.0
    above, below = bool((t > limit).any()), bool((t < -limit).any())
    beyond = {(True, True): "both", (True, False): "max", (False, True): "min"}
    return Normalize(-limit, limit), beyond.get((above, below), "neither")


def _colours() -> Any:
    from matplotlib import colormaps

    # Blue, white and red: distinguishable with red-green colour blindness.
    return colormaps["RdBu_r"].with_extremes(bad=GREY)


def _title(ax: Axes, found: Plotted, note: str) -> None:
    key = found.mask.key
    a, b = found.conditions
    how = f"{key.pool} token" if key.pool == "last" else "mean over tokens"
    sign = "signed" if key.signed else "absolute"
    first = (
        f"{_short(a.label)} ({a.n_documents:,}) against {_short(b.label)} ({b.n_documents:,}), "
        f"{_short(title_name(key.model_id), 40, tail=True)}; {how}, {sign}"
    )
    ax.set_title(f"{first}\n{note}", fontsize=10, loc="left", parse_math=False)


def _t_of(found: Plotted) -> str:
    """Return what t tests: the size of the samples, or their signed value."""
    return "Welch's t of " + ("activation" if found.mask.key.signed else "|activation|")


def _at_least(found: Plotted) -> str:
    """Return the smallest selected t, which is a line in the scale of colours too."""
    return f" (t ≥ {shown(found.t_threshold)})" if np.isfinite(found.t_threshold) else ""


def _words(text: str, found: Plotted) -> str:
    return text.format(*(_short(condition.label) for condition in found.conditions))


def _short(text: str, limit: int = 24, *, tail: bool = False) -> str:
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return "…" + text[1 - limit :] if tail else text[: limit - 1] + "…"
