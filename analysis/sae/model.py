"""Sparse autoencoders, with SAELens's arithmetic and parameter names."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from actlas.store.errors import SaeError

Kind = Literal["relu", "topk", "jumprelu", "gated"]

Normalization = Literal["none", "constant_norm_rescale", "layer_norm"]

KINDS: tuple[str, ...] = get_args(Kind)

LAYER_NORM_EPSILON = 1e-5

_BIASES: dict[str, tuple[str, ...]] = {
    "relu": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}


class SparseAutoencoder(nn.Module):
    """A dictionary of ``d_sae`` features of rows of ``d_in`` units.

    With ``z = x - b_dec`` (or ``x``, where ``apply_b_dec_to_input`` is false) and
    ``a = z W_enc + b_enc``, the codes are

    - relu: ``max(a, 0)`` (Bricken et al. 2023, "Towards monosemanticity");
    - topk: the ``k`` largest of ``a``, where above zero (Gao et al. 2024, arXiv 2406.04093);
    - jumprelu: ``a`` where above ``max(threshold, 0)`` (Rajamanoharan et al. 2024,
      arXiv 2407.14435);
    - gated: ``max(z W_enc exp(r_mag) + b_mag, 0)`` where ``z W_enc + b_gate`` is above zero
      (Rajamanoharan et al. 2024, arXiv 2404.16014);

    and ``x`` is rebuilt as ``codes W_dec + b_dec``.

    Parameters
    ----------
    d_in, d_sae : int
    kind : {"relu", "topk", "jumprelu", "gated"}
    k : int, optional
        Of topk.
    apply_b_dec_to_input : bool
    normalize : {"none", "constant_norm_rescale", "layer_norm"}
        What is done to each row before, and undone after.
    rescale_by_decoder_norm : bool
        Of topk: choose, and give, codes times the norm of their decoder row.
    hookpoint, model_id : str, optional
        What it was trained on.

    Attributes
    ----------
    W_enc : Parameter, shape [d_in, d_sae]
    W_dec : Parameter, shape [d_sae, d_in]
    b_dec : Parameter, shape [d_in]
    b_enc : Parameter, shape [d_sae]
        All float32, and zero until they are set.
    sha256 : str
        Of configuration and weights as they were loaded or saved; empty before.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    b_enc: nn.Parameter
    threshold: nn.Parameter
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        kind: Kind = "topk",
        k: int | None = None,
        apply_b_dec_to_input: bool = True,
        normalize: Normalization = "none",
        rescale_by_decoder_norm: bool = False,
        hookpoint: str | None = None,
        model_id: str | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise SaeError(f"kind {kind!r}: expected one of {', '.join(KINDS)}.", field="kind")
        if kind == "topk" and (k is None or not 1 <= k <= d_sae):
            raise SaeError(f"k {k}: expected 1 to {d_sae}, the number of features.", field="k")
        self.kind, self.k, self.d_in, self.d_sae = kind, k, d_in, d_sae
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.normalize = normalize
        self.rescale_by_decoder_norm = rescale_by_decoder_norm
        self.hookpoint, self.model_id = hookpoint, model_id
        self.sha256 = ""
        for name, shape in shapes(kind, d_in, d_sae).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes of rows ``x`` [n, d_in]: [n, d_sae], none below zero."""
        return self._activate(self._centred(self._normalized(x.float())[0]))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the rows [n, d_in] that codes [n, d_sae] stand for, on the normalized scale.

        Where rows are normalized one by one, what undoes it is not in the codes: use
        :meth:`forward` to rebuild raw rows.
        """
        if self.rescale_by_decoder_norm:
            codes = codes * (1 / self.W_dec.norm(dim=-1))
        return codes @ self.W_dec + self.b_dec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return rows ``x`` [n, d_in], encoded and rebuilt."""
        normalized, shift, scale = self._normalized(x.float())
        rebuilt = self.decode(self._activate(self._centred(normalized)))
        return rebuilt if scale is None else rebuilt * scale + (0 if shift is None else shift)

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``a`` of rows that need no normalization; shape [n, d_sae]."""
        return torch.addmm(self.b_enc, self._centred(x), self.W_enc)

    def _centred(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.b_dec if self.apply_b_dec_to_input else x

    def _activate(self, z: torch.Tensor) -> torch.Tensor:
        if self.kind == "gated":
            gate = z @ self.W_enc + self.b_gate > 0
            magnitude = z @ (self.W_enc * self.r_mag.exp()) + self.b_mag
            return gate * magnitude.relu()
        a = z @ self.W_enc + self.b_enc
        if self.kind == "relu":
            return a.relu()
        if self.kind == "jumprelu":
            return a.relu() * (a > self.threshold)
        assert self.k is not None
        if self.rescale_by_decoder_norm:
            a = a * self.W_dec.norm(dim=-1)
        top = torch.topk(a, self.k, dim=-1, sorted=False)
        return torch.zeros_like(a).scatter_(-1, top.indices, top.values.relu())

    def _normalized(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return rows as they are encoded, and the shift and scale that bring them back."""
        if self.normalize == "constant_norm_rescale":
            factor = self.d_in**0.5 / x.norm(dim=-1, keepdim=True)
            return x * factor, None, 1 / factor
        if self.normalize == "layer_norm":
            shift = x.mean(dim=-1, keepdim=True)
            scale = (x - shift).std(dim=-1, keepdim=True)
            return (x - shift) / (scale + LAYER_NORM_EPSILON), shift, scale
        return x, None, None

    def extra_repr(self) -> str:
        """Say what it is."""
        k = f", k={self.k}" if self.k is not None else ""
        return f"{self.kind}{k}, d_in={self.d_in}, d_sae={self.d_sae}, hookpoint={self.hookpoint}"


def shapes(kind: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a kind, by name, with their shapes."""
    found: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    return found | dict.fromkeys(_BIASES[kind], (d_sae,))
