"""Memory of a run, projected and checked against the machine before the run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from actlas.pipeline.forward.prefill import MAX_MASK, cache_bytes
from actlas.pipeline.hookpoints.reached import unreached
from actlas.pipeline.model.config import build_skeleton
from actlas.pipeline.model.device import _free_device_bytes
from actlas.pipeline.model.files import n_stored_parameters, weight_files
from actlas.pipeline.model.host import free_host_bytes, gib, total_host_bytes
from actlas.pipeline.options import RunOptions
from actlas.store.errors import MemoryBudgetError
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import Plan

SHARDS_IN_MEMORY = 2
"""Shards of a worker in memory: one is computed while another is written."""

DEFAULT_TOKENS_PER_BATCH = 8192
"""Default token budget, where the device is not known yet."""

MASK_BYTES = 5
"""Bytes of each (query, key) pair in the mask of a chunk: measured with sdpa on a CPU."""

_BLOCK_TENSORS = 6
"""Tensors [token, d_model] in memory at once in a block: residual, norm, q, k, v, output."""

_MLP_TENSORS = 3
"""Tensors [token, d_mlp] in memory at once in an MLP: gate, up, their product."""


class Projection(NamedTuple):
    """The projected peak memory of one worker, in bytes.

    Attributes
    ----------
    weights : int
        Weights of the model.
    shards : int
        Activations of SHARDS_IN_MEMORY shards.
    batch : int
        Tensors of a forward pass over one batch.
    """

    weights: int
    shards: int
    batch: int

    @property
    def total(self) -> int:
        """Sum of all, in bytes."""
        return sum(self)

    def __str__(self) -> str:
        return (
            f"{gib(self.weights)} of weights, {gib(self.shards)} for {SHARDS_IN_MEMORY} shards, "
            f"{gib(self.batch)} for a batch"
        )


def shard_bytes(plan: Plan) -> int:
    """Return the bytes of all activations of one shard; of its pooled rows in a pooled store.

    Parameters
    ----------
    plan : Plan
        The plan of the store.
    """
    if not plan.dense:
        pooled = StoreArrays(plan).pooled.values()
        return sum(min(spec.shard_rows, spec.n_rows) * spec.row_bytes for spec in pooled)
    rows = min(plan.shard_rows, plan.n_tokens)
    return rows * sum(h.width for h in plan.hookpoints) * numpy_dtype(plan.dtype).itemsize


def batch_bytes(
    plan: Plan, config: Any, tokens_per_batch: int, *, chunked_prefill: bool = False
) -> int:
    """Estimate the bytes of a forward pass over one batch, without the weights.

    The estimate is the sum of the tensors of a block of the usual shape, its attention scores where
    the attention is not fused, the rows gathered from every hookpoint, and, with chunked prefill,
    the mask of a chunk and the cache of the longest sequence.

    Parameters
    ----------
    plan : Plan
        The plan of the store.
    config : transformers.PreTrainedConfig
        The model's configuration.
    tokens_per_batch : int
        The token budget of a pass.
    chunked_prefill : bool
        Whether sequences longer than the budget are computed in chunks.
    """
    longest = plan.windows.max_length
    n_tokens = tokens_per_batch if chunked_prefill else max(tokens_per_batch, longest)
    cache = 0
    if chunked_prefill:
        mask = MASK_BYTES * min(tokens_per_batch * longest, MAX_MASK)
        cache = cache_bytes(config, longest, plan.model.compute_dtype) + mask
    item = numpy_dtype(plan.model.compute_dtype).itemsize
    text = config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * plan.model.d_model
    in_block = n_tokens * item * (_BLOCK_TENSORS * plan.model.d_model + _MLP_TENSORS * int(inner))
    scores = 0
    if getattr(config, "_attn_implementation", "sdpa") == "eager":
        scores = 2 * n_tokens * plan.windows.max_length * int(text.num_attention_heads) * item
    widths = [h.width for h in plan.hookpoints]
    gathered = n_tokens * numpy_dtype(plan.dtype).itemsize * sum(widths)
    widest_output = n_tokens * item * max(widths)
    return in_block + scores + gathered + widest_output + cache


def weight_bytes(plan: Plan, config: Any, folder: Path, run: RunOptions) -> int:
    """Return the bytes of the weights that a worker loads, without blocks that no pass reaches.

    Parameters
    ----------
    plan : Plan
        The plan of the store.
    config : transformers.PreTrainedConfig
        The model's configuration.
    folder : Path
        The model's files, of which only the headers are read.
    run : RunOptions
        With a ``device_map`` the result is 0: accelerate places weights where they fit.
    """
    if run.device_map is not None:
        return 0
    spec = plan.model
    skeleton = build_skeleton(config, spec.architecture, trust_remote_code=spec.trust_remote_code)
    mixed = spec.modality == "mixed"
    paths = () if plan.with_loss else unreached(skeleton, plan.hookpoints, mixed=mixed)
    left_out = [skeleton.get_submodule(path) for path in paths]
    n_left_out = sum(p.numel() for module in left_out for p in module.parameters())
    if spec.untrained_seed is None:
        n = n_stored_parameters(weight_files(folder))
    else:
        n, n_left_out = sum(p.numel() for p in skeleton.parameters()), 0
    drawn = spec.untrained_seed is not None  # initialized in float32, then rounded
    return (n - n_left_out) * (4 if drawn else numpy_dtype(spec.compute_dtype).itemsize)


def project(
    plan: Plan, config: Any, folder: Path, run: RunOptions, *, chunked_prefill: bool = False
) -> Projection:
    """Project the peak memory of one worker.

    Parameters
    ----------
    plan : Plan
        The plan of the store.
    config : transformers.PreTrainedConfig
        The model's configuration.
    folder : Path
        The model's files, of which only the headers are read.
    run : RunOptions
        ``tokens_per_batch`` and ``device_map`` are read.
    chunked_prefill : bool
        Whether sequences longer than the token budget are computed in chunks.
    """
    budget = run.tokens_per_batch or DEFAULT_TOKENS_PER_BATCH
    return Projection(
        weights=weight_bytes(plan, config, folder, run),
        shards=SHARDS_IN_MEMORY * shard_bytes(plan),
        batch=batch_bytes(plan, config, budget, chunked_prefill=chunked_prefill),
    )


def check_memory(projection: Projection, run: RunOptions, device: str) -> None:
    """Check that a worker's projected memory fits.

    A worker must fit into the free memory, which already excludes the memory of running workers.
    All workers of one machine together must fit into its total memory, however much is free when
    the first of them starts; the workers of a cluster may run on several machines. On an
    accelerator the weights and the batch must also fit into its free memory.

    Parameters
    ----------
    projection : Projection
        The projected memory of one worker.
    run : RunOptions
        ``max_memory_bytes``, ``n_workers`` and ``address`` are read.
    device : str
        The device of the model.

    Raises
    ------
    MemoryBudgetError
        The memory does not fit; the message and ``details`` hold the projected and allowed bytes.
    """
    on_host = device == "cpu"
    needed = projection.total if on_host else projection.weights + projection.shards
    advice = "A smaller tokens_per_batch, fewer hookpoints or smaller shard_rows"
    if run.max_memory_bytes is not None:
        if needed > run.max_memory_bytes:
            raise _over_budget(needed, run.max_memory_bytes, "max_memory_bytes", projection, advice)
    else:
        free, total = free_host_bytes(), total_host_bytes()
        if free is not None and needed > free:
            raise _over_budget(needed, free, "the free memory", projection, advice)
        if run.address is None and total is not None and needed * run.n_workers > total:
            source = f"this machine's memory over {run.n_workers} workers"
            advice = f"Fewer workers, {advice[0].lower()}{advice[1:]}"
            raise _over_budget(needed, total // run.n_workers, source, projection, advice)
    device_free = _free_device_bytes(device)
    on_device = projection.weights + projection.batch
    if device_free is not None and on_device > device_free:
        advice = "A smaller tokens_per_batch, a smaller model_dtype or another device"
        raise _over_budget(
            on_device, device_free, f"the free memory of {device}", projection, advice
        )


def _over_budget(
    needed: int, allowed: int, source: str, projection: Projection, advice: str
) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"A worker needs {gib(needed)} ({needed} bytes: {projection}), and may use {gib(allowed)} "
        f"({allowed} bytes: {source}). {advice} would need less.",
        needed_bytes=needed,
        allowed_bytes=allowed,
    )
