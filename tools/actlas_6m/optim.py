"""Muon: momentum whose update is orthogonalized, for the matrices of a network's blocks.

After K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024),
https://kellerjordan.github.io/posts/muon/, with decoupled weight decay. Matrices of one shape
are stacked, so that the Newton-Schulz steps are few batched products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz polynomial given by Jordan et al."""


def orthogonalize(matrices: Tensor, n_steps: int = 5) -> Tensor:
    """Replace the singular values of each matrix by values near one.

    Parameters
    ----------
    matrices
        Float, shape (matrices, rows, columns).
    n_steps
        Newton-Schulz steps; five bring singular values to about [0.7, 1.2].

    Returns
    -------
    The same shape, in bfloat16: the coefficients were chosen to bear it.
    """
    a, b, c = QUINTIC
    wide = matrices.size(-2) <= matrices.size(-1)
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.mT
    return result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Parameters
    ----------
    parameters
        Matrices only (two dimensions).
    lr
        Spectral norm of an update for a square matrix.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    shape = tuple(parameter.shape)
                    raise ValueError(f"Muon takes matrices, got shape {shape}; use AdamW for it")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalize(torch.stack([self._momentum(p, group) for p in parameters]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, group: dict[str, float]) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        grad, momentum = parameter.grad, state["momentum"]
        assert grad is not None
        momentum.lerp_(grad, 1.0 - group["momentum"])
        return grad.lerp(momentum, group["momentum"])


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
