"""Decided options of a plan: every default resolved for a model and a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from actlas.pipeline.corpus.chat import Chat, ChatTokenizer
from actlas.pipeline.corpus.corpus import Corpus, open_corpus
from actlas.pipeline.corpus.image_folder import has_images, open_mixed
from actlas.pipeline.corpus.patches import PatchTokenizer
from actlas.pipeline.corpus.spans import span_columns
from actlas.pipeline.corpus.tokenization import DocumentTokenizer, Windows, make_windows
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model.describe import ModelDescription, describe_model
from actlas.pipeline.model.device import resolve_device
from actlas.pipeline.model.windows import check_windows
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.draft import Log, Sample
from actlas.pipeline.plan.image_settings import (
    Reading,
    read_images,
    read_mixed,
    refuse_other_modality,
)
from actlas.store.errors import ConfigError
from actlas.store.format import layout
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import (
    CorpusSpec,
    HookpointSpec,
    ModelFiles,
    Order,
    Plan,
    ProcessorSpec,
    WindowSpec,
)
from actlas.store.format.sealing import FORMAT_VERSION
from actlas.store.format.validation import check_line
from actlas.store.version import VERSION

DEFAULT_MAX_LENGTH = 1024
"""Largest default length of a window, in tokens."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a plan, and the decisions that follow from them.

    Attributes
    ----------
    options : PlanOptions
        The options as given.
    corpus : Corpus
        The documents.
    model : ModelDescription
        The model.
    hookpoints : tuple of HookpointSpec
        The hookpoints of the plan.
    tokenizer : DocumentTokenizer or PatchTokenizer
        The plan's tokenizer.
    windows : Windows
        The division of documents into windows.
    order : {"shuffled", "corpus"}
        The order of the documents, as given or the corpus's default.
    sample : {"uniform", "head"}
        The part of the corpus to choose under ``max_tokens``, as given or the corpus's default.
    max_length : int
        Tokens of a window, special tokens included; for a model of images, positions of an image.
    processor : ProcessorSpec or None
        The image processor, for a model that reads images.
    """

    options: PlanOptions
    corpus: Corpus
    model: ModelDescription
    hookpoints: tuple[HookpointSpec, ...]
    tokenizer: DocumentTokenizer | PatchTokenizer
    windows: Windows
    order: Order
    sample: Literal["uniform", "head"]
    max_length: int
    processor: ProcessorSpec | None = None

    @property
    def files(self) -> ModelFiles:
        """The record of the files that were read, and of those of the corpus that were not."""
        left_out = self.corpus.counts.left_out
        return self.model.files.model_copy(update={"corpus_left_out": left_out})

    @property
    def token_columns(self) -> tuple[str, ...]:
        """Token columns: the tokenizer's own, then the span columns of the corpus."""
        return (*self.tokenizer.columns, *span_columns(self.options))

    def shard_rows(self, n_tokens: int) -> int:
        """Return the rows of a shard, as given or chosen for this number of tokens."""
        if self.options.pooled_only:
            return self.options.shard_rows or layout.choose_pooled_shard_rows(n_tokens)
        item = numpy_dtype(self.options.dtype).itemsize
        widths = [hookpoint.width * item for hookpoint in self.hookpoints]
        n_parameters = self.model.n_parameters
        return self.options.shard_rows or layout.choose_shard_rows(n_tokens, widths, n_parameters)


def resolve_settings(
    options: PlanOptions, device: str | None = "auto", log: Log | None = None
) -> Settings:
    """Find model, tokenizer and corpus, and decide every option that was left open.

    Parameters
    ----------
    options : PlanOptions
        The options as given.
    device : str or None
        The device that the model will run on; None where it runs on other machines.
    log : callable, optional
        Receives lines of progress while large weights are hashed.

    Raises
    ------
    ConfigError, CorpusError, ModelError, HookpointError
        The model, the corpus, a hookpoint or the device does not exist, or options conflict.
    """
    if device is not None:
        resolve_device(device)
    _check_shard_rows(options.shard_rows)
    _check_pools(options)
    check_line(options.corpus, "the corpus")
    model = describe_model(options, lambda: has_images(options), device, log)
    _check_loss(options, model)
    reading = _reading(options, model)
    labelled = reading.corpus.labelled
    order = options.order or ("corpus" if labelled else "shuffled")
    head = order == "corpus" or not reading.corpus.finite
    return Settings(
        options=options,
        corpus=reading.corpus,
        model=model,
        hookpoints=reading.hookpoints,
        tokenizer=reading.tokenizer,
        windows=reading.windows,
        order=order,
        sample=options.sample or ("head" if head else "uniform"),
        max_length=reading.max_length,
        processor=reading.processor,
    )


def _reading(options: PlanOptions, model: ModelDescription) -> Reading:
    """Return the way from the documents to the positions of the model."""
    refuse_other_modality(options, model.spec)
    if model.spec.modality == "image":
        return read_images(options, model, resolve(model.skeleton, options.hookpoints))
    mixed = model.spec.modality == "mixed"
    corpus = open_mixed(options) if mixed else open_corpus(options, _chat(options, model))
    max_length = _max_length(options, model)
    hookpoints = resolve(model.skeleton, options.hookpoints)
    if mixed:
        return read_mixed(options, model, hookpoints, corpus, max_length)
    tokenizer_of = ChatTokenizer if options.messages_field else DocumentTokenizer
    identity = options.tokenizer or model.spec.id
    tokenizer = tokenizer_of(model.tokenizer, identity, prepend_bos=options.prepend_bos)
    long = options.long or ("truncate" if corpus.labelled else "window")
    windows = make_windows(tokenizer.spec, max_length, long, options.keep_special)
    return Reading(corpus, hookpoints, tokenizer, windows, max_length)


def _chat(options: PlanOptions, model: ModelDescription) -> Chat | None:
    """Return the chat template for a corpus of messages; None for other corpora."""
    span_columns(options)  # raises ConfigError for an impossible name of a column
    if not options.messages_field:
        return None
    why = {
        "text_field": "the text is the chat template's output",
        "span_fields": "spans are characters of a record's own text",
        "lowercase": "it would change the chat template's own tokens",
        "keep_special": "the chat template's own tokens have rows anyway",
    }
    for field, reason in why.items():
        if getattr(options, field):
            raise ConfigError(
                f"--{field.replace('_', '-')} conflicts with --messages-field: {reason}. Leave "
                "one of them out.",
                field=field,
            )
    return Chat(model.tokenizer, options.tokenizer or model.spec.id)


def _check_pools(options: PlanOptions) -> None:
    if len(set(options.pool)) < len(options.pool):
        raise ConfigError(
            f"--pool {','.join(options.pool)}: expected each of last, mean and sum once.",
            field="pool",
        )
    if options.pooled_only and not options.pool:
        raise ConfigError(
            "--pooled-only stores pooled rows alone, and none are requested: give --pool "
            "last,mean,sum, or some of them.",
            field="pooled_only",
        )
    if options.pooled_only and options.with_loss:
        raise ConfigError(
            "--with-loss stores a loss for every token's row, and --pooled-only stores none of "
            "those rows. Leave one of them out.",
            field="with_loss",
        )


def _check_loss(options: PlanOptions, model: ModelDescription) -> None:
    head = model.skeleton.get_output_embeddings()  # type: ignore[operator]
    if options.with_loss and (head is None or not model.spec.causal):
        raise ConfigError(
            f"--with-loss needs a model that predicts the next token, and {model.spec.id} "
            f"({model.spec.architecture}) does not. Leave it out.",
            field="with_loss",
        )


def _check_shard_rows(shard_rows: int | None) -> None:
    if shard_rows is not None and shard_rows & (shard_rows - 1):
        near = 1 << (shard_rows.bit_length() - 1)
        raise ConfigError(
            f"--shard-rows {shard_rows}: expected a power of two, such as {near} or {2 * near}.",
            field="shard_rows",
        )


def _max_length(options: PlanOptions, model: ModelDescription) -> int:
    context = model.spec.context_length
    if options.max_length is not None and context is not None and options.max_length > context:
        raise ConfigError(
            f"--max-length {options.max_length} is more than the model's context of {context} "
            "tokens. Give that or less; longer documents become several windows.",
            field="max_length",
        )
    max_length = options.max_length or min(context or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    check_windows(model.skeleton.config, context, max_length)
    return max_length


def assemble(settings: Settings, *, fingerprint: str, sample: Sample, **counts: int) -> Plan:
    """Return the plan over these documents.

    Parameters
    ----------
    settings : Settings
        The decided options.
    fingerprint : str
        The sha256 of the documents.
    sample : {"all", "uniform", "head"}
        The part of the corpus that they are.
    **counts : int
        ``n_documents``, ``n_tokens``, ``n_text_bytes``, ``n_windows``, ``n_image_bytes``.
    """
    options, read = settings.options, settings.corpus.counts
    return Plan(
        format_version=FORMAT_VERSION,
        actlas_version=VERSION,
        model=settings.model.spec,
        tokenizer=settings.tokenizer.spec,
        corpus=CorpusSpec(
            uri=settings.corpus.uri,
            fingerprint=fingerprint,
            text_field=settings.corpus.text_field,
            label_field=options.label_field,
            lowercase=options.lowercase,
            sample=sample,
            n_records_read=read.n_read,
            n_records_skipped=read.n_skipped,
            delimiters=tuple(sorted({*read.delimiters.values()})),
        ),
        windows=WindowSpec(max_length=settings.max_length, long=settings.windows.long),
        hookpoints=settings.hookpoints,
        order=settings.order,
        seed=options.seed,
        keep_special=options.keep_special,
        dtype=options.dtype,
        compression=options.compression,
        shard_rows=settings.shard_rows(counts["n_tokens"]),
        processor=settings.processor,
        token_columns=settings.token_columns,
        pools=options.pool,
        dense=not options.pooled_only,
        with_loss=options.with_loss,
        request=_request(options) | {"corpus": settings.corpus.uri},
        **counts,
    )


def _request(options: PlanOptions) -> dict[str, Any]:
    """Return the options as a plan records them.

    An option that the first version of the format did not have is recorded where it is given alone,
    so that earlier versions read the plans of stores without it.
    """
    given = options.model_dump(mode="json")
    later = ("prepend_bos", "delimiter", "lines")
    return {name: value for name, value in given.items() if name not in later or value}
