"""Descriptions of models for a plan, made without weights, and the search for a plan's model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.model.compute_dtype import ComputeDtype, choose_compute_dtype
from actlas.pipeline.model.config import (
    architecture_of,
    build_skeleton,
    is_causal,
    is_encoder_alone,
    loading,
    modality_of,
    size_of,
    tower_of,
    two_sequences,
)
from actlas.pipeline.model.filenames import CONFIG_FILE
from actlas.pipeline.model.files import file_sha256, locate_model, weight_files, weights_sha256
from actlas.pipeline.model.foreign import missing_config, refuse_hub_kernels, refuse_unpinned
from actlas.pipeline.model.pins import changed_files, differences, folder_files, named
from actlas.pipeline.model.vision import load_processor
from actlas.pipeline.model.windows import check_windows, context_length_of
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import ModelError
from actlas.store.format.schema import FolderFiles, Modality, ModelFiles, ModelSpec
from actlas.store.format.sealing import FORMAT_VERSION

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model without its weights.

    Attributes
    ----------
    spec : ModelSpec
        The plan's entry for the model.
    tokenizer : transformers.PreTrainedTokenizerBase
        The plan's tokenizer: the model's own, or the one asked for.
    skeleton : torch.nn.Module
        The model on torch's meta device: modules and shapes without values.
    n_parameters : int
        Number of parameters, tied ones counted once.
    folder : Path
        The folder of the model's files on this machine.
    compute_dtype : ComputeDtype
        The dtype in the plan, and the reason for it.
    processor : transformers.ProcessorMixin or transformers.BaseImageProcessor or None
        The image processor; None for a model that reads no images. A model that reads images
        alone has no tokenizer.
    files : ModelFiles
        The files that were read of the folder, and of the tokenizer's where that is another.
    """

    spec: ModelSpec
    tokenizer: Any
    skeleton: nn.Module
    n_parameters: int
    folder: Path
    compute_dtype: ComputeDtype
    files: ModelFiles
    processor: Any = None


def describe_model(
    options: PlanOptions,
    has_images: Callable[[], bool] | None = None,
    device: str | None = "auto",
    log: Callable[[str], None] | None = None,
) -> ModelDescription:
    """Describe a model from its files without loading its weights into memory.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan; those of the corpus are not read.
    has_images : callable, optional
        Returns whether the corpus may have images; called only for a model of texts with images.
        Default: the corpus has none.
    device : str or None
        The device that the model will run on, where ``model_dtype`` is ``auto``: see
        :func:`~actlas.pipeline.model.compute_dtype.choose_compute_dtype`.
    log : callable, optional
        Receives lines of progress while large weights are hashed.

    Raises
    ------
    ModelError
        The model or the tokenizer does not exist or cannot be loaded, the model is an
        encoder-decoder, or its folder holds something that would be loaded and is not pinned.
    """
    code = options.trust_remote_code
    identity, folder, revision = locate_model(options.model, options.revision, code=code)
    config = load_config(folder, trust_remote_code=code)
    refuse_unpinned(folder, config, code=code)
    text = config.get_text_config()
    architecture = architecture_of(config)
    files = weight_files(folder) if options.untrained is None else ()
    skeleton = build_skeleton(config, architecture, trust_remote_code=code)
    counted = skeleton if modality_of(config) == "image" else None
    n_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    compute = choose_compute_dtype(options.model_dtype, config, files, n_parameters, device)
    spec = ModelSpec(
        id=identity,
        revision=revision,
        architecture=architecture,
        weights_sha256=_weights_sha256(options, config, architecture, files, log),
        config_sha256=file_sha256(folder / CONFIG_FILE),
        d_model=size_of(text, "hidden_size", folder, counted),
        n_layers=size_of(text, "num_hidden_layers", folder, counted),
        context_length=context_length_of(text, skeleton),
        causal=is_causal(config, architecture),
        compute_dtype=compute.name,
        trust_remote_code=code,
        modality=_modality(config, has_images),
        untrained_seed=options.untrained,
    )
    if options.max_length is not None:
        check_windows(config, spec.context_length, options.max_length)
    tokenizer = processor = None
    pinned = ModelFiles(
        format_version=FORMAT_VERSION, model=folder_files(folder, identity, files, code=code)
    )
    if spec.modality != "image":
        tokenizer = load_tokenizer(options.tokenizer or str(folder), None, code)
    if options.tokenizer and tokenizer is not None:
        other = locate_model(options.tokenizer, None, code=code, weights=False)
        kept = folder_files(other.folder, other.identity, code=code)
        pinned = pinned.model_copy(update={"tokenizer": kept})
    if spec.modality != "text":
        processor = load_processor(folder, mixed=spec.modality == "mixed", trust_remote_code=code)
    return ModelDescription(
        spec, tokenizer, skeleton, n_parameters, folder, compute, pinned, processor
    )


def _weights_sha256(
    options: PlanOptions,
    config: Any,
    architecture: str,
    files: tuple[Path, ...],
    log: Callable[[str], None] | None,
) -> str:
    if options.untrained is None:
        return weights_sha256(files, log)
    from actlas.pipeline.model.untrained import fresh_model, state_sha256

    code = options.trust_remote_code
    return state_sha256(
        fresh_model(config, architecture, options.untrained, trust_remote_code=code)
    )


def _modality(config: Any, has_images: Callable[[], bool] | None) -> Modality:
    """Return what the model reads from this corpus.

    A model of texts with images reads a corpus without images as text. Its image processor is then
    not loaded, since not every kind of processor is supported.
    """
    modality = modality_of(config)
    if modality == "mixed" and (has_images is None or not has_images()):
        return "text"
    return modality


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return transformers' configuration of a model in a local folder.

    Parameters
    ----------
    folder : Path
        The model's folder.
    trust_remote_code : bool
        Whether code that comes with the model may run.

    Raises
    ------
    ModelError
        The folder has no configuration, or one that cannot be parsed, needs code that is not
        allowed, or is of an encoder-decoder.
    """
    from transformers import AutoConfig

    if not (folder / CONFIG_FILE).is_file():
        raise missing_config(folder)
    if not trust_remote_code:
        refuse_hub_kernels(folder)
    with loading("configuration", str(folder)):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    stated = str((getattr(config, "architectures", None) or [""])[0])
    if getattr(config, "is_encoder_decoder", False) and not is_encoder_alone(stated):
        raise two_sequences(f"{folder}: {type(config).__name__}")
    return tower_of(config)


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a hub id, a local folder or ``builtin:NAME``.

    Parameters
    ----------
    name : str
        The hub id, folder or builtin name.
    revision : str, optional
        A commit, tag or branch of a hub repository.
    trust_remote_code : bool
        Whether code that comes with the tokenizer may run.

    Raises
    ------
    ModelError
        There is no tokenizer, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    located = locate_model(name, revision, code=trust_remote_code, weights=False)
    folder = str(located.folder)
    with loading("tokenizer", name):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def find_model(
    spec: ModelSpec, path_or_id: str | None = None, pinned: FolderFiles | None = None
) -> Path:
    """Return the folder of a plan's model, after a check of its files against the plan.

    Parameters
    ----------
    spec : ModelSpec
        The plan's model.
    path_or_id : str, optional
        Another folder or hub id that holds the same files. Default: the plan's own.
    pinned : FolderFiles, optional
        The files of the planned folder. Default: only the configuration and the weights are
        compared.

    Raises
    ------
    ModelError
        The model does not exist; or ``config_sha256`` or ``weights_sha256`` differ from the plan;
        or a pinned file was changed, removed or added, which the message names.
    """
    own = path_or_id is None or path_or_id == spec.id
    folder = locate_model(
        spec.id if path_or_id is None else path_or_id,
        spec.revision if own else None,
        code=spec.trust_remote_code,
    ).folder
    if not (folder / CONFIG_FILE).is_file():
        raise missing_config(folder)
    files = weight_files(folder) if spec.untrained_seed is None else ()
    other = []
    if pinned is not None:
        now = folder_files(folder, pinned.id, files, code=spec.trust_remote_code)
        other = differences(pinned, now)
    checks = {"config_sha256": (file_sha256(folder / CONFIG_FILE), spec.config_sha256)}
    if spec.untrained_seed is None:
        checks["weights_sha256"] = weights_sha256(files), spec.weights_sha256
    for field, (found, expected) in checks.items():
        if found != expected:
            which = f" ({named(other)})" if other else ""
            raise ModelError(
                f"{folder} is not the model that the plan names: its {field} is {found[:16]}…, "
                f"the plan's is {expected[:16]}…{which}. Put the original files back, or plan "
                "another store for this model.",
                field=f"model.{field}",
                found=found,
                expected=expected,
                path=str(folder),
            )
    if other:
        raise changed_files(other, folder)
    return folder
