"""The result of an ablation: the loss by condition as a table, a sentence and a picture."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actlas.analysis.figures import PNG, Figures, title_name
from actlas.analysis.interventions.conditions import RANDOM, TOP, Condition
from actlas.store.display.text import counted, html_text, printable_lines

if TYPE_CHECKING:
    import pandas as pd


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
        units, ones = counted(top.n_units, "top unit"), counted(top.n_units, "random one")
        delta = top.loss_delta
        if not random:
            return (
                f"Without the {units} the loss changes by {delta:+.4f} nats per token; "
                "no random units were measured to compare with (--random 0)."
            )
        most = max(random, key=lambda c: c.loss_delta)
        mean, largest = float(np.mean([c.loss_delta for c in random])), most.loss_delta
        draws = counted(len(random), "random draw")
        numbers = (
            f"{delta:+.4f} nats per token, against {mean:+.4f} on average and {largest:+.4f} at "
            f"most over {draws}"
        )
        if not math.isfinite(delta + mean):
            return f"The loss is no finite number in some condition: {numbers}."
        if delta <= largest:
            do = "does" if top.n_units == 1 else "do"
            return f"The {units} {do} no more than {ones}: {numbers}."
        losing, others = f"losing the {units}", f"losing {ones}"
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
        return f"Losing the {units} costs {costs}, {beside}: {numbers}."

    def summary(self) -> dict[str, Any]:
        """Return the result without samples as plain values: the content of summary.json."""
        rows = [{k: _plain(v) for k, v in c.row().items()} for c in self.conditions]
        return {**self.about, "sentence": self.sentence(), "conditions": rows}

    def save(self, folder: Path, figures: Figures = PNG) -> None:
        """Write ablation.csv, samples.txt, summary.json and the picture into a folder.

        Parameters
        ----------
        folder : Path
            An existing folder.
        figures : Figures
            Formats and resolution of the picture.
        """
        from actlas.analysis.interventions import ablation_plot

        rows = [condition.row() for condition in self.conditions]
        with (folder / "ablation.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (folder / "samples.txt").write_text(self.samples_text(), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(self.summary(), indent=1) + "\n")
        if figures.formats:
            figures.save(ablation_plot.draw(self.conditions, self._heading()), folder, "ablation")

    def _heading(self) -> str:
        model, corpus = (_short(title_name(self.about[name])) for name in ("model", "corpus"))
        return (
            f"{model}: {counted(self.top.n_units, 'unit')} set to zero\n"
            f"{corpus}, {counted(self.top.n_tokens, 'predicted token')}"
        )

    def samples_text(self) -> str:
        """Return every prompt with its continuations, control characters escaped."""
        blocks = []
        for number, sample in enumerate(self.samples, 1):
            lines = [f"=== prompt {number}: {printable_lines(sample.prompt)}", ""]
            for name, text in sample.texts:
                lines += [f"--- {name}", printable_lines(text), ""]
            blocks.append("\n".join(lines))
        return "\n".join(blocks)

    def __repr__(self) -> str:
        return f"<ablation: {self.sentence()}>"

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(index=False)
        return f"<p>{html_text(self.sentence())}</p>{html}"


def _plain(value: Any) -> Any:
    """Return a value for JSON, with None for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else "…" + text[1 - limit :]
