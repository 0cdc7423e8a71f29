"""Properties of a model that follow from its configuration and class, without its weights."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.model.filenames import CONFIG_FILE
from actlas.store.errors import ActlasError, ModelError
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
    reads = getattr(_own_class(config), "input_modalities", "text")
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
    vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    return vision if vision is not None and text is not None and not generates else config


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
    model_class = _own_class(config)
    if model_class is None:
        raise ModelError(
            f"{CONFIG_FILE} names no architecture and {type(config).__name__} is not one of "
            "transformers' own. Save the model again with model.save_pretrained(...)."
        )
    return str(model_class.__name__)


def _own_class(config: Any) -> Any:
    """Return the class without a head that transformers has for a configuration, or None."""
    from transformers import AutoModel

    with loading("architecture", type(config).__name__):
        found: Any = AutoModel._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def auto_class(architecture: str) -> Any:
    """Return transformers' auto class for an architecture.

    Causal models and models of text with images are loaded with their head, others without one.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForTextEncoding,
    )
    from transformers.models.auto import modeling_auto as auto

    if is_encoder_alone(architecture):
        return AutoModelForTextEncoding

    if _is_causal_class(architecture):
        return AutoModelForCausalLM
    mixed = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    return AutoModelForImageTextToText if architecture in mixed else AutoModel


def is_encoder_alone(architecture: str) -> bool:
    """Return whether a class is the encoder of an encoder-decoder, such as ``T5EncoderModel``."""
    from transformers.models.auto import modeling_auto as auto

    encoders = auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.values()
    return architecture.endswith("EncoderModel") and architecture in encoders


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


def build_skeleton(
    config: Any, architecture: str, *, trust_remote_code: bool = False, traceable: bool = True
) -> nn.Module:
    """Return a model on torch's meta device: modules and shapes that take no memory.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration; it is not changed.
    architecture : str
        The class of the checkpoint.
    trust_remote_code : bool
        Whether code that comes with the model may run.
    traceable : bool
        Whether attention and experts use the plain implementations, whose operations can be traced
        without values. If not, they are those of a loaded model.

    Raises
    ------
    ModelError
        The architecture cannot be built.
    """
    import torch
    from transformers.models.auto import modeling_auto as auto

    config = copy.deepcopy(config)
    if traceable:
        config._attn_implementation = "eager"
        config._experts_implementation = "batched_mm"
    for part in (config, config.get_text_config()):
        if hasattr(part, "use_cache"):  # an empty cache may refuse what the pass asks of it
            part.use_cache = False
    with loading("architecture", architecture), torch.device("meta"):
        model: nn.Module = auto_class(architecture).from_config(
            config, trust_remote_code=trust_remote_code
        )
    kind = config.get_text_config().model_type
    two = kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    if two and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        raise two_sequences(architecture)
    return model.eval()


@contextmanager
def loading(what: str, where: str) -> Iterator[None]:
    """Turn whatever the libraries raise inside into one error, and keep them from printing.

    Parameters
    ----------
    what : str
        The kind of object that is loaded, such as ``tokenizer``.
    where : str
        The folder or name that it comes from.

    Raises
    ------
    ModelError
        It cannot be loaded: see :func:`loading_error`.
    """
    try:
        with quiet():
            yield
    except (ActlasError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises Exception itself, others classes of their own
        raise loading_error(what, where, error) from error


def two_sequences(where: str) -> ModelError:
    """Return the error for a model that reads two sequences.

    Parameters
    ----------
    where : str
        The model's folder or class.
    """
    return ModelError(
        f"{where} is an encoder-decoder, which reads two sequences. Expected a decoder or an "
        "encoder. An encoder alone is one whose config.json names its class, such as "
        '"architectures": ["T5EncoderModel"].',
        path=where,
    )


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
