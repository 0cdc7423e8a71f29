"""Shards of a plan become activations, and activations become a committed shard.

``compute`` runs the model and fills the shard's arrays, ``commit`` writes them; ``extract`` is
both, and ``extract_many`` writes one shard while the next is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.pipeline.extract.inputs import batch_inputs, shard_batches
from actlas.pipeline.extract.loss import NextTokenLoss, next_tokens
from actlas.pipeline.forward.batching import Batch, Inputs, padding_share
from actlas.pipeline.forward.invariants import check_causal
from actlas.pipeline.forward.load import load_model, require_leave
from actlas.pipeline.forward.memory import check_memory, project
from actlas.pipeline.forward.prefill import Prefill
from actlas.pipeline.forward.run import Clock, Take, run_batches
from actlas.pipeline.forward.speed import Rate, bare_forward_rate
from actlas.pipeline.forward.strategy import decide_passes
from actlas.pipeline.forward.transfer import staging_for
from actlas.pipeline.model.config import check_windows, quiet
from actlas.pipeline.model.describe import find_model, load_config
from actlas.pipeline.model.device import default_tokens_per_batch, device_name, resolve_device
from actlas.pipeline.model.host import n_cpus
from actlas.pipeline.options import RunOptions
from actlas.store.errors import MemoryBudgetError
from actlas.store.format import layout
from actlas.store.format.catalog import LOSS
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import HookpointSpec, Receipt
from actlas.store.read.reader import StoreReader
from actlas.store.verify.repair_shard import repair_shard
from actlas.store.write.commit import commit_shard

MIN_PIECE = 16
"""Tokens of the smallest piece that a device without memory is tried with."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A shard's activations, not yet written.

    Attributes
    ----------
    activations : dict of str to ndarray, shape [rows of the shard, width]
        In the plan's dtype, rows in the order in which they are stored.
    run : dict
        How they were made, for the receipt.
    loss : ndarray of float32, shape [rows of the shard], or None
        Of the token that follows each row, where the plan asks for it.
    """

    shard: int
    activations: dict[str, NDArray[Any]]
    run: dict[str, Any]
    loss: NDArray[np.float32] | None = None


class Extractor:
    """One model, loaded once, that computes the shards of one store.

    Parameters
    ----------
    store : StoreReader
    run : RunOptions
    model : str, optional
        Where to load the model from, if not from ``run.model_path``, nor from where the plan found
        it; its files must be the same.
    mend : bool
        Whether to put back what is damaged of shards, instead of writing new ones.

    Raises
    ------
    ModelError
        The model is not there, is not the plan's, or is not causal though the plan says so.
    MemoryBudgetError
        The run would need more memory than it may use.
    ConfigError
        There is no such device.
    """

    def __init__(
        self, store: StoreReader, run: RunOptions, *, model: str | None = None, mend: bool = False
    ) -> None:
        self._commit = repair_shard if mend else commit_shard
        self.device = resolve_device(run.device)
        self.tokens_per_batch = run.tokens_per_batch or default_tokens_per_batch(self.device)
        run = run.model_copy(update={"tokens_per_batch": self.tokens_per_batch})
        self.store, self.plan, self.run = store, store.plan, run
        self.threads = run.threads or max(1, n_cpus() // run.n_workers)
        torch.set_num_threads(self.threads)
        spec = self.plan.model
        require_leave(spec, run)
        folder = find_model(spec, model or run.model_path)
        config = load_config(folder, trust_remote_code=spec.trust_remote_code)
        check_windows(config, spec.context_length, self.plan.windows.max_length)
        pieces = spec.causal and spec.modality == "text"
        projection = project(self.plan, config, folder, run, by_pieces=pieces)
        check_memory(projection, run, self.device)
        reached = () if self.plan.with_loss else self.plan.hookpoints
        self.model = load_model(spec, str(folder), self.device, hookpoints=reached, run=run)
        self._loss = NextTokenLoss(self.model) if self.plan.with_loss else None
        if spec.causal:
            with quiet():
                check_causal(self.model, self._places, self.plan.processor)
        pad = getattr(config.get_text_config(), "pad_token_id", None)
        self.pad_id = pad if isinstance(pad, int) and pad >= 0 else 0
        with quiet():
            self.passes = decide_passes(self.model, self.plan, run, self.device, self._places)
        if pieces and not self.passes.by_pieces:  # The weights are in memory by now.
            whole = project(self.plan, config, folder, run)._replace(weights=0)
            check_memory(whole, run, self.device)
        self._prefill = Prefill(self.model)
        self._staging = staging_for(self.device)

    def compute(self, shard: int) -> Computed:
        """Run the model over a shard and return its activations, rows as they are stored.

        Where the device has not got the memory for a batch, the token budget is halved, for good,
        and the shard is begun again.

        Raises
        ------
        HookpointError
            A hookpoint is not what it was planned to be.
        MemoryBudgetError
            The device has not got the memory for the shortest batch there can be.
        """
        while True:
            try:
                return self._compute(shard)
            except torch.OutOfMemoryError as error:
                reason = _first_line(error)
            self._halve(shard, reason)  # out here, where the error holds no tensors any longer

    def _compute(self, shard: int) -> Computed:
        plan = self.plan
        start, stop = layout.shard_range(shard, plan.shard_rows, plan.n_tokens)
        row_of = layout.shard_rows_of(plan.order, plan.seed, start, stop)
        dtype = numpy_dtype(plan.dtype)
        buffers = {h.name: np.empty((stop - start, h.width), dtype) for h in plan.hookpoints}
        filled = dict.fromkeys(buffers, 0)
        batches = self.batches(shard)
        waited_s = self._staging.waited_s
        clock = Clock()

        loss, following = None, np.empty(0, np.int64)
        if self._loss is not None:
            loss = np.full(stop - start, np.nan, np.float32)
            following = next_tokens(self.store, start, stop)

        def take(name: str, gathered: torch.Tensor, inputs: Inputs) -> None:
            if loss is not None and self._loss is not None and name == LOSS:
                losses = self._loss(gathered, following[inputs.token - start])
                loss[row_of[inputs.token - start]] = losses
                return
            self._staging.put(buffers[name], row_of[inputs.token - start], gathered)
            filled[name] += len(inputs.token)

        self._forward(batches, self._places, take, clock)
        if wrong := {name: n for name, n in filled.items() if n != stop - start}:
            raise RuntimeError(f"shard {shard} has tokens [{start}, {stop}), computed were {wrong}")
        return Computed(shard, buffers, self._record(batches, clock, waited_s), loss)

    def _forward(
        self, batches: list[Batch], places: Sequence[HookpointSpec], take: Take, clock: Clock
    ) -> None:
        """Run batches, with the cache of whatever goes through in pieces."""
        if not batches:
            return
        if batches[0].piece is None or batches[0].piece.start == 0:
            self._prefill.drop()  # Nothing goes on from a cache that was kept.
        try:
            run_batches(
                self.model,
                places,
                batch_inputs(self.store, batches, pad_id=self.pad_id),
                take,
                device=self.device,
                clock=clock,
                extra=self._prefill.kwargs,
            )
            self._staging.finish()
        except BaseException:
            self._prefill.drop()
            raise
        self._prefill.finish()

    def _halve(self, shard: int, reason: str) -> None:
        """Halve the token budget after the device ran out of memory."""
        batches = self.batches(shard)
        longest = max(batch.length for batch in batches)
        least = min(MIN_PIECE, longest) if self.passes.by_pieces else longest
        tried = min(self.tokens_per_batch, max(batch.n_padded for batch in batches))
        if tried <= least:
            raise MemoryBudgetError(
                f"{self.device} has not got the memory for {tried:,} tokens of one sequence "
                f"({reason}). Plan with a smaller --max-length, compute in a smaller "
                "--model-dtype, or give --device-map auto.",
                tokens_per_batch=self.tokens_per_batch,
            )
        self._staging.finish()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        self.tokens_per_batch = max(least, tried // 2)

    def commit(self, computed: Computed, attempt: str) -> Receipt:
        """Write a computed shard and return its receipt."""
        return self._commit(
            self.store,
            computed.shard,
            computed.activations,
            attempt=attempt,
            run=computed.run,
            on_nonfinite=self.run.on_nonfinite,
            loss=computed.loss,
        )

    def close(self) -> None:
        """Give back what copies from a device hold."""
        self._staging.close()

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

    @property
    def _places(self) -> tuple[HookpointSpec, ...]:
        """Where the forward pass is read: at the hookpoints, and where losses come from."""
        return (*self.plan.hookpoints, *((self._loss.place,) if self._loss is not None else ()))

    def batches(self, shard: int) -> list[Batch]:
        """Return the batches of a shard, in the order in which they run."""
        return shard_batches(
            self.store, shard, self.tokens_per_batch, self.passes, resume=self._prefill.standing
        )

    def bare_forward_rate(self, shard: int = 0, *, max_seconds: float = 2.0) -> Rate:
        """Measure the forward pass alone; see :mod:`actlas.pipeline.forward.speed`."""
        batches = [batch for batch in self.batches(shard) if batch.piece is None]
        if not batches:
            return Rate(0, 0.0)
        inputs = partial(batch_inputs, self.store, pad_id=self.pad_id)
        return bare_forward_rate(
            self.model, self._places, batches, inputs, self.device, max_seconds
        )

    def _record(self, batches: list[Batch], clock: Clock, waited_s: float) -> dict[str, Any]:
        return {
            "device": device_name(self.device),
            "threads": self.threads,
            "tokens_per_batch": self.tokens_per_batch,
            "n_batches": len(batches),
            "n_tokens_fed": sum(batch.n_fed for batch in batches),
            "padding_share": padding_share(batches),
            "compute_s": clock.total_s,
            "forward_s": clock.forward_s,
            "gather_s": clock.gather_s,
            "input_s": clock.input_s,
            **self.passes.record(),
            "copy_wait_s": self._staging.waited_s - waited_s,
            "torch": torch.__version__,
        }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
