"""The options of a training, validated."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actlas.store.errors import ConfigError

LEARNING_RATES = {"topk": 4e-3, "relu": 1e-3}
"""Default learning rates up to LEARNING_RATES_D_SAE features, tried on a small store.

Above that number they fall with the square root of ``d_sae``, as the best rates do in Gao et al.
2024 (arXiv 2406.04093).
"""

LEARNING_RATES_D_SAE = 2048

LEAST_STEPS = 1000
"""Default for the least number of steps: several epochs, where one has fewer."""


class TrainOptions(BaseModel):
    """The options of a training; see :func:`actlas.train_sae`.

    Saved trainings call ``d_sae`` "width" and ``architecture`` "kind": :meth:`saved`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hookpoint: str = Field(description="Hookpoint to train on, such as resid_post.3.")
    d_sae: int = Field(2048, ge=1, le=1 << 24, description="Number of features of the dictionary.")
    architecture: Literal["topk", "relu"] = Field(
        "topk", description="Architecture: topk, or relu with an L1 loss."
    )
    k: int = Field(32, ge=1, description="Active features per token, for topk.")
    l1: float = Field(5.0, ge=0, description="Weight of the L1 loss, for relu.")
    fraction: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the rows to train on. Metrics use up to a tenth of the other rows; "
        "with 1, they use training rows.",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="Number of training steps. Default: one epoch, or enough whole epochs for "
        "1,000 steps.",
    )
    batch_size: int = Field(4096, ge=1, description="Rows per step.")
    lr: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate. Default: topk 4e-3, relu 1e-3; times sqrt(2048 / d_sae) "
        "above 2,048 features.",
    )
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="Seed of the weights, the rows and their order."
    )
    device: str = Field("cpu", description="Device: cpu, cuda, cuda:N or mps.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads. Default: torch's choice, one per core."
    )
    checkpoint_every: int = Field(1000, ge=1, description="Steps between checkpoints.")

    @classmethod
    def parse(cls, **options: Any) -> TrainOptions:
        """Validate options and return them.

        Parameters
        ----------
        **options
            Fields by name.

        Raises
        ------
        ConfigError
            An option is out of range; the message names the first one.
        """
        try:
            made = cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"{field}: got {first['input']!r}: {first['msg']}.", field=field
            ) from error
        if made.architecture == "topk" and made.k > made.d_sae:
            raise ConfigError(
                f"k: got {made.k}, expected at most d_sae, {made.d_sae}: each token keeps k of the "
                "d_sae features.",
                field="k",
            )
        return made

    @property
    def peak_lr(self) -> float:
        """The largest learning rate: ``lr``, or the default of the architecture and ``d_sae``."""
        if self.lr is not None:
            return self.lr
        return LEARNING_RATES[self.architecture] * math.sqrt(
            min(1.0, LEARNING_RATES_D_SAE / self.d_sae)
        )

    def n_steps(self, batches_per_epoch: int) -> int:
        """Return the number of steps: ``steps``, or whole epochs, one or enough for 1,000 steps.

        Parameters
        ----------
        batches_per_epoch : int
            Batches of one epoch.
        """
        if self.steps is not None:
            return self.steps
        return batches_per_epoch * math.ceil(LEAST_STEPS / batches_per_epoch)

    def saved(self) -> dict[str, Any]:
        """Return the options by the names that saved trainings have for them."""
        return {_SAVED_NAMES.get(name, name): value for name, value in self.model_dump().items()}


_SAVED_NAMES = {"d_sae": "width", "architecture": "kind"}

_NAMES = {saved: name for name, saved in _SAVED_NAMES.items()}


def name_of(saved: str) -> str:
    """Return the name of an option that saved trainings have under another name."""
    return _NAMES.get(saved, saved)
