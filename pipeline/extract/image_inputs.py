"""From the images of a store to a model's input, batch by batch: decoded from the store's bytes."""

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
"""A model of few positions, such as a network of convolutions, still computes every pixel."""

MAX_THREADS = 8
"""That decode images; beyond, they wait for Python's lock."""


def around_image(plan: Plan) -> tuple[int, int]:
    """Return how many positions of an image come before and after the kept ones."""
    processor = plan.processor
    if processor is None or plan.keep_special:
        return 0, 0
    return processor.n_prefix, processor.n_suffix


def image_budget(plan: Plan, tokens_per_batch: int) -> int:
    """Return the budget in positions under which a batch's pixels are within ``tokens_per_batch``.

    A patch of 16 x 16 pixels counts as a token, where that makes more of them than positions.
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
    """Yield each batch of images with its pixels; at most one batch is decoded at a time.

    Every image is a sequence by itself and is always fed whole.
    """
    with ThreadPoolExecutor(_n_threads(), thread_name_prefix="actlas-images") as pool:
        for batch in batches:
            documents = [fed.sequence.doc_idx for fed in batch.fed]
            first = min(documents)
            files = store.documents.images(first, max(documents) + 1)
            kept, token = [], []
            for i, (sequence, n_prefix, _) in enumerate(batch.fed):
                rows = np.arange(sequence.keep_start, sequence.keep_stop, dtype=np.int64)
                kept.append(i * batch.length + n_prefix + rows - sequence.start)
                token.append(rows)
            wanted = [files[doc_idx - first] for doc_idx in documents]
            arrays = {"pixel_values": _pixels(store.plan, wanted, pool)}
            shape = len(batch.fed), batch.length
            yield batch, Inputs(arrays, shape, np.concatenate(kept), np.concatenate(token))


def _n_threads() -> int:
    return min(n_cpus(), MAX_THREADS)


def _pixels(plan: Plan, files: Items[bytes], pool: Executor) -> NDArray[Any]:
    """Return ``pixel_values`` of image files in the dtype that computes: not every model rounds.

    Each is decoded and brought to size by itself, in threads: Pillow works without Python's lock.
    """
    assert plan.processor is not None
    processor = build_processor(plan.processor)
    dtype = numpy_dtype(plan.model.compute_dtype)

    def one(data: bytes) -> NDArray[Any]:
        return pixels(processor, [decode_image(data)]).astype(dtype)

    return np.concatenate(list(pool.map(one, files)))


def whole_images(
    store: StoreReader, sequences: Iterable[Sequence], stop: int, content: int
) -> Iterator[Sequence]:
    """Let no mixed sequence end inside an image: one that does goes on to the image's end.

    Parameters
    ----------
    store : StoreReader
    sequences : iterable of Sequence
        Of one shard, causal.
    stop : int
        The end of the shard: where sequences have been cut.
    content : int
        Kept tokens of a full window.
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
    """Return a mixed batch's inputs with its pictures in the order in which they stand in it."""
    plan = store.plan
    assert plan.processor is not None
    assert plan.processor.image_token_id is not None
    ids = inputs.arrays["input_ids"]
    patches = ids == NO_TOKEN
    places = batch.places or range(0, batch.n_padded, batch.length)
    documents = [
        fed.sequence.doc_idx
        for fed, place in zip(batch.fed, places, strict=True)
        if patches.reshape(-1)[place : place + fed.length].any()
    ]
    if not documents:
        return inputs
    files = [store.documents.image(doc_idx) or b"" for doc_idx in documents]
    with ThreadPoolExecutor(_n_threads(), thread_name_prefix="actlas-images") as pool:
        pictures = _pixels(plan, files, pool)
    ids = np.where(patches, plan.processor.image_token_id, ids)
    arrays = {**inputs.arrays, "input_ids": ids, "pixel_values": pictures}
    return inputs._replace(arrays=arrays)
