"""SAELens's configuration of a sparse autoencoder, ``cfg.json``: parsed, checked and written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from actlas.analysis.sae.model import Architecture, Normalization, SparseAutoencoder
from actlas.analysis.sae.record import CONFIG_FILE
from actlas.analysis.sae.trained_on import trained_on
from actlas.store.errors import SaeError
from actlas.store.format.aliases import BLOCK_HOOKS

SAELENS_VERSION = "6.0.0"
"""The version of SAELens's format that is written."""

_FROM_SAELENS: dict[str, Architecture] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}

_TO_SAELENS = {ours: name for name, ours in _FROM_SAELENS.items()}

_NORMALIZATIONS: dict[str, Normalization] = {
    "none": "none",
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}

_UNFOLDED = ("expected_average_only_in", "covariance_whitening")

_HOOK = re.compile(rf"blocks\.(\d+)\.({'|'.join(map(re.escape, BLOCK_HOOKS))})")


def config_of(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return SAELens's configuration of a sparse autoencoder."""
    config: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalize,
        "reshape_activations": "none",
        "architecture": _TO_SAELENS[sae.architecture],
        "metadata": {
            **sae.trained_on,
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": sae.model_id,
            "hook_name": _hook_name(sae.hookpoint),
        },
    }
    if sae.architecture == "topk":
        config["k"] = sae.k
        config["rescale_acts_by_decoder_norm"] = sae.rescale_by_decoder_norm
    return config


def _hook_name(hookpoint: str | None) -> str | None:
    """Return TransformerLens's name of a hookpoint where it has one, else our own name.

    >>> _hook_name("resid_post.3"), _hook_name("model.layers.3.mlp")
    ('blocks.3.hook_resid_post', 'model.layers.3.mlp')
    """
    if hookpoint is None:
        return None
    kind, _, layer = hookpoint.partition(".")
    hook = next((hook for hook, own in BLOCK_HOOKS.items() if own == kind), None)
    return f"blocks.{layer}.{hook}" if hook and layer.isdigit() else hookpoint


def _hookpoint(hook_name: object) -> str | None:
    """Return our name of a hook; None for TransformerLens's hooks that stores do not have.

    >>> _hookpoint("blocks.3.hook_resid_post"), _hookpoint("model.layers.3")
    ('resid_post.3', 'model.layers.3')
    >>> _hookpoint("blocks.3.attn.hook_z"), _hookpoint("blocks.3.attn.hook_pattern")
    ('attn_z.3', None)
    """
    if not isinstance(hook_name, str) or not hook_name:
        return None
    match = _HOOK.fullmatch(hook_name)
    if match is None and hook_name.startswith(("blocks.", "hook_")):
        return None
    return f"{BLOCK_HOOKS[match[2]]}.{match[1]}" if match else hook_name


class SaeConfig(NamedTuple):
    """The arguments of :class:`~actlas.analysis.sae.model.SparseAutoencoder` in a configuration."""

    d_in: int
    d_sae: int
    architecture: Architecture
    k: int | None
    apply_b_dec_to_input: bool
    normalize: Normalization
    rescale_by_decoder_norm: bool
    hookpoint: str | None
    model_id: str | None
    trained_on: dict[str, Any]


def parse(config: dict[str, Any], folder: Path) -> SaeConfig:
    """Return the arguments of the module that a configuration describes; older forms are read too.

    Parameters
    ----------
    config : dict
        The content of ``cfg.json``.
    folder : Path
        The folder of the file, for messages.

    Raises
    ------
    SaeError
        A field is missing, of another type, or not supported.
    """
    _check_types(config, folder)
    architecture = _architecture(config, folder)
    known = trained_on(config, folder)
    sizes = {name: config.get(name) for name in ("d_in", "d_sae")}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 31:
            raise SaeError(
                f"{folder / CONFIG_FILE}: {name} is {size!r}, expected a whole number above 0.",
                field=name,
            )
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if architecture == "topk" and (not isinstance(k, int) or isinstance(k, bool)):
        raise SaeError(f"{folder / CONFIG_FILE}: k is {k!r}, expected a whole number.", field="k")
    return SaeConfig(
        int(config["d_in"]),
        int(config["d_sae"]),
        architecture=architecture,
        k=k if architecture == "topk" else None,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        normalize=_normalization(config, folder),
        rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        hookpoint=_hookpoint(known.get("hook_name", known.get("hf_hook_name"))),
        model_id=known.get("model_name"),
        trained_on=known,
    )


def _check_types(config: dict[str, Any], folder: Path) -> None:
    """Check the types of known fields: a string ``"false"`` would count as true."""
    kinds: dict[str, tuple[type, ...]] = {
        "architecture": (str,),
        "activation_fn": (str, type(None)),
        "activation_fn_str": (str, type(None)),
        "activation_fn_kwargs": (dict, type(None)),
        "apply_b_dec_to_input": (bool,),
        "rescale_acts_by_decoder_norm": (bool,),
        "normalize_activations": (str, bool, type(None)),
        "reshape_activations": (str,),
    }
    for name, expected in kinds.items():
        if name in config and not isinstance(config[name], expected):
            words = " or ".join(each.__name__ for each in expected)
            raise SaeError(
                f"{folder / CONFIG_FILE}: {name} is {config[name]!r}, expected {words}.", field=name
            )


def _architecture(config: dict[str, Any], folder: Path) -> Architecture:
    named = config.get("architecture", "standard")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if named == "standard" and activation == "topk":  # before SAELens 6
        named = "topk"
    if named not in _FROM_SAELENS or (named == "standard" and activation not in ("relu", None)):
        what = named if named not in _FROM_SAELENS else f"standard with {activation}"
        raise SaeError(
            f"{folder / CONFIG_FILE}: architecture {what!r}; this version encodes with "
            f"{', '.join(_FROM_SAELENS)} (SAELens saves batchtopk as jumprelu).",
            field="architecture",
        )
    if config.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise SaeError(
            f"{folder / CONFIG_FILE}: reshape_activations is "
            f"{config['reshape_activations']!r}, expected none or hook_z (rows are flat).",
            field="reshape_activations",
        )
    if (config.get("activation_fn_kwargs") or {}).get("signed"):
        raise SaeError(
            f"{folder / CONFIG_FILE}: activation_fn_kwargs has signed true: feature activations "
            "of either sign are not supported.",
            field="activation_fn_kwargs",
        )
    if config.get("finetuning_scaling_factor"):
        raise SaeError(
            f"{folder / CONFIG_FILE}: a finetuning scaling factor is not supported: fold it into "
            "the decoder first.",
            field="finetuning_scaling_factor",
        )
    return _FROM_SAELENS[str(named)]


def _normalization(config: dict[str, Any], folder: Path) -> Normalization:
    named = config.get("normalize_activations") or "none"
    if named in _UNFOLDED or named is True:
        raise SaeError(
            f"{folder / CONFIG_FILE}: normalize_activations is {named!r}, whose measured factors "
            "are not in these files, so feature activations would be wrong. In SAELens, fold it "
            "first (fold_activation_norm_scaling_factor), then save.",
            field="normalize_activations",
        )
    if named not in _NORMALIZATIONS:
        raise SaeError(
            f"{folder / CONFIG_FILE}: normalize_activations is {named!r}, expected one of "
            f"{', '.join(_NORMALIZATIONS)}.",
            field="normalize_activations",
        )
    return _NORMALIZATIONS[str(named)]
