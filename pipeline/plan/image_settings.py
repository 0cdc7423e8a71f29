"""What a plan's options mean for a model that reads images, alone or among text."""

from __future__ import annotations

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
from actlas.store.format.schema import HookpointSpec, ModelSpec, ProcessorSpec


class Reading(NamedTuple):
    """How a corpus becomes positions of a model.

    Attributes
    ----------
    max_length : int
        Positions of a window, special ones included.
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
    """Decide for a model that reads images alone: each is one window, whatever its size.

    Raises
    ------
    CorpusError, HookpointError, ModelError
        There are no images; hookpoints have different positions; they cannot be told.
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
    """Decide for a model that reads texts with images in them.

    Raises
    ------
    ConfigError, ModelError
        A window has no room for an image; the processor is not of the kind that is known.
    """
    placeholder = find_placeholder(model.processor)
    tokenizer = MixedTokenizer(model.tokenizer, options.tokenizer or model.spec.id, placeholder)
    long = options.long or ("truncate" if corpus.labelled else "window")
    windows = make_windows(tokenizer.spec, max_length, long, options.keep_special)
    processor = describe_processor(
        model.processor.image_processor,
        model.spec.id,
        grid=placeholder.grid,
        image_token_id=placeholder.token_id,
    )
    mixture = MixedCorpus(corpus, placeholder, tokenizer, windows)
    return Reading(mixture, hookpoints, tokenizer, windows, max_length, processor)


_OF_TEXTS = (
    "tokenizer",
    "text_field",
    "messages_field",
    "span_fields",
    "max_length",
    "long",
    "lowercase",
    "with_loss",
)


def refuse_other_modality(options: PlanOptions, spec: ModelSpec) -> None:
    """Refuse options that say nothing to a model which reads what it does.

    Raises
    ------
    ConfigError
        Naming the first such option.
    """
    if spec.modality == "image":
        given = [name for name in _OF_TEXTS if getattr(options, name)]
        why = "text, and this one reads images: each is one sequence of patches"
    elif spec.modality == "mixed":
        given = [name for name in ("messages_field", "span_fields") if getattr(options, name)]
        why = "text alone, and this one reads images too"
    else:
        given = ["image_field"] if options.image_field is not None else []
        why = "images, and this one reads text"
    if given:
        flag = given[0].replace("_", "-")
        raise ConfigError(
            f"--{flag} is for models that read {why} ({spec.architecture}). Leave it out.",
            field=given[0],
        )
