"""The result of an ablation: the loss by condition as a table, a sentence and a picture."""

from __future__ import annotations

import csv
import json
import math
import warnings
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actlas.analysis.interventions.loss import Losses

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTACT, TOP, RANDOM = "intact", "top", "random"

DPI = 150

BLUE, ORANGE, DARK = "#7fa8c9", "#d95f02", "#1a1a1a"


@dataclass(frozen=True, slots=True)
class Condition:
    """The loss of a model under one condition.

    Attributes
    ----------
    name : {"intact", "top", "random"}
        The condition.
    seed : int or None
        The seed of the random units.
    n_units : int
        Number of units set to zero.
    loss : float
        Loss in nats per predicted token.
    loss_delta, se : float
        Increase over the intact model's loss, and its standard error over documents (paired; a
        ratio estimate, since documents differ in length). NaN with fewer than two documents.
    n_tokens : int
        Number of predicted tokens.
    """

    name: str
    seed: int | None
    n_units: int
    loss: float
    loss_delta: float
    se: float
    n_tokens: int

    @property
    def title(self) -> str:
        """The title of the condition in tables and pictures."""
        return title(self.name, self.seed)

    @property
    def perplexity(self) -> float:
        """The perplexity: the exponential of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_token(self) -> float:
        """The loss in bits per predicted token."""
        return self.loss / math.log(2)

    def row(self) -> dict[str, Any]:
        """Return the condition as plain values, by column of the table."""
        return {
            "condition": self.name,
            "seed": self.seed,
            "n_units": self.n_units,
            "loss": self.loss,
            "loss_delta": self.loss_delta,
            "se": self.se,
            "perplexity": self.perplexity,
            "bits_per_token": self.bits_per_token,
            "n_tokens": self.n_tokens,
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with its continuations.

    Attributes
    ----------
    prompt : str
        The prompt.
    texts : tuple of (str, str)
        The title of each condition and its continuation.
    """

    prompt: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Ablation:
    """The result of :func:`actlas.ablate`.

    Attributes
    ----------
    conditions : tuple of Condition
        Intact, top, then one for each random draw.
    samples : tuple of Sample
        Prompts with the continuations of the first three conditions.
    about : dict
        Model, mask, corpus and options as plain values.
    """

    conditions: tuple[Condition, ...]
    samples: tuple[Sample, ...]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """The conditions as a table with one row per condition."""
        import pandas as pd

        return pd.DataFrame([condition.row() for condition in self.conditions])

    @property
    def top(self) -> Condition:
        """The condition without the mask's units."""
        return next(c for c in self.conditions if c.name == TOP)

    @property
    def random(self) -> tuple[Condition, ...]:
        """The conditions without random units, by seed."""
        return tuple(c for c in self.conditions if c.name == RANDOM)

    def sentence(self) -> str:
        """Return one sentence on whether the mask's units matter more than random ones.

        "Clearly" means more than the costliest draw by two standard errors of the difference, over
        documents. The sentence names the number of draws, since few draws say little about the
        variation of random units.
        """
        top, random = self.top, self.random
        units, delta = f"{top.n_units:,}", top.loss_delta
        if not random:
            return (
                f"Without the {units} top units the loss changes by {delta:+.4f} nats per token; "
                "no random units were measured to compare with (--random 0)."
            )
        most = max(random, key=lambda c: c.loss_delta)
        mean, largest = float(np.mean([c.loss_delta for c in random])), most.loss_delta
        draws = f"{len(random)} random {'draw' if len(random) == 1 else 'draws'}"
        numbers = (
            f"{delta:+.4f} nats per token, against {mean:+.4f} on average and {largest:+.4f} at "
            f"most over {draws}"
        )
        if not math.isfinite(delta + mean):
            return f"The loss is no finite number in some condition: {numbers}."
        if delta <= largest:
            return f"The {units} top units do no more than {units} random ones: {numbers}."
        losing, others = f"losing the {units} top units", f"losing {units} random ones"
        if delta <= 0:
            return f"Neither {losing} nor {others} costs any loss: {numbers}."
        # The root of the sum of squares ignores that the documents are the same: a safe bound.
        clearly = delta - largest > 2 * math.hypot(
            top.se, most.se
        )  # False where a standard error is NaN
        if mean > 0:
            costs = f"{delta / mean:.3g} times as much loss as {others} on average"
            beside = f"and {delta / largest:.3g} times as much as the costliest"
            if not clearly:
                beside = f"but not clearly more than the costliest of {draws}"
        else:
            costs, beside = "loss", f"and {others} costs none"
            if not clearly or largest > 0:
                sure = "clearly more" if clearly else "but not clearly more"
                beside = f"{sure} than the costliest of {draws}, which cost none on average"
        return f"Losing the {units} top units costs {costs}, {beside}: {numbers}."

    def summary(self) -> dict[str, Any]:
        """Return the result without samples as plain values: the content of summary.json."""
        rows = [{k: _plain(v) for k, v in c.row().items()} for c in self.conditions]
        return {**self.about, "sentence": self.sentence(), "conditions": rows}

    def save(self, folder: Path) -> None:
        """Write ablation.csv, samples.txt, summary.json and ablation.png into a folder.

        Parameters
        ----------
        folder : Path
            An existing folder.
        """
        rows = [condition.row() for condition in self.conditions]
        with (folder / "ablation.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (folder / "samples.txt").write_text(self.samples_text(), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(self.summary(), indent=1) + "\n")
        write_picture(self, folder / "ablation.png")

    def samples_text(self) -> str:
        """Return every prompt with its continuations, control characters escaped."""
        blocks = []
        for number, sample in enumerate(self.samples, 1):
            lines = [f"=== prompt {number}: {_shown(sample.prompt)}", ""]
            for name, text in sample.texts:
                lines += [f"--- {name}", _shown(text), ""]
            blocks.append("\n".join(lines))
        return "\n".join(blocks)

    def __repr__(self) -> str:
        return f"<ablation: {self.sentence()}>"

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(index=False)
        return f"<p>{escape(self.sentence())}</p>{html}"


def title(name: str, seed: int | None) -> str:
    """Return the title of a condition: its name, with the seed of random units."""
    return name if seed is None else f"{name}, seed {seed}"


def condition_of(
    name: str, seed: int | None, n_units: int, found: Losses, intact: Losses
) -> Condition:
    """Return a condition, compared with the intact model document by document.

    Parameters
    ----------
    name : {"intact", "top", "random"}
        The condition.
    seed : int or None
        The seed of the random units.
    n_units : int
        Number of units set to zero.
    found, intact : Losses
        The losses under the condition and of the intact model, on the same windows.
    """
    difference = found.total - intact.total
    n = found.n_tokens
    delta = float(difference.sum() / n.sum())
    used = n > 0
    n_documents = int(used.sum())
    se = math.nan
    if n_documents > 1:
        residual = difference[used] - delta * n[used]
        variance = n_documents / (n_documents - 1) * float((residual**2).sum())
        se = math.sqrt(variance) / float(n.sum())
    return Condition(name, seed, n_units, found.mean, delta, se, int(n.sum()))


def draw(found: Ablation) -> Figure:
    """Draw the loss increase of the top units and of each random draw, with standard errors.

    Parameters
    ----------
    found : Ablation
        The result to draw.
    """
    from matplotlib.figure import Figure

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


def write_picture(found: Ablation, path: Path) -> None:
    """Write the picture of :func:`draw` as a PNG.

    Parameters
    ----------
    found : Ablation
        The result to draw.
    path : Path
        The file, replaced where it exists.
    """
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes; the table has the whole name.
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


def _plain(value: Any) -> Any:
    """Return a value for JSON, with None for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(text: str) -> str:
    """Return text with control characters escaped, except newlines and tabs."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )
