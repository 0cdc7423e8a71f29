"""Long causal sequences fed piece by piece, the model's cache going from piece to piece.

A sequence longer than the token budget goes through in pieces of at most that many tokens, and
one that goes on in the next shard leaves its cache for it. How it is called::

    prefill = Prefill(model)
    batches = shard_batches(store, shard, budget, how, resume=prefill.standing)
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

from actlas.pipeline.forward.batching import Batch, Fed, Inputs, Piece
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.invariants import difference, probe_tokens
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn

PROBE_TOKENS = 23

MAX_PROBE_TOKENS = 1 << 13

MAX_MASK = 1 << 27
"""Pairs of a token and one that it may see for which a mask is made: a piece times all before it,
a byte each, or four where the attention adds it."""


class Standing(NamedTuple):
    """A cache that stands ready: of which sequence, and how many of its positions are in it."""

    doc_idx: int
    window: int
    n_tokens: int


def pieces(
    fed: Fed, tokens_per_batch: int, *, start: int = 0, goes_on: bool = False
) -> list[Batch]:
    """Cut a sequence into passes of at most ``tokens_per_batch`` tokens. Pure.

    Of fewer where the sequence is so long that the mask would be too large.

    Parameters
    ----------
    fed : Fed
        Of a causal model.
    tokens_per_batch : int
    start : int
        Positions that are in the cache already.
    goes_on : bool
        Whether the next shard continues the sequence, so that the cache is kept after the last.

    Examples
    --------
    >>> from actlas.store.format.layout import Sequence
    >>> fed = Fed(Sequence(0, 0, 9, 0, 9), 1, 0)
    >>> [batch.piece[2:] for batch in pieces(fed, 4)]
    [(0, 4, True), (4, 8, True), (8, 10, False)]
    """
    found = []
    step = max(1, min(tokens_per_batch, MAX_MASK // fed.length))
    for begin in range(start, fed.length, step):
        end = min(begin + step, fed.length)
        piece = Piece(
            fed.sequence.doc_idx, fed.sequence.start, begin, end, goes_on or end < fed.length
        )
        found.append(Batch((fed,), end - begin, piece=piece))
    return found


def set_apart(
    fed: Iterable[Fed], tokens_per_batch: int, open_at: int | None, resume: Standing | None
) -> tuple[list[Batch], list[Fed]]:
    """Tell sequences that are fed by pieces from those that are fed whole. Pure.

    Parameters
    ----------
    fed : iterable of Fed
        Of one shard.
    tokens_per_batch : int
        Longer sequences go by pieces.
    open_at : int, optional
        The token at which the shard ends, where the sequence that ends there goes on behind it:
        that one's cache is kept.
    resume : Standing, optional
        A cache left by the shard before: the sequence it is of goes on from there, if the cache
        ends where that sequence's first wanted row is.

    Returns
    -------
    list of Batch
        The pieces: the resumed sequence first and the one that goes on last, so that there is
        one cache at a time.
    list of Fed
        The rest.
    """
    resumed: list[Batch] = []
    long: list[Batch] = []
    last: list[Batch] = []
    whole: list[Fed] = []
    for each in fed:
        sequence = each.sequence
        ready = Standing(
            sequence.doc_idx, sequence.start, each.n_prefix + sequence.keep_start - sequence.start
        )
        start = ready.n_tokens if resume == ready else 0
        goes_on = sequence.stop == open_at
        if not (start or goes_on or each.length > tokens_per_batch):
            whole.append(each)
            continue
        found = pieces(each, tokens_per_batch, start=start, goes_on=goes_on)
        (resumed if start else last if goes_on else long).extend(found)
    return [*resumed, *long, *last], whole


class Prefill:
    """The cache of the sequence that a model is being fed by pieces.

    Parameters
    ----------
    model : torch.nn.Module
        One for which :func:`can_prefill` found no reason against it.

    Attributes
    ----------
    standing : Standing or None
        What a next shard may go on from; none while passes run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.standing: Standing | None = None
        self._model = model
        self._cache: Any = None
        self._after: Standing | None = None

    def kwargs(self, inputs: Inputs) -> dict[str, Any]:
        """Return what the model is given beside ``inputs.arrays``: nothing for whole sequences.

        Pieces of one sequence must come in order, and none of another between them.

        Raises
        ------
        RuntimeError
            The cache is not that of what comes before this piece.
        """
        piece = inputs.piece
        if piece is None:
            return {}
        found = self._after or self.standing
        wanted = Standing(piece.doc_idx, piece.window, piece.start)
        cache, self.standing = self._cache, None
        if piece.start == 0:
            cache = new_cache(self._model)
        elif found != wanted or cache is None:
            raise RuntimeError(f"a piece goes on from {wanted}, and the cache is at {found}")
        self._after = wanted._replace(n_tokens=piece.stop) if piece.goes_on else None
        self._cache = cache if piece.goes_on else None
        return {"past_key_values": cache, "use_cache": True}

    def finish(self) -> None:
        """Say that all passes went well: what is in the cache may be gone on from."""
        self.standing = self._after or self.standing
        self._after = None

    def drop(self) -> None:
        """Forget the cache, as after a pass that failed, and give its memory back."""
        self._cache = self._after = self.standing = None


def new_cache(model: nn.Module) -> Any:
    """Return an empty key-value cache, its layers as the model's configuration says."""
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config)


def cache_bytes(config: Any, n_tokens: int, dtype: str) -> int:
    """Return the bytes of the keys and values of a sequence in the cache.

    Twice the layers, the key and value heads and their width, for each token; in layers with a
    sliding window for no more tokens than that. An upper bound where layers share or leave them
    out.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
    n_tokens : int
        The longest sequence, special tokens included.
    dtype : str
        What computes.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> config = LlamaConfig(hidden_size=3072, num_hidden_layers=28, num_attention_heads=24,
    ...                      num_key_value_heads=8, head_dim=128)
    >>> cache_bytes(config, 131_072, "bfloat16") / 2**30
    14.0
    """
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    n_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    window = sliding_window(config)
    kinds = getattr(text, "layer_types", None) or [None] * int(text.num_hidden_layers)
    n_cached = 0
    for kind in kinds:
        slides = window is not None and kind in (None, "sliding_attention")
        n_cached += min(n_tokens, window) if slides and window is not None else n_tokens
    return 2 * n_heads * width * n_cached * numpy_dtype(dtype).itemsize


def sliding_window(config: Any) -> int | None:
    """Return how many tokens back a model's sliding layers look; None where none slides."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    window = getattr(text, "sliding_window", None) if slides else None
    return int(window) if window and getattr(text, "use_sliding_window", True) else None


def can_prefill(model: nn.Module, hookpoints: Items[HookpointSpec], max_length: int) -> str | None:
    """Return why this model cannot be fed piece by piece; None where it can.

    It is tried: a sequence fed in pieces of several sizes must give the rows that it gives in one
    pass. Where windows are longer than the model's sliding attention looks back, so is the
    sequence that it is tried with.

    Parameters
    ----------
    model : torch.nn.Module
        Loaded and causal, with the attention it will run with.
    hookpoints : sequence of HookpointSpec
        All rows at these are compared. The pass ends after the deepest, and so does the cache.
    max_length : int
        Tokens of a window.
    """
    import torch

    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no past_key_values"
    window = sliding_window(model.config)
    n = PROBE_TOKENS if window is None or window >= max_length else window + PROBE_TOKENS
    n = min(n, max_length)
    if n > MAX_PROBE_TOKENS:
        return f"its sliding window of {window} tokens is too long to try it with"
    tokens = probe_tokens(model, n)
    if tokens is None:
        return f"{type(model).__name__} knows too few tokens to try it with"
    positions = torch.arange(n, device=tokens.device)[None]
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        whole = capture(tokens[None])
        for edges in _cuts(n):
            try:
                found = _by_pieces(capture, new_cache(model), tokens, positions, edges)
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                return f"{type(model).__name__} was fed by pieces: {error}"
            for name, rows in whole.items():
                if reason := difference(found[name], rows[0], by_row=True):
                    return f"at {name} rows fed by pieces differ from one pass by {reason}"
    return None


def _cuts(n: int) -> Iterator[list[int]]:
    """Yield ways to cut n tokens: into a long and a short piece, and into four uneven ones."""
    yield [0, n - n // 4, n]
    yield [0, *sorted({max(1, n // 5), max(1, n // 2), max(1, n - 2)}), n]


def _by_pieces(capture: Capture, cache: Any, tokens: Any, positions: Any, edges: Items[int]) -> Any:
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
