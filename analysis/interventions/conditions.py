"""The conditions of an ablation: the intact model, without the top units, without random ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from actlas.analysis.interventions.loss import Losses

INTACT, TOP, RANDOM = "intact", "top", "random"


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
