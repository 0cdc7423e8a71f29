"""The batches of a shard, and the model's input for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items

from actlas.pipeline.corpus.patches import NO_TOKEN
from actlas.pipeline.extract.image_inputs import (
    image_budget,
    image_inputs,
    n_special_positions,
    whole_images,
    with_images,
)
from actlas.pipeline.forward.batching import Batch, Inputs, assemble, input_sequences, pack
from actlas.pipeline.forward.packing import pack_rows
from actlas.pipeline.forward.prefill import CachedPrefix, split_long
from actlas.pipeline.forward.strategy import PassStrategy
from actlas.store.format import layout
from actlas.store.format.schema import Plan
from actlas.store.read.reader import StoreReader


def special_ids(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens before and after each window that are not kept.

    Special tokens that are kept are part of the windows already. A causal model gets no suffix,
    since no token sees what comes after it.

    Parameters
    ----------
    plan : Plan
        The plan of the store.
    """
    if plan.keep_special:
        return (), ()
    if plan.tokenizer is None:
        n_prefix, n_suffix = n_special_positions(plan)
        return (NO_TOKEN,) * n_prefix, (NO_TOKEN,) * n_suffix
    return plan.tokenizer.prefix_ids, () if plan.model.causal else plan.tokenizer.suffix_ids


def window_tokens(plan: Plan) -> int:
    """Return the number of kept tokens of a full window."""
    tokenizer = plan.tokenizer
    if tokenizer is None:
        return plan.windows.max_length - sum(n_special_positions(plan))
    n_special = 0 if plan.keep_special else len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    return layout.content_length(plan.windows.max_length, n_special)


def shard_batches(
    store: StoreReader,
    shard: int,
    tokens_per_batch: int,
    strategy: PassStrategy = PassStrategy(),  # noqa: B008 - immutable
    *,
    resume: CachedPrefix | None = None,
) -> list[Batch]:
    """Return the batches of a shard, in the order in which they run.

    Parameters
    ----------
    store : StoreReader
        The store, whose document edges are read.
    shard : int
        The shard, from 0.
    tokens_per_batch : int
        The token budget; see :func:`actlas.pipeline.forward.batching.pack`.
    strategy : PassStrategy
        The strategy for forward passes. Default: padded batches.
    resume : CachedPrefix, optional
        The prefix that the cache holds from the shard before
        (:attr:`actlas.pipeline.forward.prefill.Prefill.cached`).
    """
    return range_batches(
        store, *store.shard_range(shard), tokens_per_batch, strategy, resume=resume
    )


def range_batches(
    store: StoreReader,
    start: int,
    stop: int,
    tokens_per_batch: int,
    strategy: PassStrategy = PassStrategy(),  # noqa: B008 - immutable
    *,
    resume: CachedPrefix | None = None,
) -> list[Batch]:
    """Return the batches of a range of tokens, in the order in which they run.

    Parameters
    ----------
    store : StoreReader
        The store, whose document edges are read.
    start, stop : int
        Tokens [start, stop) of the corpus.
    tokens_per_batch, strategy, resume
        See :func:`shard_batches`.
    """
    if start == stop:
        return []
    plan, documents, content = store.plan, store.documents, window_tokens(store.plan)
    first, last = documents.find(start), documents.find(stop - 1)
    starts = documents.starts(first, last + 1)
    sequences: Iterable[layout.Sequence] = layout.sequences(
        starts, first, start, stop, content, causal=plan.model.causal
    )
    prefix, suffix = special_ids(plan)
    if plan.model.modality == "image":
        tokens_per_batch = image_budget(plan, tokens_per_batch)
    elif plan.model.modality == "mixed":
        sequences = whole_images(store, sequences, stop, content)
    framed = list(input_sequences(sequences, len(prefix), len(suffix)))
    chunked: list[Batch] = []
    if strategy.chunked_prefill:
        continues = min(framed[-1].content.start + content, int(starts[-1])) > stop
        chunked, framed = split_long(framed, tokens_per_batch, stop if continues else None, resume)
    if strategy.packed:
        row_tokens = tokens_per_batch if strategy.one_row else None
        pass_tokens = strategy.pass_tokens
        return chunked + pack_rows(
            framed, tokens_per_batch, row_tokens=row_tokens, pass_tokens=pass_tokens
        )
    return chunked + pack(
        framed, tokens_per_batch, pass_tokens=strategy.pass_tokens, batching=strategy.batching
    )


def batch_inputs(
    store: StoreReader, batches: Items[Batch], *, pad_id: int
) -> Iterator[tuple[Batch, Inputs]]:
    """Yield each batch with its input. The tokens of all batches are read at once.

    Parameters
    ----------
    store : StoreReader
        The store of the tokens and images.
    batches : sequence of Batch
        At least one batch.
    pad_id : int
        The padding token.
    """
    if store.plan.model.modality == "image":
        yield from image_inputs(store, batches)
        return
    first = min(each.content.start for batch in batches for each in batch.sequences)
    last = max(each.content.stop for batch in batches for each in batch.sequences)
    tokens = store.documents.token_ids(first, last)
    prefix, suffix = special_ids(store.plan)
    for batch in batches:
        inputs = assemble(
            batch,
            tokens,
            first,
            prefix_ids=prefix,
            suffix_ids=suffix,
            pad_id=pad_id,
            causal=store.plan.model.causal,
        )
        if store.plan.model.modality == "mixed":
            inputs = with_images(store, batch, inputs)
        yield batch, inputs
