"""Sparse autoencoders: ReLU, TopK, JumpReLU, gated; SAELens's arithmetic and parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from actlas.store.errors import SaeError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Architecture = Literal["relu", "topk", "jumprelu", "gated"]

Normalization = Literal["none", "constant_norm_rescale", "layer_norm"]

ARCHITECTURES: tuple[str, ...] = get_args(Architecture)

LAYER_NORM_EPSILON = 1e-5

_BIASES: dict[str, tuple[str, ...]] = {
    "relu": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder: a dictionary of ``d_sae`` features for rows of ``d_in`` units.

    With ``z = x - b_dec`` (or ``x``, where ``apply_b_dec_to_input`` is false) and
    ``a = z W_enc + b_enc``, the feature activations are

    - relu: ``max(a, 0)`` (Bricken et al. 2023, "Towards monosemanticity");
    - topk: the ``k`` largest of ``a``, where above zero (Gao et al. 2024, arXiv 2406.04093);
    - jumprelu: ``a`` where above ``max(threshold, 0)`` (Rajamanoharan et al. 2024,
      arXiv 2407.14435);
    - gated: ``max(z W_enc exp(r_mag) + b_mag, 0)`` where ``z W_enc + b_gate`` is above zero
      (Rajamanoharan et al. 2024, arXiv 2404.16014);

    and the reconstruction of ``x`` is ``activations W_dec + b_dec``.

    Parameters
    ----------
    d_in, d_sae : int
        Units of a row, and number of features.
    architecture : {"relu", "topk", "jumprelu", "gated"}
        The activation function; see above.
    k : int, optional
        For topk: the number of features that a row keeps.
    apply_b_dec_to_input : bool
        Whether ``b_dec`` is subtracted from the input.
    normalize : {"none", "constant_norm_rescale", "layer_norm"}
        The normalization of each row before encoding, undone after decoding.
    rescale_by_decoder_norm : bool
        For topk: whether activations are multiplied by the norm of their decoder row.
    hookpoint, model_id : str, optional
        The hookpoint and the model that it was trained on.
    trained_on : mapping, optional
        What else is known of the rows that it was trained on, by SAELens's names; see
        :func:`~actlas.analysis.sae.trained_on.trained_on`.
    kind : str, optional
        Alias of ``architecture``.

    Attributes
    ----------
    W_enc : Parameter of float32, shape [d_in, d_sae]
        Encoder. All parameters are zero until they are set.
    W_dec : Parameter of float32, shape [d_sae, d_in]
        Decoder: a row for each feature.
    b_dec : Parameter of float32, shape [d_in]
        Bias of the decoder.
    b_enc : Parameter of float32, shape [d_sae]
        Bias of the encoder, except for gated.
    threshold : Parameter of float32, shape [d_sae]
        For jumprelu: the value above which a feature is active.
    b_gate, b_mag, r_mag : Parameter of float32, shape [d_sae]
        For gated: biases of the gate and of the magnitude, and the log scale of the magnitude.
    sha256 : str
        SHA-256 of configuration and weights as they were loaded or saved; empty before.
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
        architecture: Architecture = "topk",
        k: int | None = None,
        apply_b_dec_to_input: bool = True,
        normalize: Normalization = "none",
        rescale_by_decoder_norm: bool = False,
        hookpoint: str | None = None,
        model_id: str | None = None,
        trained_on: Mapping[str, Any] | None = None,
        kind: Architecture | None = None,
    ) -> None:
        super().__init__()
        architecture = architecture if kind is None else kind
        if architecture not in ARCHITECTURES:
            raise SaeError(
                f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}.",
                field="architecture",
            )
        if architecture == "topk" and (k is None or not 1 <= k <= d_sae):
            raise SaeError(f"k {k}: expected 1 to {d_sae}, the number of features.", field="k")
        self.architecture: Architecture = architecture
        self.k, self.d_in, self.d_sae = k, d_in, d_sae
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.normalize = normalize
        self.rescale_by_decoder_norm = rescale_by_decoder_norm
        self.hookpoint, self.model_id = hookpoint, model_id
        self.trained_on = dict(trained_on or {})
        self.sha256 = ""
        for name, shape in shapes(architecture, d_in, d_sae).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    @property
    def kind(self) -> Architecture:
        """Alias of ``architecture``."""
        return self.architecture

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Return the feature activations of raw rows.

        Parameters
        ----------
        x : Tensor, shape [rows, d_in]
            Raw rows in any dtype.

        Returns
        -------
        Tensor of float32, shape [rows, d_sae]
            None is below zero.
        """
        return self._activate(self._centred(self._normalized(x.float())[0]))

    def decode(self, codes: Float[Tensor, "rows d_sae"]) -> Float[Tensor, "rows d_in"]:
        """Return the reconstruction from feature activations, on the normalized scale.

        Where rows are normalized one by one, the activations do not hold what undoes it: use
        :meth:`forward` to reconstruct raw rows.

        Parameters
        ----------
        codes : Tensor of float32, shape [rows, d_sae]
            Feature activations.

        Returns
        -------
        Tensor of float32, shape [rows, d_in]
        """
        if self.rescale_by_decoder_norm:
            codes = codes * (1 / self.W_dec.norm(dim=-1))
        return codes @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Return the reconstruction of raw rows.

        Parameters
        ----------
        x : Tensor, shape [rows, d_in]
            Raw rows in any dtype.

        Returns
        -------
        Tensor of float32, shape [rows, d_in]
        """
        normalized, shift, scale = self._normalized(x.float())
        reconstruction = self.decode(self._activate(self._centred(normalized)))
        return (
            reconstruction
            if scale is None
            else reconstruction * scale + (0 if shift is None else shift)
        )

    def pre_activations(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Return ``a``, the input of the activation function, for rows on the normalized scale.

        Parameters
        ----------
        x : Tensor of float32, shape [rows, d_in]
            Rows that need no normalization.
        """
        return torch.addmm(self.b_enc, self._centred(x), self.W_enc)

    def _centred(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.b_dec if self.apply_b_dec_to_input else x

    def _activate(self, z: torch.Tensor) -> torch.Tensor:
        if self.architecture == "gated":
            gate = z @ self.W_enc + self.b_gate > 0
            magnitude = z @ (self.W_enc * self.r_mag.exp()) + self.b_mag
            return gate * magnitude.relu()
        a = z @ self.W_enc + self.b_enc
        if self.architecture == "relu":
            return a.relu()
        if self.architecture == "jumprelu":
            return a.relu() * (a > self.threshold)
        assert self.k is not None
        if self.rescale_by_decoder_norm:
            a = a * self.W_dec.norm(dim=-1)
        top = torch.topk(a, self.k, dim=-1, sorted=False)
        return torch.zeros_like(a).scatter_(-1, top.indices, top.values.relu())

    def _normalized(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return normalized rows, and the shift and the scale that undo the normalization."""
        if self.normalize == "constant_norm_rescale":
            factor = self.d_in**0.5 / x.norm(dim=-1, keepdim=True)
            return x * factor, None, 1 / factor
        if self.normalize == "layer_norm":
            shift = x.mean(dim=-1, keepdim=True)
            scale = (x - shift).std(dim=-1, keepdim=True)
            return (x - shift) / (scale + LAYER_NORM_EPSILON), shift, scale
        return x, None, None

    def extra_repr(self) -> str:
        """Return the architecture and sizes, for ``repr``."""
        k = f", k={self.k}" if self.k is not None else ""
        sizes = f"d_in={self.d_in}, d_sae={self.d_sae}"
        return f"{self.architecture}{k}, {sizes}, hookpoint={self.hookpoint}"


def shapes(architecture: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an architecture's parameters, by name."""
    found: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    return found | dict.fromkeys(_BIASES[architecture], (d_sae,))
