"""Properties of a model that follow from its configuration and class, without its weights."""

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

# Exceptions of transformers for a folder that it can make no model or tokenizer of.
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
    """Keep transformers from drawing progress bars and from logging anything below errors."""
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
    """Return what a model reads: text, images, or mixed texts with images in them."""
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
    """Return the image tower's configuration for a model with two towers, such as CLIP.

    Other configurations are returned unchanged, also those of models that generate text from
    images.
    """
    from transformers.models.auto import modeling_auto as auto

    generates = config.model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    towers = hasattr(config, "vision_config") and hasattr(config, "text_config")
    return config.vision_config if towers and not generates else config


def is_causal(config: Any, architecture: str) -> bool:
    """Return whether each position attends to itself and earlier positions alone.

    An explicit field of the configuration counts most (``is_causal``,
    ``use_bidirectional_attention``, ``is_decoder``), then the name of the class, then whether
    transformers offers the architecture for causal and not for masked language modelling.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration.
    architecture : str
        The class of the checkpoint, such as ``LlamaForCausalLM``.
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
    """Return the name of the class that the checkpoint was saved from.

    Where the configuration names none, it is the class that transformers would choose.

    Raises
    ------
    ModelError
        The configuration names no class, and transformers knows none for it.
    """
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
    """Return transformers' auto class for an architecture.

    Causal models and models of text with images are loaded with their head, others without one.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    if _is_causal_class(architecture):
        return AutoModelForCausalLM
    mixed = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    return AutoModelForImageTextToText if architecture in mixed else AutoModel


def context_length_of(text: Any, skeleton: nn.Module) -> int | None:
    """Return the number of positions that a model supports; None where nothing states it."""
    length = getattr(text, "max_position_embeddings", None)
    for name, module in skeleton.named_modules():
        rows = getattr(module, "num_embeddings", None)
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and rows is not None and padding is not None:
            # RoBERTa numbers positions from padding_idx + 1.
            length = min(length or rows, rows - padding - 1)
    return int(length) if length else None


def size_of(text: Any, name: str, folder: Path, skeleton: nn.Module | None = None) -> int:
    """Return the width or the number of blocks of a model.

    A model of several stages has sizes for each: its width is that of the last stage, and its
    blocks are those of all stages together.

    Parameters
    ----------
    text : transformers.PreTrainedConfig
        The configuration of the part that has the blocks.
    name : {"hidden_size", "num_hidden_layers"}
        The requested size.
    folder : Path
        The model's folder, for messages.
    skeleton : torch.nn.Module, optional
        A model of images whose configuration may state neither size. They are then counted: the
        outputs of its last matrix or convolution, and the members of its longest list of modules.

    Raises
    ------
    ModelError
        The size is not stated, or is no positive integer.
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
    """Return a model on torch's meta device: modules and shapes that take no memory.

    Attention and experts use the plain implementations, whose operations can be traced without
    values.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration; it is not changed.
    architecture : str
        The class of the checkpoint.
    trust_remote_code : bool
        Whether code that comes with the model may run.

    Raises
    ------
    ModelError
        The architecture cannot be built.
    """
    import torch

    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"
    for part in (config, config.get_text_config()):
        if hasattr(part, "use_cache"):  # an empty cache may refuse what the pass asks of it
            part.use_cache = False
    try:
        with quiet(), torch.device("meta"):
            model: nn.Module = auto_class(architecture).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except LOADING_ERRORS as error:
        raise loading_error("architecture", architecture, error) from error
    return model.eval()


def loading_error(what: str, where: str, error: Exception) -> ModelError:
    """Return an error that names what could not be loaded, the reason, and a remedy.

    Parameters
    ----------
    what : str
        The kind of object, such as ``tokenizer``.
    where : str
        The folder or name that it should have come from.
    error : Exception
        The exception that transformers raised.
    """
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    advice = (
        "It needs Python code from its repository: read that code, then add --trust-remote-code."
        if "trust_remote_code" in str(error)
        else "Check that the folder is complete and that this transformers version knows the model."
    )
    return ModelError(
        f"The {what} of {where} cannot be loaded: {reason}. {advice}",
        path=where,
        cause=type(error).__name__,
    )


def check_windows(config: Any, context_length: int | None, max_length: int) -> None:
    """Check that a model supports windows of a length, and encodes positions independent of it.

    Some rotary embeddings (dynamic NTK, LongRoPE) rotate every position by other angles once a
    sequence exceeds a given length. Activations would then depend on the other sequences of a
    batch and on the borders of shards.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration.
    context_length : int or None
        Positions that the model supports; None where not known.
    max_length : int
        Tokens of a window, special tokens included.

    Raises
    ------
    ModelError
        The windows are too long; the message gives the longest permitted length.
    """
    longest = min(filter(None, (context_length, _steady_length(config))), default=None)
    if longest is not None and max_length > longest:
        raise ModelError(
            f"Windows of {max_length} tokens are longer than {longest}, up to which "
            f"{type(config).__name__} encodes a position the same way whatever follows it. Plan "
            f"with --max-length {longest} or less.",
            max_length=max_length,
            longest=longest,
        )


def _steady_length(config: Any) -> int | None:
    """Return the length beyond which rotary embeddings change; None where they do not."""
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
