"""One training step of a sparse autoencoder, and all of the state that the next one needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.train import topk as train_topk

AUX_COEFFICIENT = 1 / 32
"""Weight of the loss of dead features (Gao et al. 2024, appendix A.2)."""

DEAD_AFTER_ROWS = 10_000_000
"""Rows without firing after which a feature counts as dead (Gao et al. 2024), in a long run."""

RELU_DECODER_NORM = 0.1

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a step depends on, apart from its rows.

    Attributes
    ----------
    kind : {"relu", "topk"}
    k : int
        Of topk.
    l1 : float
        Of relu: the weight of the sparsity loss.
    lr : float
        The largest learning rate.
    n_steps, n_rows : int
        Of the whole run; n_rows counts a row once for each time that it is seen.
    """

    kind: Literal["relu", "topk"]
    k: int
    l1: float
    lr: float
    n_steps: int
    n_rows: int

    @property
    def dead_after(self) -> int:
        """Rows without firing after which a feature gets the loss of dead ones."""
        return min(DEAD_AFTER_ROWS, max(1, self.n_rows // 20))

    def lr_at(self, step: int) -> float:
        """Return the learning rate: up over 5 % of the steps, down to 0 over the last 20 %."""
        up = (step + 1) / max(1, math.ceil(0.05 * self.n_steps))
        down = (self.n_steps - step) / max(1, math.ceil(0.2 * self.n_steps))
        return self.lr * min(1.0, up, down)

    def l1_at(self, step: int) -> float:
        """Return the weight of the sparsity loss: up from 0 over the first 5 % of the steps."""
        return self.l1 * min(1.0, step / max(1, math.ceil(0.05 * self.n_steps)))


class Progress(NamedTuple):
    """What a step saw.

    Attributes
    ----------
    loss : float
        That was made smaller.
    explained_variance : float
        Of this batch's rows, before the step; the variance is that of the whole store.
    l0 : float
        Mean number of features above zero.
    dead_share : float
        Features that have not fired for ``dead_after`` rows.
    """

    loss: float
    explained_variance: float
    l0: float
    dead_share: float


class Trainer:
    """Trains on batches of rows that are scaled to a mean squared norm of ``d_in``.

    ReLU minimizes ``|x - x'|^2 + l1 * sum(codes * |decoder row|)``, with free decoder norms
    (Anthropic, "Circuits updates, April 2024": training sparse autoencoders). TopK minimizes
    ``|x - x'|^2`` with decoder rows of norm 1, and has the dead features that would fire most
    rebuild what is left (AuxK; Gao et al. 2024, arXiv 2406.04093, appendix A); both of its terms
    are divided by the variance. Adam; gradients are clipped to norm 1.

    Parameters
    ----------
    sae : SparseAutoencoder
        Changed in place; :func:`initialize` makes it ready.
    recipe : Recipe
    variance : float
        Of the scaled rows, summed over units.
    """

    def __init__(self, sae: SparseAutoencoder, recipe: Recipe, variance: float) -> None:
        self.sae, self.recipe, self.variance = sae, recipe, variance
        self.step_number = 0
        fused = sae.W_dec.device.type in ("cpu", "cuda", "mps")
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=recipe.lr, fused=fused)
        self.silent_rows = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self.sparse = recipe.kind == "topk" and train_topk.is_worth_it(sae)

    @property
    def dead(self) -> torch.Tensor:
        """Which features have not fired for long; bool, shape [d_sae]."""
        return self.silent_rows >= self.recipe.dead_after

    def step(self, x: torch.Tensor, *, measure: bool = True) -> Progress | None:
        """Train on scaled rows ``x`` [n, d_in]; return what was seen, if ``measure``."""
        sae, recipe = self.sae, self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr_at(self.step_number)
        self.optimizer.zero_grad(set_to_none=True)
        codes, rebuilt, fired = self._rebuild(x)
        residual = x - rebuilt
        squared = residual.square().sum() / len(x)
        if recipe.kind == "relu":
            norms = sae.W_dec.norm(dim=-1)
            l1 = recipe.l1_at(self.step_number)
            loss = squared + l1 * (codes.sum(dim=0) / len(x)) @ norms
        else:
            loss = (squared + AUX_COEFFICIENT * self._of_the_dead(x, residual)) / self.variance
        loss.backward()
        self._update()
        with torch.no_grad():
            self.silent_rows += len(x)
            self.silent_rows[fired > 0] = 0
        self.step_number += 1
        if not measure:
            return None
        return Progress(
            loss=loss.item(),
            explained_variance=1 - squared.item() / self.variance,
            l0=fired.sum().item() / len(x),
            dead_share=self.dead.float().mean().item(),
        )

    def _rebuild(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return codes, rebuilt rows, and on how many rows each feature fired."""
        sae, k = self.sae, self.recipe.k
        if self.sparse:
            values, features = train_topk.top_codes(sae, x)
            fired = torch.bincount(features[values > 0], minlength=sae.d_sae)
            return values, train_topk.rebuild(sae, values, features), fired
        a = sae.pre_activations(x)
        if self.recipe.kind == "relu":
            codes = a.relu()
        else:
            top = torch.topk(a, k, dim=-1, sorted=False)
            codes = torch.zeros_like(a).scatter(-1, top.indices, top.values.relu())
        return codes, sae.decode(codes), (codes > 0).sum(dim=0)

    def _of_the_dead(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return how badly the dead features that would fire most rebuild the residual."""
        sae = self.sae
        dead = self.dead.nonzero().squeeze(1)
        if len(dead) == 0:
            return x.new_zeros(())
        a = torch.addmm(sae.b_enc[dead], x - sae.b_dec, sae.W_enc[:, dead])
        wanted = max(1, sae.d_in // 2)
        k = min(wanted, len(dead))
        top = torch.topk(a, k, dim=-1, sorted=False)
        # No ReLU here, as in SAELens and sparsify: below zero it would pass no gradient, and what
        # is below zero on every row would stay dead for ever.
        codes = a.new_zeros(len(a), len(dead)).scatter(-1, top.indices, top.values)
        missed = residual.detach() - codes @ sae.W_dec[dead]
        # Few dead features cannot rebuild much: they weigh less, as in SAELens and sparsify.
        return (k / wanted) * missed.square().sum() / len(a)

    def _update(self) -> None:
        w_dec = self.sae.W_dec
        unit = self.recipe.kind == "topk"
        with torch.no_grad():
            if unit and w_dec.grad is not None:  # what would only change the norm
                w_dec.grad -= (w_dec.grad * w_dec).sum(dim=-1, keepdim=True) * w_dec
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        with torch.no_grad():
            if unit:
                w_dec.div_(w_dec.norm(dim=-1, keepdim=True).clamp(min=1e-8))

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors that the next step depends on."""
        found = {"silent_rows": self.silent_rows}
        for name, parameter in self.sae.named_parameters():
            found[f"weights.{name}"] = parameter.detach()
            moments = self.optimizer.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{key}.{name}"] = moments.get(key, torch.zeros_like(parameter.detach()))
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    def load_state(self, step_number: int, state: dict[str, torch.Tensor]) -> None:
        """Go on where :meth:`state` was taken, after ``step_number`` steps."""
        self.step_number = step_number
        device = self.sae.W_dec.device
        self.silent_rows = state["silent_rows"].to(device)
        with torch.no_grad():
            for name, parameter in self.sae.named_parameters():
                parameter.copy_(state[f"weights.{name}"])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(step_number), device=device),
                    "exp_avg": state[f"exp_avg.{name}"].to(device),
                    "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(device),
                }


@torch.no_grad()
def initialize(sae: SparseAutoencoder, mean: torch.Tensor, seed: int) -> None:
    """Set the weights that training begins with.

    Decoder rows in random directions, the encoder their transpose, no bias but ``b_dec``, which is
    the mean of the rows: what is left to explain is what varies.

    Parameters
    ----------
    sae : SparseAutoencoder
    mean : Tensor, shape [d_in]
        Of the scaled rows.
    seed : int
        The global generator is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sae.d_sae, sae.d_in, generator=generator)
    rows /= rows.norm(dim=-1, keepdim=True)
    norm = RELU_DECODER_NORM if sae.kind == "relu" else 1.0
    sae.W_dec.copy_(rows * norm)
    sae.W_enc.copy_(rows.T * norm)
    sae.b_enc.zero_()
    sae.b_dec.copy_(mean)


@torch.no_grad()
def fold(sae: SparseAutoencoder, scale: float) -> None:
    """Change weights trained on rows times ``scale`` so that they take raw rows.

    Decoder rows get norm 1, so that a code is the length of what its feature adds to a row, in the
    units of the activations. ReLU and TopK rebuild the same, since both are homogeneous.
    """
    norms = sae.W_dec.norm(dim=-1).clamp(min=1e-8)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms)
    sae.b_enc.mul_(norms / scale)
    sae.b_dec.div_(scale)
