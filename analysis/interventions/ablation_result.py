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

from actlas.analysis.interventions.loss import Losses

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
    def title(self) -> str:
        """What it is called in tables and pictures."""
        return title(self.name, self.seed)

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

        "Clearly" is more than the most costly draw by two standard errors of the difference, over
        documents. Few draws say little of how random units vary: their number is named.
        """
        top, random = self.top, self.random
        units, delta = f"{top.n_units:,}", top.loss_delta
        if not random:
            return (
                f"Without the {units} top units the loss changes by {delta:+.4f} nats per token; "
                "there are no random units to compare with (--random 0)."
            )
        most = max(random, key=lambda c: c.loss_delta)
        mean, largest = float(np.mean([c.loss_delta for c in random])), most.loss_delta
        draws = f"{len(random)} random {'draw' if len(random) == 1 else 'draws'}"
        told = (
            f"{delta:+.4f} nats per token, against {mean:+.4f} on average and {largest:+.4f} at "
            f"most over {draws}"
        )
        if not math.isfinite(delta + mean):
            return f"The loss is no finite number in some condition, so nothing is said: {told}."
        if delta <= largest:
            return f"The {units} top units do no more than {units} random ones: {told}."
        losing, others = f"losing the {units} top units", f"losing {units} random ones"
        if delta <= 0:
            return f"Neither {losing} nor {others} costs any loss: {told}."
        # The root of the sum of squares forgets that the documents are the same: a safe bound.
        clearly = delta - largest > 2 * math.hypot(top.se, most.se)  # False where one is unknown
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
        return f"Losing the {units} top units costs {costs}, {beside}: {told}."

    def summary(self) -> dict[str, Any]:
        """Return all of it but the samples as plain values, as summary.json has it."""
        rows = [{k: _plain(v) for k, v in c.row().items()} for c in self.conditions]
        return {**self.about, "sentence": self.sentence(), "conditions": rows}

    def save(self, folder: Path) -> None:
        """Write ablation.csv, samples.txt, summary.json and ablation.png into a folder."""
        from actlas.analysis.interventions.ablation_plot import write

        rows = [condition.row() for condition in self.conditions]
        with (folder / "ablation.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (folder / "samples.txt").write_text(self.samples_text(), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(self.summary(), indent=1) + "\n")
        write(self, folder / "ablation.png")

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
    """Return a condition's name, with the seed of random units."""
    return name if seed is None else f"{name}, seed {seed}"


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


def _shown(text: str) -> str:
    """Return text that cannot steer a terminal; its lines stay lines."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )
