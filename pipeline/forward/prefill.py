"""Chunked prefill: long causal sequences in several passes, with a key-value cache between them.

A sequence longer than the token budget is computed in chunks of at most that many tokens, and a
sequence that continues in the next shard leaves its cache for that shard. Usage::

    prefill = Prefill(model)
    batches = shard_batches(store, shard, budget, strategy, resume=prefill.cached)
    for batch, inputs in batch_inputs(store, batches, pad_id=pad_id):
        capture(**to_device(inputs.arrays, device), **prefill.kwargs(inputs), ...)
    prefill.finish()
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from actlas.pipeline.forward.batching import Batch, Inputs, InputSequence, PrefillChunk
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.invariants import difference, probe_tokens
from actlas.pipeline.model.fields import size_field
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn

PROBE_TOKENS = 23

MAX_PROBE_TOKENS = 1 << 13

MAX_MASK = 1 << 27
"""Largest number of (query, key) pairs in the mask of a chunk, of one byte each, or four where the
attention adds the mask to its scores."""


class CachedPrefix(NamedTuple):
    """The prefix of a sequence that a key-value cache holds.

    Attributes
    ----------
    doc_idx, window : int
        The sequence: its document and its first kept token.
    n_tokens : int
        Positions of the sequence in the cache, special tokens included.
    """

    doc_idx: int
    window: int
    n_tokens: int


def prefill_chunks(
    sequence: InputSequence, tokens_per_batch: int, *, start: int = 0, continues: bool = False
) -> list[Batch]:
    """Cut a sequence into chunks of at most ``tokens_per_batch`` tokens. Pure.

    Chunks are shorter where the sequence is so long that the mask would be too large.

    Parameters
    ----------
    sequence : InputSequence
        A sequence of a causal model.
    tokens_per_batch : int
        The token budget of a pass.
    start : int
        Number of positions that are in the cache already.
    continues : bool
        Whether the next shard continues the sequence, so that the cache is kept after the last
        chunk.

    Examples
    --------
    >>> from actlas.store.format.layout import Sequence
    >>> sequence = InputSequence(Sequence(0, 0, 9, 0, 9), 1, 0)
    >>> [batch.chunk[2:] for batch in prefill_chunks(sequence, 4)]
    [(0, 4, True), (4, 8, True), (8, 10, False)]
    """
    found = []
    step = max(1, min(tokens_per_batch, MAX_MASK // sequence.length))
    for begin in range(start, sequence.length, step):
        end = min(begin + step, sequence.length)
        chunk = PrefillChunk(
            sequence.content.doc_idx,
            sequence.content.start,
            begin,
            end,
            continues or end < sequence.length,
        )
        found.append(Batch((sequence,), end - begin, chunk=chunk))
    return found


def split_long(
    sequences: Iterable[InputSequence],
    tokens_per_batch: int,
    open_at: int | None,
    resume: CachedPrefix | None,
) -> tuple[list[Batch], list[InputSequence]]:
    """Separate the sequences that need chunked prefill from those that are computed whole. Pure.

    Parameters
    ----------
    sequences : iterable of InputSequence
        The sequences of one shard.
    tokens_per_batch : int
        The token budget: longer sequences are computed in chunks.
    open_at : int, optional
        The token at which the shard ends, where the sequence that ends there continues in the next
        shard: its cache is kept.
    resume : CachedPrefix, optional
        The cache left by the shard before. Its sequence is resumed, if the cache ends where the
        first kept row of that sequence is.

    Returns
    -------
    list of Batch
        The chunks, the resumed sequence first and the one that continues last, so that there is one
        cache at a time.
    list of InputSequence
        The sequences that are computed whole.
    """
    resumed: list[Batch] = []
    long: list[Batch] = []
    last: list[Batch] = []
    whole: list[InputSequence] = []
    for each in sequences:
        content = each.content
        ready = CachedPrefix(
            content.doc_idx, content.start, each.n_prefix + content.keep_start - content.start
        )
        start = ready.n_tokens if resume == ready else 0
        continues = content.stop == open_at
        if not (start or continues or each.length > tokens_per_batch):
            whole.append(each)
            continue
        found = prefill_chunks(each, tokens_per_batch, start=start, continues=continues)
        (resumed if start else last if continues else long).extend(found)
    return [*resumed, *long, *last], whole


class Prefill:
    """The key-value cache of a chunked prefill.

    Parameters
    ----------
    model : torch.nn.Module
        A model for which :func:`prefill_obstacle` returned None.

    Attributes
    ----------
    cached : CachedPrefix or None
        The prefix that the next shard may continue from; None while passes run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.cached: CachedPrefix | None = None
        self._model = model
        self._cache: Any = None
        self._after: CachedPrefix | None = None

    def kwargs(self, inputs: Inputs) -> dict[str, Any]:
        """Return the model's arguments beside ``inputs.arrays``: none for whole sequences.

        The chunks of a sequence must come in order, without chunks of another between them.

        Parameters
        ----------
        inputs : Inputs
            The input of the next pass.

        Raises
        ------
        RuntimeError
            The cache does not hold the positions before this chunk.
        """
        chunk = inputs.chunk
        if chunk is None:
            return {}
        found = self._after or self.cached
        wanted = CachedPrefix(chunk.doc_idx, chunk.window, chunk.start)
        cache, self.cached = self._cache, None
        if chunk.start == 0:
            cache = new_cache(self._model)
        elif found != wanted or cache is None:
            raise RuntimeError(f"expected a cache of {wanted} for the next chunk, got {found}")
        self._after = wanted._replace(n_tokens=chunk.stop) if chunk.continues else None
        self._cache = cache if chunk.continues else None
        return {"past_key_values": cache, "use_cache": True}

    def finish(self) -> None:
        """Mark all passes as successful: the next shard may continue from the cache."""
        self.cached = self._after or self.cached
        self._after = None

    def drop(self) -> None:
        """Drop the cache and its memory, as after a failed pass."""
        self._cache = self._after = self.cached = None


def new_cache(model: nn.Module) -> Any:
    """Return an empty key-value cache for a model, with the layers of its configuration."""
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config)


def cache_bytes(config: Any, n_tokens: int, dtype: str) -> int:
    """Return the bytes of the keys and values of a sequence in the cache.

    For each token: 2 x layers x key-value heads x head dimension; layers with a sliding window hold
    at most the tokens of the window. An upper bound for models whose layers share keys and values,
    0 for those without attention, whose state does not grow with the sequence.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration.
    n_tokens : int
        Tokens of the sequence, special ones included.
    dtype : str
        The compute dtype.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> config = LlamaConfig(hidden_size=3072, num_hidden_layers=28, num_attention_heads=24,
    ...                      num_key_value_heads=8, head_dim=128)
    >>> cache_bytes(config, 131_072, "bfloat16") / 2**30
    14.0
    """
    text = config.get_text_config()
    heads = size_field(text, "num_attention_heads")
    if heads is None:
        return 0
    n_heads = size_field(text, "num_key_value_heads") or heads
    width = size_field(text, "head_dim") or (size_field(text, "hidden_size") or 0) // heads
    window = sliding_window(config)
    n_layers = size_field(text, "num_hidden_layers") or 0
    kinds = getattr(text, "layer_types", None) or [None] * n_layers
    n_cached = 0
    for kind in kinds:
        slides = window is not None and kind in (None, "sliding_attention")
        n_cached += min(n_tokens, window) if slides and window is not None else n_tokens
    return 2 * n_heads * width * n_cached * numpy_dtype(dtype).itemsize


def sliding_window(config: Any) -> int | None:
    """Return the sliding window of a model's attention in tokens; None where no layer has one."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    window = size_field(text, "sliding_window") if slides else None
    return window if getattr(text, "use_sliding_window", True) else None


def prefill_obstacle(
    model: nn.Module, hookpoints: Items[HookpointSpec], max_length: int
) -> str | None:
    """Return the reason why a model cannot use chunked prefill, or None where it can.

    The model is tested: a sequence in chunks of several sizes must give the activations of one
    pass. The test sequence is longer than the model's sliding window where windows are.

    Parameters
    ----------
    model : torch.nn.Module
        The loaded, causal model, with the attention implementation of the run.
    hookpoints : sequence of HookpointSpec
        The hookpoints whose activations are compared. Passes end after the deepest of them, and so
        does the cache.
    max_length : int
        The largest number of tokens of a window.
    """
    import torch

    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no past_key_values"
    window = sliding_window(model.config)
    n = PROBE_TOKENS if window is None or window >= max_length else window + PROBE_TOKENS
    n = min(n, max_length)
    if n > MAX_PROBE_TOKENS:
        return f"its sliding window of {window} tokens is too long to be tested"
    tokens = probe_tokens(model, n)
    if tokens is None:
        return f"{type(model).__name__} has too few tokens in its vocabulary to be tested"
    positions = torch.arange(n, device=tokens.device)[None]
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        whole = capture(tokens[None])
        for edges in _chunk_edges(n):
            try:
                found = _chunked(capture, new_cache(model), tokens, positions, edges)
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                return f"{type(model).__name__} failed with chunked prefill: {error}"
            for name, rows in whole.items():
                if reason := difference(found[name], rows[0], by_row=True):
                    return f"at {name} chunked prefill differs from one pass by {reason}"
    return None


def _chunk_edges(n: int) -> Iterator[list[int]]:
    """Yield edges of chunks of n tokens: a long and a short chunk, and four uneven ones."""
    yield [0, n - n // 4, n]
    yield [0, *sorted({max(1, n // 5), max(1, n // 2), max(1, n - 2)}), n]


def _chunked(capture: Capture, cache: Any, tokens: Any, positions: Any, edges: Items[int]) -> Any:
    import torch

    found: dict[str, list[Any]] = {}
    for start, stop in pairwise(edges):
        rows = capture(
            tokens[None, start:stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            use_cache=True,
        )
        for name, row in rows.items():
            found.setdefault(name, []).append(row[0])
    return {name: torch.cat(rows) for name, rows in found.items()}
