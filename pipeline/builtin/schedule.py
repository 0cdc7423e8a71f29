"""Warmup, stable, decay: a schedule whose decay may begin whenever one decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """Factor on the learning rates, after Hu et al., "MiniCPM" (2024), section 4.

    Examples
    --------
    >>> schedule = Schedule(n_warmup=2, decay_start=10, n_decay=4)
    >>> [schedule.factor(step) for step in (0, 1, 9, 10, 12, 14)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """

    n_warmup: int
    decay_start: int
    n_decay: int

    @property
    def n_steps(self) -> int:
        """Steps in all."""
        return self.decay_start + self.n_decay

    def factor(self, step: int) -> float:
        """Linear up to one, one, linear down to zero at `n_steps`."""
        rising = min(1.0, (step + 1) / self.n_warmup)
        falling = min(1.0, (self.n_steps - step) / self.n_decay)
        return min(rising, max(0.0, falling))
