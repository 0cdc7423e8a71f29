"""What is asked of a training, checked where it enters."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actlas.store.errors import ConfigError

LEARNING_RATES = {"topk": 4e-3, "relu": 1e-3}
"""Up to 2,048 features, tried on a small store; above it they fall with the square root of the
width (as the best ones do in Gao et al. 2024, arXiv 2406.04093)."""

LEARNING_RATES_WIDTH = 2048

LEAST_STEPS = 1000
"""By default: several epochs where one has fewer."""


class TrainOptions(BaseModel):
    """The options of a training; see :func:`actlas.train_sae`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hookpoint: str
    width: int = Field(2048, ge=1, le=1 << 24)
    kind: Literal["topk", "relu"] = "topk"
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
        """Return the options.

        Raises
        ------
        ConfigError
            One makes no sense. The message names the first.
        """
        try:
            made = cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"{field}: got {first['input']!r}: {first['msg']}.", field=field
            ) from error
        if made.kind == "topk" and made.k > made.width:
            raise ConfigError(
                f"k: got {made.k}, expected at most width, {made.width}: of so many features, k "
                "are kept on each token.",
                field="k",
            )
        return made

    @property
    def peak_lr(self) -> float:
        """The largest learning rate: as asked, else by kind and width."""
        if self.lr is not None:
            return self.lr
        return LEARNING_RATES[self.kind] * math.sqrt(min(1.0, LEARNING_RATES_WIDTH / self.width))

    def n_steps(self, batches_per_epoch: int) -> int:
        """Return the steps: as asked, else whole epochs, one or enough for 1,000 steps."""
        if self.steps is not None:
            return self.steps
        return batches_per_epoch * math.ceil(LEAST_STEPS / batches_per_epoch)
