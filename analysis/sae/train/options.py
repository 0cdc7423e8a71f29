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

    hookpoint: str
    d_sae: int = Field(2048, ge=1, le=1 << 24)
    architecture: Literal["topk", "relu"] = "topk"
    k: int = Field(32, ge=1)
    l1: float = Field(5.0, ge=0)
    fraction: float = Field(0.9, gt=0, le=1)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(4096, ge=1)
    lr: float | None = Field(None, gt=0)
    seed: int = Field(0, ge=0, lt=1 << 63)
    device: str = "cpu"
    threads: int | None = Field(None, ge=1)
    checkpoint_every: int = Field(1000, ge=1)

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
