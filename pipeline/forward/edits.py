"""The arithmetic of interventions: zero, add, replace, clamp.

Edits are out of place, and differentiable in the activations and in their own values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Edit(Protocol):
    """The arithmetic of an intervention. Another kind of edit is another class with these."""

    @property
    def by_position(self) -> bool:
        """Whether the edit has values of its own for each position."""

    def check(self, n_units: int, n_positions: int | None) -> None:
        """Raise ValueError where the edit's values do not fit the intervention.

        Parameters
        ----------
        n_units : int
            Units that the intervention selects.
        n_positions : int or None
            Positions that it selects; None where their number is open.
        """

    def apply(
        self, activations: Float[Tensor, "*batch units"], rows: Sequence[int] | None
    ) -> Float[Tensor, "*batch units"]:
        """Return edited activations.

        Parameters
        ----------
        activations : Tensor, shape [batch, position, unit] or [..., unit]
            The selected units at the selected positions of this pass; not to be written to.
        rows : sequence of int or None
            For each position, which of the intervention's positions it is, counted from 0; None
            for an edit that is not ``by_position``.
        """


@dataclass(frozen=True, slots=True)
class Zero:
    """Set activations to zero; NaN and infinity too."""

    by_position = False

    def check(self, n_units: int, n_positions: int | None) -> None:
        """Accept any units and positions."""

    def apply(
        self, activations: Float[Tensor, "*batch units"], rows: Sequence[int] | None
    ) -> Float[Tensor, "*batch units"]:
        """Return zeros; see :meth:`Edit.apply`."""
        return torch.zeros_like(activations)


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """An edit by values that broadcast over the batch.

    Parameters
    ----------
    values : float or array
        One of: a number; shape [unit], the same at every position, such as a direction or a mean;
        [position, unit], such as rows of a store; [batch, position, unit]. Positions are those of
        the intervention in its order, or all positions of the sequence from 0 on. Cast to the
        activations' dtype and device.
    """

    values: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", torch.as_tensor(self.values))

    @property
    def by_position(self) -> bool:
        """Whether there are values for each position."""
        return bool(self.values.ndim > 1)

    def check(self, n_units: int, n_positions: int | None) -> None:
        """Raise where the values' shape does not fit; see :meth:`Edit.check`."""
        shape = list(self.values.shape)
        if len(shape) > 3:
            raise ValueError(f"expected values of at most 3 axes, got shape {shape}")
        if shape and shape[-1] != n_units:
            raise ValueError(f"expected values for {n_units} units, got shape {shape}")
        if len(shape) > 1 and n_positions not in (None, shape[-2]):
            raise ValueError(f"expected values for {n_positions} positions, got shape {shape}")

    def at(self, activations: Tensor, rows: Sequence[int] | None) -> Tensor:
        """Return the values of a pass, in the activations' shape and dtype."""
        values: Tensor = self.values.to(device=activations.device, dtype=activations.dtype)
        if rows is not None and self.by_position:
            if max(rows, default=-1) >= values.shape[-2]:
                raise ValueError(
                    f"expected values for position {max(rows)} of the intervention, counted from "
                    f"0, got values for {values.shape[-2]} positions"
                )
            values = values[..., list(rows), :]
        if values.ndim == 3 and values.shape[0] not in (1, activations.shape[0]):
            raise ValueError(
                f"expected values for {activations.shape[0]} sequences, got {values.shape[0]}"
            )
        return values.expand_as(activations)


@dataclass(frozen=True, slots=True, eq=False)
class Add(_Values):
    """Add values to activations: a steering vector, the difference of two rows.

    Parameters
    ----------
    values : float or array
        A number, or shape [unit], [position, unit] or [batch, position, unit]. Positions are those
        of the intervention in its order, or all positions of the sequence from 0 on. They are cast
        to the activations' dtype and device.
    """

    def apply(
        self, activations: Float[Tensor, "*batch units"], rows: Sequence[int] | None
    ) -> Float[Tensor, "*batch units"]:
        """Return the sums; see :meth:`Edit.apply`."""
        return activations + self.at(activations, rows)


@dataclass(frozen=True, slots=True, eq=False)
class Replace(_Values):
    """Put values in the place of activations: stored rows (patching), or a mean (mean ablation).

    Parameters
    ----------
    values : float or array
        A number, or shape [unit], [position, unit] or [batch, position, unit]. Positions are those
        of the intervention in its order, or all positions of the sequence from 0 on. They are cast
        to the activations' dtype and device.
    """

    def apply(
        self, activations: Float[Tensor, "*batch units"], rows: Sequence[int] | None
    ) -> Float[Tensor, "*batch units"]:
        """Return a copy of the values; see :meth:`Edit.apply`."""
        return self.at(activations, rows).clone()


@dataclass(frozen=True, slots=True, eq=False)
class Clamp:
    """Limit activations to [low, high]; NaN stays NaN.

    Parameters
    ----------
    low, high : float or array of shape [unit], optional
        The limits, in the activations' own scale; None is no limit.
    """

    low: Any = None
    high: Any = None

    by_position = False

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("expected low or high, got neither")
        for name in ("low", "high"):
            limit = getattr(self, name)
            object.__setattr__(self, name, None if limit is None else torch.as_tensor(limit))
        if self.low is not None and self.high is not None and bool((self.low > self.high).any()):
            raise ValueError(f"expected low <= high, got {self.low} and {self.high}")

    def check(self, n_units: int, n_positions: int | None) -> None:
        """Raise where the limits' shape does not fit; see :meth:`Edit.check`."""
        for limit in (self.low, self.high):
            if limit is not None and tuple(limit.shape) not in ((), (n_units,)):
                raise ValueError(
                    f"expected limits for {n_units} units, got shape {list(limit.shape)}"
                )

    def apply(
        self, activations: Float[Tensor, "*batch units"], rows: Sequence[int] | None
    ) -> Float[Tensor, "*batch units"]:
        """Return the limited activations; see :meth:`Edit.apply`."""
        low, high = (
            None if limit is None else limit.to(activations) for limit in (self.low, self.high)
        )
        return torch.clamp(activations, min=low, max=high)
