"""What an ablation found: loss by condition, said in numbers and in one plain sentence."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actlas.analysis.localizer.ablation import Losses

if TYPE_CHECKING:
    import pandas as pd

INTACT, TOP, RANDOM = "intact", "top", "random"


@dataclass(frozen=True, slots=True)
class Condition:
    """The model under one condition.

    Attributes
    ----------
    name : {"intact", "top", "random"}
    seed : int or None
        Of the random units.
    n_units : int
        Set to zero.
    loss : float
        Nats per predicted token.
    loss_delta, se : float
        Above the intact model, and the standard error of that over documents (paired; a ratio
        estimate, since documents differ in length). NaN with fewer than two documents.
    n_tokens : int
        Predicted.
    """

    name: str
    seed: int | None
    n_units: int
    loss: float
    loss_delta: float
    se: float
    n_tokens: int

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_token(self) -> float:
        """The loss in bits."""
        return self.loss / math.log(2)

    def row(self) -> dict[str, Any]:
        """Return it as plain values."""
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
    """A prompt and how each condition went on."""

    prompt: str
    texts: tuple[tuple[str, str], ...]
    """(condition, text)."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What :func:`actlas.ablate` returns.

    Attributes
    ----------
    conditions : tuple of Condition
        Intact, top, then one for each random seed.
    samples : tuple of Sample
    about : dict
        Model, mask, corpus and options as plain values.
    """

    conditions: tuple[Condition, ...]
    samples: tuple[Sample, ...]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """One row per condition."""
        import pandas as pd

        return pd.DataFrame([condition.row() for condition in self.conditions])

    @property
    def top(self) -> Condition:
        """Without the mask's units."""
        return next(c for c in self.conditions if c.name == TOP)

    @property
    def random(self) -> tuple[Condition, ...]:
        """Without random units, by seed."""
        return tuple(c for c in self.conditions if c.name == RANDOM)

    def sentence(self) -> str:
        """Say in one sentence whether the mask's units do more than random ones.

        "Clearly more" is more than the most costly draw by two standard errors of the difference,
        over documents. Few draws say little of how random units vary: their number is named.
        """
        top, deltas = self.top, [c.loss_delta for c in self.random]
        cost = (
            f"Without the {top.n_units:,} top units the loss changes by {top.loss_delta:+.4f} nats"
        )
        if not deltas:
            return f"{cost}; there is nothing to compare it with (--random 0)."
        mean, largest = float(np.mean(deltas)), max(deltas)
        beside = (
            f"without as many random units by {mean:+.4f} on average and {largest:+.4f} at most "
            f"({len(deltas)} {'draw' if len(deltas) == 1 else 'draws'})"
        )
        if top.loss_delta <= largest:
            return f"{cost}, {beside}: the top units do no more than random ones."
        most = max(self.random, key=lambda c: c.loss_delta)
        error = math.hypot(top.se, most.se)
        if not top.loss_delta - largest > 2 * error:  # also where an error is not known
            return (
                f"{cost}, {beside}: more than the largest by less than two standard errors, so no "
                "clear difference from random ones."
            )
        times = f"{top.loss_delta / mean:.1f} times the average, and " if mean > 0 else ""
        return f"{cost}, {beside}: {times}clearly more than the largest."

    def save(self, folder: Path) -> None:
        """Write ablation.csv, samples.txt, summary.json and ablation.png into a folder."""
        from actlas.analysis.localizer.ablation_plot import draw

        rows = [condition.row() for condition in self.conditions]
        with (folder / "ablation.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (folder / "samples.txt").write_text(self.samples_text(), encoding="utf-8")
        summary = {
            **self.about,
            "sentence": self.sentence(),
            "conditions": [{k: _plain(v) for k, v in row.items()} for row in rows],
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        draw(self, folder / "ablation.png")

    def samples_text(self) -> str:
        """Return every prompt with its continuations."""
        blocks = []
        for number, sample in enumerate(self.samples, 1):
            lines = [f"=== prompt {number}: {sample.prompt}", ""]
            for name, text in sample.texts:
                lines += [f"--- {name}", text, ""]
            blocks.append("\n".join(lines))
        return "\n".join(blocks)

    def __repr__(self) -> str:
        return f"<ablation: {self.sentence()}>"

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(index=False)
        return f"<p>{escape(self.sentence())}</p>{html}"


def condition_of(
    name: str, seed: int | None, n_units: int, found: Losses, intact: Losses
) -> Condition:
    """Return a condition's numbers beside the intact model's, document by document."""
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


def _plain(value: Any) -> Any:
    """Return a value that JSON has: no NaN, no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
