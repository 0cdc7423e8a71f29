"""What a model's configuration and class say of it, before it has any weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.model.files import CONFIG_FILE
from actlas.store.errors import ModelError
from actlas.store.format.schema import Modality

if TYPE_CHECKING:
    from torch import nn

# What transformers raises for a folder that it cannot make a model or a tokenizer of.
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    NotImplementedError,
)

_STAGES = {"hidden_size": "hidden_sizes", "num_hidden_layers": "depths"}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and from logging less than errors."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def modality_of(config: Any) -> Modality:
    """Say what a model reads: texts, images, or texts with images in them."""
    from transformers import AutoModel

    mapping = AutoModel._model_mapping
    found: Any = mapping.get(type(config), None)
    model_class = found[0] if isinstance(found, tuple) else found
    reads = getattr(model_class, "input_modalities", "text")
    reads = (reads,) if isinstance(reads, str) else tuple(reads or ())
    if "image" not in reads:
        return "text"
    return "mixed" if "text" in reads else "image"


def tower_of(config: Any) -> Any:
    """Return the configuration of the image tower, of a model with one for each; else as it is."""
    from transformers.models.auto import modeling_auto as auto

    generates = config.model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    towers = hasattr(config, "vision_config") and hasattr(config, "text_config")
    return config.vision_config if towers and not generates else config


def is_causal(config: Any, architecture: str) -> bool:
    """Say whether a position sees only earlier ones, from the configuration and the class.

    An explicit word in the configuration counts most (``is_causal``,
    ``use_bidirectional_attention``, ``is_decoder``), then the class's own name, then whether
    transformers offers the architecture for causal and not for masked language modelling.
    """
    from transformers.models.auto import modeling_auto as auto

    text = config.get_text_config()
    if getattr(text, "is_causal", None) is False:
        return False
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return False
    if modality_of(config) == "mixed":
        return True
    masked = text.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if masked and not architecture.endswith("ForCausalLM"):
        return bool(getattr(text, "is_decoder", False))
    known = text.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known or _is_causal_class(architecture)


def _is_causal_class(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))


def architecture_of(config: Any) -> str:
    """Return the class that the checkpoint was saved from, or the one transformers would choose."""
    named = getattr(config, "architectures", None)
    if named:
        return str(named[0])
    from transformers import AutoModel

    mapping = AutoModel._model_mapping
    if type(config) not in mapping:
        raise ModelError(
            f"{CONFIG_FILE} names no architecture and {type(config).__name__} is not one of "
            "transformers' own. Save the model again with model.save_pretrained(...)."
        )
    model_class: Any = mapping[type(config)]
    return str((model_class[0] if isinstance(model_class, tuple) else model_class).__name__)


def auto_class(architecture: str) -> Any:
    """Return transformers' loader: with the head for causal models, else the model alone."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    if _is_causal_class(architecture):
        return AutoModelForCausalLM
    mixed = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    return AutoModelForImageTextToText if architecture in mixed else AutoModel


def context_length_of(text: Any, skeleton: nn.Module) -> int | None:
    """Return how many positions the model knows; None where it says nothing of it."""
    length = getattr(text, "max_position_embeddings", None)
    for name, module in skeleton.named_modules():
        rows = getattr(module, "num_embeddings", None)
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and rows is not None and padding is not None:
            # RoBERTa counts positions from padding_idx + 1.
            length = min(length or rows, rows - padding - 1)
    return int(length) if length else None


def size_of(text: Any, name: str, folder: Path, skeleton: nn.Module | None = None) -> int:
    """Return a size from the configuration, or raise a :class:`ModelError`.

    A model of stages has one size for each: its width is that of the last, its blocks are all. One
    of images whose configuration says neither is given as ``skeleton``, and counted: the outputs
    of its last matrix or convolution, the members of its longest list.
    """
    size = getattr(text, name, None)
    stages = getattr(text, _STAGES.get(name, ""), None)
    if size is None and isinstance(stages, (list, tuple)) and stages:
        size = stages[-1] if name == "hidden_size" else sum(stages)
    if size is None and skeleton is not None:
        size = _counted(skeleton)[name]
    if not isinstance(size, int) or size < 1:
        raise ModelError(
            f"{folder / CONFIG_FILE}: expected a positive {name}, got {size!r} in "
            f"{type(text).__name__}.",
            path=str(folder),
        )
    return size


def _counted(skeleton: nn.Module) -> dict[str, int]:
    from torch import nn

    matrices = [parameter for parameter in skeleton.parameters() if parameter.ndim > 1]
    lists = [len(m) for m in skeleton.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    return {
        "hidden_size": int(matrices[-1].shape[0]) if matrices else 0,
        "num_hidden_layers": max(lists, default=1),
    }


def build_skeleton(config: Any, architecture: str, *, trust_remote_code: bool = False) -> nn.Module:
    """Return the model on torch's meta device: its modules and shapes, no memory.

    Attention and experts are the plain implementations, the ones whose shapes can be followed
    without numbers.
    """
    import torch

    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"
    try:
        with quiet(), torch.device("meta"):
            model: nn.Module = auto_class(architecture).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except LOADING_ERRORS as error:
        raise loading_error("architecture", architecture, error) from error
    return model.eval()


def loading_error(what: str, where: str, error: Exception) -> ModelError:
    """Say what could not be loaded, why, and what to do."""
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    advice = (
        "It needs Python code from its repository: read that code, then say --trust-remote-code."
        if "trust_remote_code" in str(error)
        else "See that the folder is whole and that this transformers version knows the model."
    )
    return ModelError(
        f"The {what} of {where} cannot be loaded: {reason}. {advice}",
        path=where,
        cause=type(error).__name__,
    )


def check_windows(config: Any, context_length: int | None, max_length: int) -> None:
    """See that the model knows as many positions as a window has, and reads each the same way.

    Some rotary embeddings turn every position otherwise once a sequence passes a given length.
    Rows would then depend on what else is in the batch and on where a shard is cut.

    Raises
    ------
    ModelError
        With the longest window that is right.
    """
    longest = min(filter(None, (context_length, _steady_length(config))), default=None)
    if longest is not None and max_length > longest:
        raise ModelError(
            f"Windows of {max_length} tokens are longer than the {longest} up to which "
            f"{type(config).__name__} reads a position the same way whatever follows it. Plan with "
            f"--max-length {longest} or less.",
            max_length=max_length,
            longest=longest,
        )


def _steady_length(config: Any) -> int | None:
    """Return the length at which rotary embeddings change, where they do."""
    text = config.get_text_config()
    stated = getattr(text, "rope_parameters", None) or {}
    kinds = [stated, *(value for value in stated.values() if isinstance(value, dict))]
    lengths = [
        kind.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=None)
