"""Sequences that a loaded model is tested with: texts, images, and texts with images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.forward.batching import Batch, Inputs, InputSequence, assemble
from actlas.pipeline.forward.invariants import probe_ids
from actlas.pipeline.model.vision import blank_pixels, build_processor
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.layout import Sequence as Span
from actlas.store.format.schema import ModelSpec, ProcessorSpec

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch import nn

LENGTHS = (2, 5, 11, 19)
"""Tokens of the short sequences."""

CAUSAL_LENGTHS = (3, 8)
"""The same for a causal model, where padding on the right can reach a row only by mistake."""

CROWD = 8
"""Sequences of the largest batch of short ones: experts of limited capacity drop what they lack
room for, and the fewer kinds of sequences there are, the more choose one expert."""

MAX_CAUSAL_LENGTH = 256
"""Largest number of tokens of a sequence for a causal model."""

_CHUNKS = re.compile(r"(chunk|block|bucket)_(size|length)$")


class Samples(NamedTuple):
    """Sequences to test a model with, and the batches to run. Sequences are given by their numbers.

    Attributes
    ----------
    make : callable
        Returns the input of a forward pass over some sequences, the longest first.
    lengths : tuple of int
        Positions of each sequence.
    padded : tuple of tuple of int
        Batches of sequences of different lengths.
    equal : tuple of tuple of int
        Batches of sequences of one length.
    long : tuple of tuple of int
        The same with the longest sequence.
    """

    make: Callable[[Sequence[int]], Inputs]
    lengths: tuple[int, ...]
    padded: tuple[tuple[int, ...], ...]
    equal: tuple[tuple[int, ...], ...]
    long: tuple[tuple[int, ...], ...] = ()


def samples_for(
    model: nn.Module,
    spec: ModelSpec,
    max_length: int,
    tokens_per_batch: int,
    *,
    pad_id: int,
    processor: ProcessorSpec | None = None,
) -> Samples:
    """Return sequences of the kind that a plan gives its model.

    Parameters
    ----------
    model : torch.nn.Module
        The loaded model.
    spec : ModelSpec
        Its entry in the plan.
    max_length : int
        The largest number of positions of a sequence; of images the number of each.
    tokens_per_batch : int
        The token budget of a pass: no two sequences longer than half of it share one.
    pad_id : int
        The padding token.
    processor : ProcessorSpec, optional
        The image processor of a model that reads images.
    """
    if spec.modality == "image":
        assert processor is not None
        return image_samples(_pictures(processor, 3, spec.compute_dtype), max_length)
    lengths = trial_lengths(model.config, max_length, tokens_per_batch, causal=spec.causal)
    texts = text_samples(model, lengths, causal=spec.causal, pad_id=pad_id)
    if spec.modality == "mixed" and processor is not None:
        return mixed_samples(model, processor, max_length, spec.compute_dtype, pad_id) or texts
    return texts


def trial_lengths(
    config: Any, max_length: int, tokens_per_batch: int, *, causal: bool
) -> list[int]:
    """Return the numbers of tokens of texts to test a model with, ascending.

    Some models compute long sequences by other means than short ones. A model that is not causal is
    tested with the longest two sequences that may share a pass; a causal one only beyond the
    chunks that its configuration states, if these are short.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration.
    max_length : int
        The largest number of tokens of a sequence.
    tokens_per_batch : int
        The token budget of a pass.
    causal : bool
        Whether the model is causal.

    Examples
    --------
    >>> from transformers import BertConfig
    >>> trial_lengths(BertConfig(), 512, 2048, causal=False)
    [2, 5, 11, 19, 512]
    """
    longest = min(max_length, max(1, tokens_per_batch // 2))
    lengths: tuple[int, ...] = (*LENGTHS, longest)
    if causal:
        beyond = [2 * n + 3 for n in _chunk_lengths(config)]
        lengths = CAUSAL_LENGTHS + tuple(n for n in beyond if n <= min(longest, MAX_CAUSAL_LENGTH))
    return sorted({min(n, max_length) for n in lengths})


def text_samples(
    model: nn.Module, lengths: Sequence[int], *, causal: bool, pad_id: int = 0
) -> Samples:
    """Return texts of some lengths, and batches of them.

    Parameters
    ----------
    model : torch.nn.Module
        The loaded model, whose vocabulary is read.
    lengths : sequence of int
        Different numbers of tokens, ascending.
    causal : bool
        Whether the model is causal: padding is then not masked.
    pad_id : int
        The padding token.
    """
    n = len(lengths)
    n_short = sum(length <= LENGTHS[-1] for length in lengths) or n
    last, short = n_short - 1, range(n_short - 1, -1, -1)
    twins = (lengths[last], lengths[0], lengths[-1])
    texts = _split(probe_ids(model, sum(lengths) + sum(twins)), (*lengths, *twins))
    padded = [tuple(short), (last, 0), (n - 1, min(1, n - 1))]
    return Samples(
        _maker(texts, causal=causal, pad_id=pad_id),
        tuple(map(len, texts)),
        tuple(dict.fromkeys(batch for batch in padded if len(set(batch)) > 1)),
        ((last, n) * (CROWD // 2), (0, n + 1)),
        ((n - 1, n + 2),) if n > n_short else (),
    )


def mixed_samples(
    model: nn.Module, processor: ProcessorSpec, max_length: int, dtype: str, pad_id: int = 0
) -> Samples | None:
    """Return texts with and without an image; None where no image fits a sequence.

    Parameters
    ----------
    model : torch.nn.Module
        A causal model of texts with images.
    processor : ProcessorSpec
        Its image processor.
    max_length : int
        The largest number of positions of a sequence.
    dtype : str
        The compute dtype, that of the images' pixels.
    pad_id : int
        The padding token.
    """
    n_patches = math.prod(processor.grid)
    if n_patches > max_length:
        return None
    around = [min(n, max_length - n_patches) for n in (2, 2, 5)]
    lengths = [min(n, max_length) for n in (*CAUSAL_LENGTHS, n_patches + around[0])]
    parts = _split(probe_ids(model, sum(lengths) + sum(around)), (*lengths, *around))
    images = [np.full(n_patches, processor.image_token_id or 0)] * len(around)
    framed = [
        np.concatenate([text[:1], image, text[1:]])
        for image, text in zip(images, parts[len(lengths) :], strict=True)
    ]
    pixels = _pictures(processor, len(around), dtype)
    text_of = _maker([*parts[: len(lengths)], *framed], causal=True, pad_id=pad_id)

    def make(numbers: Sequence[int]) -> Inputs:
        inputs = text_of(numbers)
        with_image = [number - len(lengths) for number in numbers if number >= len(lengths)]
        more = {"pixel_values": pixels[with_image]} if with_image else {}
        return inputs._replace(arrays={**inputs.arrays, **more})

    sizes = (*lengths, *map(len, framed))
    padded = [(1, 0), (3, 0), (5, 4, 1)]
    padded = [batch for batch in padded if len({sizes[number] for number in batch}) > 1]
    return Samples(make, sizes, tuple(padded), ((3, 4), (3, 2)))


def image_samples(pixels: Shaped[NDArray[Any], "images ..."], n_positions: int) -> Samples:
    """Return images, all of which have the same number of positions, and batches of them.

    Parameters
    ----------
    pixels : ndarray, shape [3, channel, height, width]
        Three different images, as the model reads them.
    n_positions : int
        Positions of an image.
    """

    def make(numbers: Sequence[int]) -> Inputs:
        none = np.empty(0, np.int64)
        arrays = {"pixel_values": pixels[list(numbers)]}
        return Inputs(arrays, (len(numbers), n_positions), none, none)

    return Samples(make, (n_positions,) * 3, (), ((0, 1, 2), (2, 1)))


def _pictures(processor: ProcessorSpec, n: int, dtype: str) -> NDArray[Any]:
    """Return the input of images of noise, all different, of the processor's shape."""
    blank = blank_pixels(build_processor(processor), n)
    noise: NDArray[Any] = np.random.default_rng(0).standard_normal(blank.shape, np.float32)
    return noise.astype(numpy_dtype(dtype))


def _split(tokens: NDArray[np.int64], lengths: Sequence[int]) -> list[NDArray[np.int64]]:
    return np.split(tokens, list(accumulate(lengths))[:-1])


def _maker(
    texts: Sequence[NDArray[np.int64]], *, causal: bool, pad_id: int
) -> Callable[[Sequence[int]], Inputs]:
    """Return the function that batches texts as a run does."""
    tokens = np.concatenate(texts).astype(np.int32)
    edges = [0, *accumulate(map(len, texts))]
    spans = [
        InputSequence(Span(i, start, stop, start, stop), 0, 0)
        for i, (start, stop) in enumerate(pairwise(edges))
    ]

    def make(numbers: Sequence[int]) -> Inputs:
        sequences = tuple(spans[number] for number in numbers)
        batch = Batch(sequences, max(each.length for each in sequences))
        return assemble(
            batch, tokens, 0, prefix_ids=(), suffix_ids=(), pad_id=pad_id, causal=causal
        )

    return make


def _chunk_lengths(config: Any) -> list[int]:
    """Return the lengths of chunks that a configuration states: longer sequences are padded."""
    stated = config.get_text_config().to_dict()
    return [n for name, n in stated.items() if _CHUNKS.search(name) and isinstance(n, int)]
