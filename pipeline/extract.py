"""Shards of a plan become activations, and activations become a committed shard.

``compute`` runs the model and fills the shard's arrays, ``commit`` writes them; ``extract`` is
both, and ``extract_many`` writes one shard while the next is computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.pipeline.architecture import quiet
from actlas.pipeline.batching import Batch, Inputs, padding_share
from actlas.pipeline.capture import Capture
from actlas.pipeline.checks import check_causal, check_windows
from actlas.pipeline.cpus import n_cpus
from actlas.pipeline.device import (
    device_name,
    resolve_device,
    synchronize,
    to_device,
    to_numpy,
)
from actlas.pipeline.feeding import batch_inputs, shard_batches
from actlas.pipeline.memory import check_memory, project
from actlas.pipeline.model import find_model, load_config, load_model
from actlas.pipeline.options import RunOptions
from actlas.pipeline.rate import Rate, bare_forward_rate
from actlas.store import layout
from actlas.store.commit import commit_shard
from actlas.store.dtypes import numpy_dtype
from actlas.store.schema import Receipt
from actlas.store.store import Store


@dataclass(frozen=True, slots=True)
class Computed:
    """A shard's activations, not yet written.

    Attributes
    ----------
    activations : dict of str to ndarray, shape [rows of the shard, width]
        In the plan's dtype, rows in the order in which they are stored.
    run : dict
        How they were made, for the receipt.
    """

    shard: int
    activations: dict[str, NDArray[Any]]
    run: dict[str, Any]


@dataclass(slots=True)
class _Clock:
    """Seconds spent in each stage of a shard."""

    forward_s: float = 0.0
    gather_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class Extractor:
    """One model, loaded once, that computes the shards of one store.

    Parameters
    ----------
    store : Store
    run : RunOptions
    model : str, optional
        Where to load the model from, if not from ``run.model_path``, nor from where the plan found
        it; its files must be the same.

    Raises
    ------
    ModelError
        The model is not there, is not the plan's, or is not causal though the plan says so.
    MemoryBudgetError
        The run would need more memory than it may use.
    ConfigError
        There is no such device.
    """

    def __init__(self, store: Store, run: RunOptions, *, model: str | None = None) -> None:
        self.store, self.plan, self.run = store, store.plan, run
        self.device = resolve_device(run.device)
        self.threads = run.threads or max(1, n_cpus() // run.workers)
        torch.set_num_threads(self.threads)
        spec = self.plan.model
        folder = find_model(spec, model or run.model_path)
        config = load_config(folder, trust_remote_code=spec.trust_remote_code)
        check_windows(config, spec.context_length, self.plan.windows.max_length)
        check_memory(project(self.plan, config, folder, run), run, self.device)
        self.model = load_model(spec, str(folder), self.device)
        if spec.causal:
            with quiet():
                check_causal(self.model, self.plan.hookpoints)
        pad = getattr(config.get_text_config(), "pad_token_id", None)
        self.pad_id = pad if isinstance(pad, int) and pad >= 0 else 0
        self._dtype: torch.dtype = getattr(torch, self.plan.dtype)

    def compute(self, shard: int) -> Computed:
        """Run the model over a shard and return its activations, rows as they are stored.

        Raises
        ------
        HookpointError
            A hookpoint is not what it was planned to be.
        """
        plan = self.plan
        start, stop = layout.shard_range(shard, plan.shard_rows, plan.n_tokens)
        row_of = layout.shard_rows_of(plan.order, plan.seed, start, stop)
        dtype = numpy_dtype(plan.dtype)
        buffers = {h.name: np.empty((stop - start, h.width), dtype) for h in plan.hookpoints}
        batches = self.batches(shard)
        clock = _Clock()
        n_rows = 0
        with quiet(), torch.inference_mode(), Capture(self.model, plan.hookpoints) as capture:
            for _batch, inputs in batch_inputs(self.store, batches, pad_id=self.pad_id):
                rows = row_of[inputs.token - start]
                self._forward(capture, inputs, rows, buffers, clock)
                n_rows += len(rows)
        if n_rows != stop - start:
            raise RuntimeError(
                f"shard {shard} has tokens [{start}, {stop}), {n_rows} rows were computed"
            )
        return Computed(shard, buffers, self._record(batches, clock))

    def commit(self, computed: Computed, attempt: str) -> Receipt:
        """Write a computed shard and return its receipt."""
        return commit_shard(
            self.store,
            computed.shard,
            computed.activations,
            attempt=attempt,
            run=computed.run,
            on_nonfinite=self.run.on_nonfinite,
        )

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute a shard and write it.

        Parameters
        ----------
        shard : int
        attempt : str
            Who writes: recorded with every object.
        """
        return self.commit(self.compute(shard), attempt)

    def extract_many(self, shards: Iterable[int], *, attempt: str) -> Iterator[Receipt]:
        """Extract shards, writing each while the next is computed; yield receipts in order.

        At most two shards are in memory. An error in writing is raised when the next shard has
        been computed.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="actlas-commit") as writer:
            pending: Future[Receipt] | None = None
            for shard in shards:
                computed = self.compute(shard)
                if pending is not None:
                    yield pending.result()
                pending = writer.submit(self.commit, computed, attempt)
                del computed
            if pending is not None:
                yield pending.result()

    def batches(self, shard: int) -> list[Batch]:
        """Return the batches of a shard, in the order in which they run."""
        return shard_batches(self.store, shard, self.run.tokens_per_batch)

    def bare_forward_rate(self, shard: int = 0, *, max_seconds: float = 2.0) -> Rate:
        """Measure the forward pass alone: :func:`actlas.pipeline.rate.bare_forward_rate`."""
        batches, plan = self.batches(shard), self.plan
        inputs = partial(batch_inputs, self.store, pad_id=self.pad_id)
        return bare_forward_rate(
            self.model, plan.hookpoints, batches, inputs, self.device, max_seconds
        )

    def _forward(
        self,
        capture: Capture,
        inputs: Inputs,
        rows: NDArray[np.int64],
        buffers: dict[str, NDArray[Any]],
        clock: _Clock,
    ) -> None:
        """Run one batch and put the kept rows of every hookpoint where they are stored.

        Rows are gathered and rounded inside the pass, on the device: the model may overwrite its
        tensors, and what is not kept need not live any longer.
        """
        kept = torch.from_numpy(inputs.kept).to(self.device)
        copied: dict[str, torch.Tensor] = {}
        began, gather_s = time.perf_counter(), 0.0

        def read(name: str, tensor: torch.Tensor) -> None:
            nonlocal gather_s
            started = time.perf_counter()
            gathered = tensor.flatten(0, 1).index_select(0, kept).to(self._dtype)
            if gathered.device.type == "cpu":
                _scatter(buffers[name], rows, gathered)
            else:
                copied[name] = gathered
            gather_s += time.perf_counter() - started

        capture(**to_device(inputs.arrays, self.device), shape=inputs.shape, read=read)
        synchronize(self.device)
        clock.forward_s += time.perf_counter() - began - gather_s
        started = time.perf_counter()
        for name, gathered in copied.items():
            _scatter(buffers[name], rows, gathered.cpu())
        clock.gather_s += gather_s + time.perf_counter() - started

    def _record(self, batches: list[Batch], clock: _Clock) -> dict[str, Any]:
        return {
            "device": device_name(self.device),
            "threads": self.threads,
            "tokens_per_batch": self.run.tokens_per_batch,
            "n_batches": len(batches),
            "n_tokens_fed": sum(batch.n_fed for batch in batches),
            "padding_share": padding_share(batches),
            "compute_s": time.perf_counter() - clock.started,
            "forward_s": clock.forward_s,
            "gather_s": clock.gather_s,
            "torch": torch.__version__,
        }


def _scatter(buffer: NDArray[Any], rows: NDArray[np.int64], gathered: torch.Tensor) -> None:
    """Put rows where they are stored, as plain words of memory, in this thread.

    Torch's own ``index_copy_`` wakes all its threads for a copy of a few megabytes: on busy
    processors that was ten times slower.
    """
    words = f"u{buffer.dtype.itemsize}"
    buffer.view(words)[rows] = to_numpy(gathered).view(words)
