"""SAELens's file format: ``cfg.json`` and ``sae_weights.safetensors``, read and written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actlas.analysis.sae.model import Architecture, Normalization, SparseAutoencoder, shapes
from actlas.store.errors import SaeError, run_fault
from actlas.store.format.sealing import too_deep
from actlas.store.version import VERSION

CONFIG_FILE = "cfg.json"

WEIGHTS_FILE = "sae_weights.safetensors"

OWN_FILE = "actlas.json"

SAELENS_VERSION = "6.0.0"
"""The version of SAELens's format that is written."""

MAX_CONFIG_BYTES = 1 << 24

_DTYPES = ("F32", "F16", "BF16", "F64")

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

_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "attn_z",
    "mlp.hook_post": "mlp_hidden",
}
"""TransformerLens's names of hooks inside a block, and our names of the same tensors."""

_HOOK = re.compile(rf"blocks\.(\d+)\.({'|'.join(map(re.escape, _HOOKS))})")


def load_sae(path: str | os.PathLike[str], device: str = "cpu") -> SparseAutoencoder:
    """Load a sparse autoencoder that actlas or SAELens saved. No code of the files is run.

    Parameters
    ----------
    path : path
        A folder with ``cfg.json`` and ``sae_weights.safetensors``.
    device : str
        The torch device to load it to.

    Returns
    -------
    SparseAutoencoder
        In float32, whatever dtype it was saved in.

    Raises
    ------
    SaeError
        The folder has no sparse autoencoder, its architecture is not supported, or its files are
        damaged.
    """
    folder = Path(path).expanduser().absolute()
    config, config_bytes = _read_config(folder)
    sae = _build(config, folder)
    weights = _read_weights(folder, shapes(sae.architecture, sae.d_in, sae.d_sae))
    sae.load_state_dict(weights)
    sae.sha256 = _sha256(config_bytes, folder / WEIGHTS_FILE)
    return sae.to(device).eval()


def save_sae(
    sae: SparseAutoencoder, folder: str | os.PathLike[str], metadata: Mapping[str, Any]
) -> None:
    """Save a sparse autoencoder so that actlas and SAELens load it.

    Parameters
    ----------
    sae : SparseAutoencoder
        The sparse autoencoder; its ``sha256`` is set.
    folder : path
        Created where it does not exist.
    metadata : mapping
        Plain values about the training, kept in ``actlas.json``.

    Raises
    ------
    RunFaultError
        The disk is full or fails.
    """
    from safetensors.torch import save_file

    to = Path(folder)
    config = _config_of(sae)
    own = {"actlas_version": VERSION, "hookpoint": sae.hookpoint, "model_id": sae.model_id}
    tensors = {name: p.detach().float().cpu().contiguous() for name, p in sae.named_parameters()}
    try:
        to.mkdir(parents=True, exist_ok=True)
        save_file(tensors, to / WEIGHTS_FILE)
        data = (json.dumps(config, indent=1) + "\n").encode()
        (to / CONFIG_FILE).write_bytes(data)
        (to / WEIGHTS_FILE).chmod((to / CONFIG_FILE).stat().st_mode)  # safetensors: owner only
        (to / OWN_FILE).write_text(json.dumps({**own, **metadata}, indent=1) + "\n")
    except OSError as error:
        fault = run_fault(error, str(to))
        if fault is None:
            raise
        raise fault from error
    sae.sha256 = _sha256(data, to / WEIGHTS_FILE)


def _config_of(sae: SparseAutoencoder) -> dict[str, Any]:
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
    hook = next((hook for hook, own in _HOOKS.items() if own == kind), None)
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
    return f"{_HOOKS[match[2]]}.{match[1]}" if match else hook_name


def _read_config(folder: Path) -> tuple[dict[str, Any], bytes]:
    if not folder.is_dir():
        raise SaeError(
            f"{folder}: no such folder. Expected one with {CONFIG_FILE} and {WEIGHTS_FILE}, as "
            "`actlas sae train` and SAELens save it, or the name of a feature set whose encoding "
            "was started.",
            path=str(folder),
        )
    path = folder / CONFIG_FILE
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_CONFIG_BYTES:
            raise SaeError(
                f"{path}: expected a configuration, a plain file of at most "
                f"{MAX_CONFIG_BYTES >> 20} MiB.",
                path=str(path),
            )
        data = path.read_bytes()
        config = json.loads(data)
    except FileNotFoundError as error:
        raise SaeError(
            f"{folder}: no {CONFIG_FILE} here. Expected the folder of a sparse autoencoder.",
            path=str(folder),
        ) from error
    except (ValueError, RecursionError) as error:
        raise SaeError(f"{path}: expected JSON ({error}).", path=str(path)) from error
    except OSError as error:
        raise SaeError(f"{path}: cannot be read ({error.strerror}).", path=str(path)) from error
    if not isinstance(config, dict) or too_deep(config):
        raise SaeError(f"{path}: expected a JSON object that is not deeply nested.", path=str(path))
    return config, data


def _build(config: dict[str, Any], folder: Path) -> SparseAutoencoder:
    """Return the module that a configuration describes, in its present or an older form."""
    _check_types(config, folder)
    architecture = _architecture(config, folder)
    metadata = config.get("metadata")
    known = metadata if isinstance(metadata, dict) else config
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
    _check_file_size(folder, architecture, int(config["d_in"]), int(config["d_sae"]))
    return SparseAutoencoder(
        int(config["d_in"]),
        int(config["d_sae"]),
        architecture=architecture,
        k=k if architecture == "topk" else None,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        normalize=_normalization(config, folder),
        rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        hookpoint=_hookpoint(known.get("hook_name", known.get("hook_point"))),
        model_id=known.get("model_name"),
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
        "model_name": (str, type(None)),
    }
    metadata = config.get("metadata")
    if isinstance(metadata, dict) and not isinstance(metadata.get("model_name"), str | None):
        raise SaeError(
            f"{folder / CONFIG_FILE}: metadata.model_name is not a string.", field="model_name"
        )
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


def _check_file_size(folder: Path, architecture: Architecture, d_in: int, d_sae: int) -> None:
    """Check that the weights' file can hold the sizes, before memory is allocated for them."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise SaeError(f"{folder}: no {WEIGHTS_FILE} here.", path=str(folder))
    least = sum(torch.Size(shape).numel() for shape in shapes(architecture, d_in, d_sae).values())
    if least > path.stat().st_size:  # less than a byte for each number
        raise SaeError(
            f"{path}: {path.stat().st_size:,} bytes cannot hold {architecture} with d_in {d_in} "
            f"and d_sae {d_sae}: {CONFIG_FILE} belongs to other weights, or this file is "
            "truncated.",
            path=str(path),
        )


def _read_weights(folder: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    try:
        with safe_open(str(path), framework="pt") as file:
            have = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            wrong = [
                f"{name} {have.get(name, 'missing')}, expected {shape}"
                for name, shape in expected.items()
                if have.get(name) != shape
            ]
            if wrong:
                raise SaeError(
                    f"{path}: does not fit {CONFIG_FILE}: {'; '.join(wrong)}.", path=str(path)
                )
            weights = {}
            for name in expected:
                if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                    raise SaeError(
                        f"{path}: {name} has dtype {dtype}, expected {', '.join(_DTYPES)}.",
                        path=str(path),
                    )
                weights[name] = file.get_tensor(name).float()
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{path}: cannot be read ({error}).", path=str(path)) from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise SaeError(f"{path}: {name} holds NaN or infinity.", path=str(path), field=name)
    return weights


def _sha256(config: bytes, weights: Path) -> str:
    """Return the sha256 over both files, each preceded by its size."""
    digest = hashlib.sha256(len(config).to_bytes(8, "little") + config)
    digest.update(weights.stat().st_size.to_bytes(8, "little"))
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
