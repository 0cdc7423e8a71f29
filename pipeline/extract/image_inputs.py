"""The model's input for images, decoded batch by batch from the image files in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.corpus.image_files import decode_image
from actlas.pipeline.corpus.patches import NO_TOKEN
from actlas.pipeline.forward.batching import Batch, Inputs
from actlas.pipeline.model.host import n_cpus
from actlas.pipeline.model.vision import blank_pixels, build_processor, pixels
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.layout import Sequence
from actlas.store.format.schema import Plan, ProcessorSpec
from actlas.store.read.reader import StoreReader

PIXELS_PER_TOKEN = 16 * 16
"""Pixels that count as a token: a model of few positions, such as a convolutional network, computes
every pixel too."""

MAX_THREADS = 8
"""Largest number of threads that decode images; more of them wait for Python's lock."""


def n_special_positions(plan: Plan) -> tuple[int, int]:
    """Return the number of an image's positions before and after the kept ones."""
    processor = plan.processor
    if processor is None or plan.keep_special:
        return 0, 0
    return processor.n_prefix, processor.n_suffix


def image_budget(plan: Plan, tokens_per_batch: int) -> int:
    """Return the budget in positions that keeps a batch's pixels within ``tokens_per_batch``.

    A patch of 16 x 16 pixels counts as a token, where an image has more patches than positions.

    Parameters
    ----------
    plan : Plan
        The plan of a store of images.
    tokens_per_batch : int
        The token budget of a pass.
    """
    assert plan.processor is not None
    n_positions = plan.windows.max_length
    n_patches = -(-_n_pixels(plan.processor) // PIXELS_PER_TOKEN)
    return max(1, tokens_per_batch * n_positions // max(n_positions, n_patches))


def _n_pixels(processor: ProcessorSpec) -> int:
    return _n_pixels_of(processor.model_dump_json())


@lru_cache(maxsize=4)
def _n_pixels_of(processor: str) -> int:
    spec = ProcessorSpec.model_validate_json(processor)
    height, width = blank_pixels(build_processor(spec)).shape[-2:]
    return int(height * width)


def image_inputs(store: StoreReader, batches: Items[Batch]) -> Iterator[tuple[Batch, Inputs]]:
    """Yield each batch of images with its input; at most one batch is decoded at a time.

    Each image is a sequence of its own and is always computed whole.

    Parameters
    ----------
    store : StoreReader
        The store of the image files.
    batches : sequence of Batch
        Batches of images.
    """
    with ThreadPoolExecutor(_n_threads(), thread_name_prefix="actlas-images") as threads:
        for batch in batches:
            documents = [each.content.doc_idx for each in batch.sequences]
            first = min(documents)
            files = store.documents.images(first, max(documents) + 1)
            kept, token = [], []
            for i, (sequence, n_prefix, _) in enumerate(batch.sequences):
                rows = np.arange(sequence.keep_start, sequence.keep_stop, dtype=np.int64)
                kept.append(i * batch.length + n_prefix + rows - sequence.start)
                token.append(rows)
            wanted = [files[doc_idx - first] for doc_idx in documents]
            arrays = {"pixel_values": _pixels(store.plan, wanted, threads)}
            shape = len(batch.sequences), batch.length
            yield batch, Inputs(arrays, shape, np.concatenate(kept), np.concatenate(token))


def _n_threads() -> int:
    return min(n_cpus(), MAX_THREADS)


def _pixels(plan: Plan, files: Items[bytes], threads: Executor) -> NDArray[Any]:
    """Return ``pixel_values`` of image files in the compute dtype: not every model casts them.

    Each file is decoded and resized on its own, in threads: Pillow releases Python's lock.
    """
    assert plan.processor is not None
    processor = build_processor(plan.processor)
    dtype = numpy_dtype(plan.model.compute_dtype)

    def one(data: bytes) -> NDArray[Any]:
        return pixels(processor, [decode_image(data)]).astype(dtype)

    return np.concatenate(list(threads.map(one, files)))


def whole_images(
    store: StoreReader, sequences: Iterable[Sequence], stop: int, content: int
) -> Iterator[Sequence]:
    """Yield the sequences of a mixed store, extended so that none ends inside an image.

    Parameters
    ----------
    store : StoreReader
        The store of the tokens.
    sequences : iterable of Sequence
        The sequences of one shard of a causal model.
    stop : int
        The token at which the shard ends, where sequences are cut.
    content : int
        Number of kept tokens of a full window.
    """
    documents = store.documents
    for sequence in sequences:
        end = sequence.stop
        if end == stop:
            last = min(sequence.start + content, int(documents.start[sequence.doc_idx + 1]))
            patches = np.flatnonzero(documents.token_ids(sequence.start, last) == NO_TOKEN)
            if len(patches) and sequence.start + patches[0] < end:
                end = max(end, sequence.start + int(patches[-1]) + 1)
        yield sequence._replace(stop=end)


def with_images(store: StoreReader, batch: Batch, inputs: Inputs) -> Inputs:
    """Return the input of a mixed batch with its images, in the order of the batch.

    Parameters
    ----------
    store : StoreReader
        The store of the image files.
    batch : Batch
        A batch of text with images.
    inputs : Inputs
        Its input without images.
    """
    plan = store.plan
    assert plan.processor is not None
    assert plan.processor.image_token_id is not None
    ids = inputs.arrays["input_ids"]
    patches = ids == NO_TOKEN
    offsets = batch.offsets or range(0, batch.n_padded, batch.length)
    documents = [
        each.content.doc_idx
        for each, offset in zip(batch.sequences, offsets, strict=True)
        if patches.reshape(-1)[offset : offset + each.length].any()
    ]
    if not documents:
        return inputs
    files = [store.documents.image(doc_idx) or b"" for doc_idx in documents]
    with ThreadPoolExecutor(_n_threads(), thread_name_prefix="actlas-images") as threads:
        pictures = _pixels(plan, files, threads)
    ids = np.where(patches, plan.processor.image_token_id, ids)
    arrays = {**inputs.arrays, "input_ids": ids, "pixel_values": pictures}
    return inputs._replace(arrays=arrays)
