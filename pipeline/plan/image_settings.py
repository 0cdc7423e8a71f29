"""Decisions of a plan for a model that reads images, alone or in texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from actlas.pipeline.corpus.corpus import Corpus
from actlas.pipeline.corpus.image_folder import open_images
from actlas.pipeline.corpus.patches import ImageCorpus, PatchTokenizer, image_windows
from actlas.pipeline.corpus.tokenization import DocumentTokenizer, Windows, make_windows
from actlas.pipeline.model.describe import ModelDescription
from actlas.pipeline.model.vision import describe_processor
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.image_layout import image_layout
from actlas.pipeline.plan.mixed import MixedCorpus, MixedTokenizer, find_placeholder
from actlas.store.errors import ConfigError
from actlas.store.format.schema import HookpointSpec, Modality, ModelSpec, ProcessorSpec


class Reading(NamedTuple):
    """The way from a corpus to the positions of a model.

    Attributes
    ----------
    corpus : Corpus
        The corpus, with images as the text of their grid.
    hookpoints : tuple of HookpointSpec
        The hookpoints of the plan.
    tokenizer : DocumentTokenizer or PatchTokenizer
        The plan's tokenizer.
    windows : Windows
        The division of documents into windows.
    max_length : int
        Positions of a window, special ones included.
    processor : ProcessorSpec or None
        The image processor, for a model that reads images.
    """

    corpus: Corpus
    hookpoints: tuple[HookpointSpec, ...]
    tokenizer: DocumentTokenizer | PatchTokenizer
    windows: Windows
    max_length: int
    processor: ProcessorSpec | None = None


def read_images(
    options: PlanOptions, model: ModelDescription, hookpoints: tuple[HookpointSpec, ...]
) -> Reading:
    """Return the decisions for a model that reads images alone: each image is one window.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    model : ModelDescription
        The model.
    hookpoints : tuple of HookpointSpec
        The hookpoints of the plan.

    Raises
    ------
    CorpusError, HookpointError, ModelError
        The corpus has no images; the hookpoints have different numbers of positions; or the
        positions of the patches cannot be determined.
    """
    corpus = open_images(options)
    layout = image_layout(model.skeleton, hookpoints, model.processor)
    processor = describe_processor(model.processor, model.spec.id, **layout)
    windows = image_windows(processor, keep_special=options.keep_special)
    return Reading(
        corpus=ImageCorpus(corpus, layout["grid"]),
        hookpoints=hookpoints,
        tokenizer=PatchTokenizer(layout["grid"]),
        windows=windows,
        max_length=windows.content + processor.n_prefix + processor.n_suffix,
        processor=processor,
    )


def read_mixed(
    options: PlanOptions,
    model: ModelDescription,
    hookpoints: tuple[HookpointSpec, ...],
    corpus: Corpus,
    max_length: int,
) -> Reading:
    """Return the decisions for a model that reads texts with images in them.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    model : ModelDescription
        The model.
    hookpoints : tuple of HookpointSpec
        The hookpoints of the plan.
    corpus : Corpus
        Texts, some with images.
    max_length : int
        Tokens of a window, special tokens and patches included.

    Raises
    ------
    ConfigError, ModelError
        A window has no room for an image, or the processor is of an unknown kind.
    """
    placeholder = find_placeholder(model.processor)
    tokenizer = MixedTokenizer(
        model.tokenizer,
        options.tokenizer or model.spec.id,
        placeholder,
        prepend_bos=options.prepend_bos,
    )
    long = options.long or ("truncate" if corpus.labelled else "window")
    windows = make_windows(tokenizer.spec, max_length, long, options.keep_special)
    processor = describe_processor(
        model.processor.image_processor,
        model.spec.id,
        grid=placeholder.grid,
        image_token_id=placeholder.token_id,
    )
    mixed = MixedCorpus(corpus, placeholder, tokenizer, windows)
    return Reading(mixed, hookpoints, tokenizer, windows, max_length, processor)


_APPLIES: Mapping[str, tuple[Modality, ...]] = {
    **dict.fromkeys(("tokenizer", "text_field", "max_length", "long"), ("text", "mixed")),
    **dict.fromkeys(("lowercase", "with_loss", "prepend_bos"), ("text", "mixed")),
    **dict.fromkeys(("messages_field", "span_fields"), ("text",)),
    "image_field": ("image", "mixed"),
}
"""Options that do not apply to every model, and the modalities of the models that they apply to."""

_WHY: Mapping[Modality, str] = {
    "image": "text, and this one reads images: each is one sequence of patches",
    "mixed": "text alone, and this one reads images too",
    "text": "images, and this one reads text",
}
"""What the models read that an option is for, and what the model of another modality reads."""


def refuse_other_modality(options: PlanOptions, spec: ModelSpec) -> None:
    """Refuse options that do not apply to what the model reads: text, images, or both.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    spec : ModelSpec
        The model.

    Raises
    ------
    ConfigError
        An option does not apply; the message gives the first such option.
    """
    given = [
        name
        for name, modalities in _APPLIES.items()
        if spec.modality not in modalities and getattr(options, name) not in (None, (), False)
    ]
    if given:
        flag = given[0].replace("_", "-")
        raise ConfigError(
            f"--{flag} is for models that read {_WHY[spec.modality]} ({spec.architecture}). Leave "
            "it out.",
            field=given[0],
        )
