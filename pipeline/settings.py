"""What a plan's options mean for this model and this corpus: every default decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actlas.pipeline.checks import check_windows
from actlas.pipeline.corpus import Corpus, open_corpus
from actlas.pipeline.hookpoints import resolve
from actlas.pipeline.model import ModelDescription, describe_model
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.tokenization import Cutter, Windows, make_windows
from actlas.store import layout
from actlas.store.dtypes import numpy_dtype
from actlas.store.errors import ConfigError
from actlas.store.schema import HookpointSpec, Order

DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Options, and what follows from them.

    Attributes
    ----------
    order, sample
        As asked for, or the default for this corpus.
    max_length : int
        Tokens of a window, special ones included.
    """

    options: PlanOptions
    corpus: Corpus
    model: ModelDescription
    hookpoints: tuple[HookpointSpec, ...]
    cutter: Cutter
    windows: Windows
    order: Order
    sample: Literal["uniform", "head"]
    max_length: int

    def shard_rows(self, n_tokens: int) -> int:
        """Return the rows of a shard, as asked for or chosen."""
        item = numpy_dtype(self.options.dtype).itemsize
        widths = [hookpoint.width * item for hookpoint in self.hookpoints]
        return self.options.shard_rows or layout.choose_shard_rows(n_tokens, widths)


def resolve_settings(options: PlanOptions) -> Settings:
    """Find model, tokenizer and corpus, and decide what was left open.

    Raises
    ------
    ConfigError, CorpusError, ModelError, HookpointError
        What was asked for is not there or does not fit together.
    """
    _check_shard_rows(options.shard_rows)
    corpus = open_corpus(options)
    model = describe_model(options)
    max_length = _max_length(options, model)
    cutter = Cutter(model.tokenizer, options.tokenizer or model.spec.id)
    order = options.order or ("corpus" if corpus.labelled else "shuffled")
    long = options.long or ("truncate" if corpus.labelled else "window")
    head = order == "corpus" or not corpus.finite
    return Settings(
        options=options,
        corpus=corpus,
        model=model,
        hookpoints=resolve(model.skeleton, options.hookpoints),
        cutter=cutter,
        windows=make_windows(cutter.spec, max_length, long, options.keep_special),
        order=order,
        sample=options.sample or ("head" if head else "uniform"),
        max_length=max_length,
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
