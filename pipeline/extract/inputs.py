"""From a shard of a store to the batches that its model is fed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items

from actlas.pipeline.corpus.patches import NO_TOKEN
from actlas.pipeline.extract.image_inputs import (
    around_image,
    image_budget,
    image_inputs,
    whole_images,
    with_images,
)
from actlas.pipeline.forward.batching import Batch, Inputs, assemble, feed, pack
from actlas.pipeline.forward.packing import pack_rows
from actlas.pipeline.forward.prefill import Standing, set_apart
from actlas.pipeline.forward.strategy import Passes
from actlas.store.format import layout
from actlas.store.format.schema import Plan
from actlas.store.read.reader import StoreReader


def special_ids(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what is fed before and after each window beside the kept tokens.

    Where special tokens are kept they are among the tokens already; and no token of a causal model
    sees what comes after it.
    """
    if plan.keep_special:
        return (), ()
    if plan.tokenizer is None:
        n_prefix, n_suffix = around_image(plan)
        return (NO_TOKEN,) * n_prefix, (NO_TOKEN,) * n_suffix
    return plan.tokenizer.prefix_ids, () if plan.model.causal else plan.tokenizer.suffix_ids


def window_tokens(plan: Plan) -> int:
    """Return the kept tokens of a full window."""
    tokenizer = plan.tokenizer
    if tokenizer is None:
        return plan.windows.max_length - sum(around_image(plan))
    n_special = 0 if plan.keep_special else len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    return layout.content_length(plan.windows.max_length, n_special)


def shard_batches(
    store: StoreReader,
    shard: int,
    tokens_per_batch: int,
    passes: Passes = Passes(),  # noqa: B008 - immutable
    *,
    resume: Standing | None = None,
) -> list[Batch]:
    """Return the batches of a shard, in the order in which they run.

    Parameters
    ----------
    store : StoreReader
        Its documents' edges are read.
    shard : int
    tokens_per_batch : int
        See :func:`actlas.pipeline.forward.batching.pack`.
    passes : Passes
        How sequences are put into them; by default as every model allows.
    resume : Standing, optional
        What the cache holds from the shard before
        (:attr:`actlas.pipeline.forward.prefill.Prefill.standing`).
    """
    return range_batches(store, *store.shard_range(shard), tokens_per_batch, passes, resume=resume)


def range_batches(
    store: StoreReader,
    start: int,
    stop: int,
    tokens_per_batch: int,
    passes: Passes = Passes(),  # noqa: B008 - immutable
    *,
    resume: Standing | None = None,
) -> list[Batch]:
    """Return the batches of the tokens [start, stop), in the order in which they run."""
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
    fed = list(feed(sequences, len(prefix), len(suffix)))
    apart: list[Batch] = []
    if passes.by_pieces:
        goes_on = min(fed[-1].sequence.start + content, int(starts[-1])) > stop
        apart, fed = set_apart(fed, tokens_per_batch, stop if goes_on else None, resume)
    if passes.packed:
        row_tokens = tokens_per_batch if passes.one_row else None
        pass_tokens = passes.pass_tokens
        return apart + pack_rows(
            fed, tokens_per_batch, row_tokens=row_tokens, pass_tokens=pass_tokens
        )
    return apart + pack(fed, tokens_per_batch, pass_tokens=passes.pass_tokens)


def batch_inputs(
    store: StoreReader, batches: Items[Batch], *, pad_id: int
) -> Iterator[tuple[Batch, Inputs]]:
    """Yield each batch with its tokens, which are read once for all of them."""
    if store.plan.model.modality == "image":
        yield from image_inputs(store, batches)
        return
    first = min(fed.sequence.start for batch in batches for fed in batch.fed)
    last = max(fed.sequence.stop for batch in batches for fed in batch.fed)
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
