"""The training step of a sparse autoencoder, with the state that the next step depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.train import sparse_topk

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

AUX_COEFFICIENT = 1 / 32
"""Weight of the auxiliary loss of dead features (Gao et al. 2024, appendix A.2)."""

DEAD_AFTER_ROWS = 10_000_000
"""Rows without firing after which a feature is dead (Gao et al. 2024), in a long run."""

RELU_DECODER_NORM = 0.1

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters of a training.

    Attributes
    ----------
    architecture : {"relu", "topk"}
        The architecture of the sparse autoencoder.
    k : int
        For topk: features that a row keeps.
    l1 : float
        For relu: the weight of the sparsity loss.
    lr : float
        The largest learning rate.
    n_steps, n_rows : int
        Steps and rows of the whole run; a row counts once for each time that it is seen.
    """

    architecture: Literal["relu", "topk"]
    k: int
    l1: float
    lr: float
    n_steps: int
    n_rows: int

    @property
    def dead_after(self) -> int:
        """Rows without firing after which a feature is dead and gets the auxiliary loss."""
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
    """Measurements of a step, on its batch before the update.

    Attributes
    ----------
    loss : float
        The training loss.
    explained_variance : float
        Explained variance of the batch, relative to the variance of the whole store.
    l0 : float
        Mean number of features above zero on a row.
    dead_share : float
        Share of features that have not fired for ``dead_after`` rows.
    """

    loss: float
    explained_variance: float
    l0: float
    dead_share: float


class Trainer:
    """The trainer of a sparse autoencoder, on rows scaled to a mean squared norm of ``d_in``.

    ReLU minimizes ``|x - x'|^2 + l1 * sum(activations * |decoder row|)``, with free decoder norms
    (Anthropic, "Circuits updates, April 2024": training sparse autoencoders). TopK minimizes
    ``|x - x'|^2`` with decoder rows of norm 1, plus the auxiliary loss AuxK: the dead features that
    would fire most reconstruct the residual (Gao et al. 2024, arXiv 2406.04093, appendix A). Both
    terms of TopK are divided by the variance. The optimizer is Adam, with gradients clipped to
    norm 1.

    Parameters
    ----------
    sae : SparseAutoencoder
        Trained in place, after :func:`initialize`.
    recipe : Recipe
        The hyperparameters.
    variance : float
        Variance of the scaled rows, summed over units.
    """

    def __init__(self, sae: SparseAutoencoder, recipe: Recipe, variance: float) -> None:
        self.sae, self.recipe, self.variance = sae, recipe, variance
        self.step_number = 0
        fused = sae.W_dec.device.type in ("cpu", "cuda", "mps")
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=recipe.lr, fused=fused)
        self.silent_rows = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self.sparse = recipe.architecture == "topk" and sparse_topk.is_worth_it(sae)

    @property
    def dead(self) -> torch.Tensor:
        """Whether each feature is dead; bool, shape [d_sae]."""
        return self.silent_rows >= self.recipe.dead_after

    def step(self, x: Float[Tensor, "rows d_in"], *, measure: bool = True) -> Progress | None:
        """Take one step.

        Parameters
        ----------
        x : Tensor of float32, shape [rows, d_in]
            A batch of scaled rows.
        measure : bool
            Whether to return measurements, which makes a GPU wait for the step.
        """
        sae, recipe = self.sae, self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr_at(self.step_number)
        self.optimizer.zero_grad(set_to_none=True)
        codes, reconstruction, fired = self._reconstruct(x)
        residual = x - reconstruction
        squared = residual.square().sum() / len(x)
        if recipe.architecture == "relu":
            norms = sae.W_dec.norm(dim=-1)
            l1 = recipe.l1_at(self.step_number)
            loss = squared + l1 * (codes.sum(dim=0) / len(x)) @ norms
        else:
            loss = (squared + AUX_COEFFICIENT * self._aux_loss(x, residual)) / self.variance
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

    def _reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return activations, the reconstruction, and the rows on which each feature fired."""
        sae, k = self.sae, self.recipe.k
        if self.sparse:
            values, features = sparse_topk.top_codes(sae, x)
            fired = torch.bincount(features[values > 0], minlength=sae.d_sae)
            return values, sparse_topk.reconstruct(sae, values, features), fired
        a = sae.pre_activations(x)
        if self.recipe.architecture == "relu":
            codes = a.relu()
        else:
            top = torch.topk(a, k, dim=-1, sorted=False)
            codes = torch.zeros_like(a).scatter(-1, top.indices, top.values.relu())
        return codes, sae.decode(codes), (codes > 0).sum(dim=0)

    def _aux_loss(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the squared error with which the top dead features reconstruct the residual."""
        sae = self.sae
        dead = self.dead.nonzero().squeeze(1)
        if len(dead) == 0:
            return x.new_zeros(())
        a = torch.addmm(sae.b_enc[dead], x - sae.b_dec, sae.W_enc[:, dead])
        wanted = max(1, sae.d_in // 2)
        k = min(wanted, len(dead))
        top = torch.topk(a, k, dim=-1, sorted=False)
        # No ReLU here, as in SAELens and sparsify: it passes no gradient below zero, so a feature
        # that is below zero on every row would stay dead for ever.
        codes = a.new_zeros(len(a), len(dead)).scatter(-1, top.indices, top.values)
        missed = residual.detach() - codes @ sae.W_dec[dead]
        # A few dead features cannot reconstruct much: they weigh less, as in SAELens and sparsify.
        return (k / wanted) * missed.square().sum() / len(a)

    def _update(self) -> None:
        w_dec = self.sae.W_dec
        unit = self.recipe.architecture == "topk"
        with torch.no_grad():
            if unit and w_dec.grad is not None:  # the part that would only change the norm
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
        """Restore the state of :meth:`state`.

        Parameters
        ----------
        step_number : int
            Steps that had been taken.
        state : dict of str to Tensor
            The result of :meth:`state`.
        """
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
    """Set the initial weights.

    Decoder rows have random directions, the encoder is the decoder's transpose, and the only bias
    is ``b_dec``, the mean of the rows.

    Parameters
    ----------
    sae : SparseAutoencoder
        Changed in place.
    mean : Tensor of float32, shape [d_in]
        Mean of the scaled rows.
    seed : int
        Seed of the directions, which have a generator of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sae.d_sae, sae.d_in, generator=generator)
    rows /= rows.norm(dim=-1, keepdim=True)
    norm = RELU_DECODER_NORM if sae.architecture == "relu" else 1.0
    sae.W_dec.copy_(rows * norm)
    sae.W_enc.copy_(rows.T * norm)
    sae.b_enc.zero_()
    sae.b_dec.copy_(mean)


@torch.no_grad()
def fold(sae: SparseAutoencoder, scale: float) -> None:
    """Fold a scale into the weights, so that weights trained on scaled rows take raw rows.

    Decoder rows get norm 1, so that a feature activation is the length of the vector that its
    feature adds to a row, in the units of the row. Reconstructions stay the same, since ReLU and
    TopK are homogeneous.

    Parameters
    ----------
    sae : SparseAutoencoder
        Changed in place.
    scale : float
        The factor that rows were multiplied by in training.
    """
    norms = sae.W_dec.norm(dim=-1).clamp(min=1e-8)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms)
    sae.b_enc.mul_(norms / scale)
    sae.b_dec.div_(scale)
