"""A model as a plan names it: described without its weights, loaded only when it is that one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.architecture import (
    LOADING_ERRORS,
    architecture_of,
    auto_class,
    build_skeleton,
    compute_dtype_of,
    context_length_of,
    is_causal,
    loading_error,
    quiet,
    size_of,
)
from actlas.pipeline.checks import check_windows
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.weights import (
    CONFIG_FILE,
    file_sha256,
    locate_model,
    weight_files,
    weights_sha256,
)
from actlas.store.errors import ModelError
from actlas.store.schema import ModelSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model without its weights.

    Attributes
    ----------
    spec : ModelSpec
        What the plan holds.
    tokenizer : transformers.PreTrainedTokenizerBase
        The plan's tokenizer: the model's own, or the one asked for.
    skeleton : torch.nn.Module
        The model on torch's meta device: every module and shape, no numbers.
    n_parameters : int
        Tied ones counted once.
    folder : Path
        Where its files lie on this machine.
    """

    spec: ModelSpec
    tokenizer: Any
    skeleton: nn.Module
    n_parameters: int
    folder: Path


def describe_model(options: PlanOptions) -> ModelDescription:
    """Describe a model from its files without loading its weights into memory.

    Parameters
    ----------
    options : PlanOptions
        ``model``, ``revision``, ``tokenizer``, ``trust_remote_code`` and ``model_dtype`` are read.

    Raises
    ------
    ModelError
        The model or the tokenizer is not there, cannot be loaded, or is of a kind that has no
        stack of blocks over one sequence of tokens.
    """
    code = options.trust_remote_code
    identity, folder, revision = locate_model(options.model, options.revision, code=code)
    config = load_config(folder, trust_remote_code=code)
    text = config.get_text_config()
    architecture = architecture_of(config)
    files = weight_files(folder)
    skeleton = build_skeleton(config, architecture, trust_remote_code=code)
    spec = ModelSpec(
        id=identity,
        revision=revision,
        architecture=architecture,
        weights_sha256=weights_sha256(files),
        config_sha256=file_sha256(folder / CONFIG_FILE),
        d_model=size_of(text, "hidden_size", folder),
        n_layers=size_of(text, "num_hidden_layers", folder),
        context_length=context_length_of(text, skeleton),
        causal=is_causal(config, architecture),
        compute_dtype=compute_dtype_of(options.model_dtype, config, files),
        trust_remote_code=code,
    )
    if options.max_length is not None:
        check_windows(config, spec.context_length, options.max_length)
    tokenizer = load_tokenizer(options.tokenizer or str(folder), None, code)
    n_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    return ModelDescription(spec, tokenizer, skeleton, n_parameters, folder)


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return transformers' config of a local folder.

    Raises
    ------
    ModelError
        There is none, it cannot be parsed, or it needs code of its own that was not allowed.
    """
    from transformers import AutoConfig

    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(
            f"{folder} has no {CONFIG_FILE}: it is no transformers model. Give the folder that "
            "model.save_pretrained(...) wrote.",
            path=str(folder),
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise loading_error("configuration", str(folder), error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder}: {type(config).__name__} is an encoder-decoder, which reads two sequences. "
            "Expected a decoder or an encoder.",
            path=str(folder),
        )
    return config


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a hub id, a local folder or ``builtin:NAME``.

    Raises
    ------
    ModelError
        There is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    located = locate_model(name, revision, code=trust_remote_code, weights=False)
    folder = str(located.folder)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise loading_error("tokenizer", name, error) from error


def load_model(
    spec: ModelSpec,
    path_or_id: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
) -> nn.Module:
    """Load the model that a plan names, and no other.

    Parameters
    ----------
    spec : ModelSpec
        The plan's model.
    path_or_id : str, optional
        Where to load it from. Default: the plan's own id.
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    dtype : str, optional
        What computes. Default: the plan's compute dtype.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, without a key-value cache.

    Raises
    ------
    ModelError
        The files differ from the plan's (``details['field']`` says in what), lack weights, or
        cannot be loaded.
    """
    import torch

    folder = find_model(spec, path_or_id)
    config = load_config(folder, trust_remote_code=spec.trust_remote_code)
    try:
        with quiet():
            model, report = auto_class(spec.architecture).from_pretrained(
                str(folder),
                config=config,
                dtype=getattr(torch, dtype or spec.compute_dtype),
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                output_loading_info=True,
            )
    except LOADING_ERRORS as error:
        raise loading_error("weights", str(folder), error) from error
    _check_complete(report, folder)
    for part in (model.config, model.config.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    loaded: nn.Module = model.eval().to(device)
    return loaded


def find_model(spec: ModelSpec, path_or_id: str | None = None) -> Path:
    """Return the folder of the model that a plan names, its files checked against the plan.

    Raises
    ------
    ModelError
        It is not there, or ``config_sha256`` or ``weights_sha256`` differ from the plan's.
    """
    own = path_or_id is None or path_or_id == spec.id
    folder = locate_model(
        spec.id if path_or_id is None else path_or_id,
        spec.revision if own else None,
        code=spec.trust_remote_code,
    ).folder
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder} has no {CONFIG_FILE}: it is no transformers model.")
    checks = {
        "config_sha256": (file_sha256(folder / CONFIG_FILE), spec.config_sha256),
        "weights_sha256": (weights_sha256(weight_files(folder)), spec.weights_sha256),
    }
    for field, (found, expected) in checks.items():
        if found != expected:
            raise ModelError(
                f"{folder} is not the model that the plan names: its {field} is {found[:16]}…, "
                f"the plan's is {expected[:16]}…. Put the original files back, or plan another "
                "store for this model.",
                field=f"model.{field}",
                found=found,
                expected=expected,
                path=str(folder),
            )
    return folder


def _check_complete(report: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint whose gaps transformers has filled with random numbers."""
    # A pooler on top of the last block is often left out of a checkpoint; no hookpoint reads it.
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    if missing or mismatched:
        raise ModelError(
            f"{folder}: the weight files lack {len(missing)} parameters ({', '.join(missing[:3])}) "
            f"and have {len(mismatched)} of another shape ({', '.join(mismatched[:3])}). "
            f"Download the model again, or see that {CONFIG_FILE} belongs to these weights.",
            path=str(folder),
        )
