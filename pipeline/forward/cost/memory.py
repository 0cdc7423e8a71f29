"""Memory of a run, projected and checked against the machine before the run starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from actlas.pipeline.forward.prefill import MAX_MASK, cache_bytes
from actlas.pipeline.hookpoints.reached import unreached
from actlas.pipeline.model.config import build_skeleton
from actlas.pipeline.model.device import _free_device_bytes
from actlas.pipeline.model.fields import size_field
from actlas.pipeline.model.host import free_host_bytes, gib, total_host_bytes
from actlas.pipeline.options import RunOptions
from actlas.store.errors import MemoryBudgetError
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import Plan

if TYPE_CHECKING:
    from torch import nn

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
    """Return the bytes of all activations of one shard; of its pooled rows in a pooled store."""
    arrays = StoreArrays(plan)
    specs = (arrays.activations or arrays.pooled).values()
    return sum(min(spec.shard_rows, spec.n_rows) * spec.row_bytes for spec in specs)


def batch_bytes(
    plan: Plan, config: Any, tokens_per_batch: int, *, chunked_prefill: bool = False
) -> int:
    """Estimate the bytes of a forward pass over one batch, without the weights.

    The estimate is the sum of the tensors of a block of the usual shape, its attention scores where
    the attention is not fused, the rows gathered from every hookpoint, and, with chunked prefill,
    the mask of a chunk and the cache of the longest sequence. ``tokens_per_batch`` is the token
    budget of a pass; the other parameters are those of :func:`project`.
    """
    longest, d_model = plan.windows.max_length, plan.model.d_model
    text, item = config.get_text_config(), numpy_dtype(plan.model.compute_dtype).itemsize
    n_tokens, cache = max(tokens_per_batch, longest), 0
    if chunked_prefill:
        n_tokens = tokens_per_batch
        mask = MASK_BYTES * min(tokens_per_batch * longest, MAX_MASK)
        cache = cache_bytes(config, longest, plan.model.compute_dtype) + mask
    d_mlp = size_field(text, "intermediate_size") or 4 * d_model
    eager = getattr(config, "_attn_implementation", "sdpa") == "eager"
    n_heads = size_field(text, "num_attention_heads") or 0  # a model without attention has none
    scores = 2 * longest * n_heads if eager else 0
    widths = [hookpoint.width for hookpoint in plan.hookpoints]
    computed = _BLOCK_TENSORS * d_model + _MLP_TENSORS * d_mlp + scores + max(widths)
    gathered = numpy_dtype(plan.dtype).itemsize * sum(widths)
    return n_tokens * (item * computed + gathered) + cache


def _weight_bytes(plan: Plan, config: Any, skeleton: nn.Module | None) -> int:
    """Return the bytes of the weights that a worker loads, without blocks that no pass reaches.

    They are those of the model that is built, tied ones once; a checkpoint may hold others too,
    such as a head that is not loaded.
    """
    spec = plan.model
    if skeleton is None:
        code = spec.trust_remote_code
        skeleton = build_skeleton(config, spec.architecture, trust_remote_code=code)
    if spec.untrained_seed is not None:  # all are initialized, in float32, then rounded
        return 4 * sum(parameter.numel() for parameter in skeleton.parameters())
    mixed = spec.modality == "mixed"
    paths = () if plan.with_loss else unreached(skeleton, plan.hookpoints, mixed=mixed)
    left_out = tuple(f"{path}." for path in paths)
    loaded = {
        id(parameter): parameter.numel()
        for name, parameter in skeleton.named_parameters(remove_duplicate=False)
        if not name.startswith(left_out)
    }
    return sum(loaded.values()) * numpy_dtype(spec.compute_dtype).itemsize


def project(
    plan: Plan,
    config: Any,
    run: RunOptions,
    *,
    chunked_prefill: bool = False,
    skeleton: nn.Module | None = None,
) -> Projection:
    """Project the peak memory of one worker.

    Parameters
    ----------
    plan : Plan
        The plan of the store.
    config : transformers.PreTrainedConfig
        The model's configuration.
    run : RunOptions
        ``tokens_per_batch`` is read, and ``device_map``, with which the weights count 0:
        accelerate places them where they fit.
    chunked_prefill : bool
        Whether sequences longer than the token budget are computed in chunks.
    skeleton : torch.nn.Module, optional
        The model on the meta device; it is built where it is not given.
    """
    budget = run.tokens_per_batch or DEFAULT_TOKENS_PER_BATCH
    return Projection(
        weights=0 if run.device_map is not None else _weight_bytes(plan, config, skeleton),
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
    on_device = projection.weights + projection.batch
    on_host = projection.total if device == "cpu" else projection.weights + projection.shards
    smaller = "smaller tokens_per_batch, fewer hookpoints or smaller shard_rows"
    limits = [(on_host, run.max_memory_bytes, "max_memory_bytes", f"A {smaller}")]
    if run.max_memory_bytes is None:
        total, n = total_host_bytes(), run.n_workers
        share = None if total is None or run.address is not None else total // n
        of_all = f"this machine's memory over {n} workers"
        limits = [
            (on_host, free_host_bytes(), "the free memory", f"A {smaller}"),
            (on_host, share, of_all, f"Fewer workers, a {smaller}"),
        ]
    other = "A smaller tokens_per_batch, a smaller model_dtype or another device"
    free = _free_device_bytes(device)
    limits.append((on_device, free, f"the free memory of {device}", other))
    for needed, allowed, source, advice in limits:
        if allowed is not None and needed > allowed:
            raise MemoryBudgetError(
                f"A worker needs {gib(needed)} ({needed} bytes: {projection}), and may use "
                f"{gib(allowed)} ({allowed} bytes: {source}). {advice} would need less.",
                needed_bytes=needed,
                allowed_bytes=allowed,
            )
