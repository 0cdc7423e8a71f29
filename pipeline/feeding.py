"""From a shard of a store to the batches that its model is fed with."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items

from actlas.pipeline.batching import Batch, Inputs, assemble, feed, pack
from actlas.store import layout
from actlas.store.schema import Plan
from actlas.store.store import Store


def special_ids(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what is fed before and after each window beside the kept tokens.

    Where special tokens are kept they are among the tokens already; and no token of a causal model
    sees what comes after it.
    """
    if plan.keep_special:
        return (), ()
    return plan.tokenizer.prefix_ids, () if plan.model.causal else plan.tokenizer.suffix_ids


def window_tokens(plan: Plan) -> int:
    """Return the kept tokens of a full window."""
    tokenizer = plan.tokenizer
    n_special = 0 if plan.keep_special else len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    return layout.content_length(plan.windows.max_length, n_special)


def shard_batches(store: Store, shard: int, tokens_per_batch: int) -> list[Batch]:
    """Return the batches of a shard, in the order in which they run.

    Parameters
    ----------
    store : Store
        Its documents' edges are read.
    shard : int
    tokens_per_batch : int
        See :func:`actlas.pipeline.batching.pack`.
    """
    plan, documents = store.plan, store.documents
    start, stop = store.shard_range(shard)
    first, last = documents.find(start), documents.find(stop - 1)
    sequences = layout.sequences(
        documents.starts(first, last + 1),
        first,
        start,
        stop,
        window_tokens(plan),
        causal=plan.model.causal,
    )
    prefix, suffix = special_ids(plan)
    return pack(feed(sequences, len(prefix), len(suffix)), tokens_per_batch)


def batch_inputs(
    store: Store, batches: Items[Batch], *, pad_id: int
) -> Iterator[tuple[Batch, Inputs]]:
    """Yield each batch with its tokens, which are read once for all of them."""
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
        yield batch, inputs
