"""Extraction: the activations of a shard are computed and committed to the store.

``compute`` runs the model and fills the shard's arrays, ``commit`` writes them; ``extract`` does
both, and ``extract_many`` writes one shard while the next is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from actlas.pipeline.extract.computed import ComputedShard
from actlas.pipeline.extract.inputs import batch_inputs, shard_batches
from actlas.pipeline.extract.loss import NextTokenLoss, next_tokens
from actlas.pipeline.forward.batching import Batch, Inputs, padding_share
from actlas.pipeline.forward.cost.memory import check_memory, project
from actlas.pipeline.forward.cost.speed import Rate, bare_forward_rate
from actlas.pipeline.forward.invariants import check_causal
from actlas.pipeline.forward.load import load_model, require_code_consent
from actlas.pipeline.forward.prefill import Prefill
from actlas.pipeline.forward.run import Clock, Consume, run_batches
from actlas.pipeline.forward.strategy import PassStrategy, decide_strategy
from actlas.pipeline.forward.transfer import transfer_for
from actlas.pipeline.model.config import build_skeleton, quiet
from actlas.pipeline.model.describe import find_model, load_config
from actlas.pipeline.model.device import default_tokens_per_batch, device_name, resolve_device
from actlas.pipeline.model.host import n_cpus
from actlas.pipeline.model.windows import check_windows
from actlas.pipeline.options import RunOptions
from actlas.store.errors import MemoryBudgetError
from actlas.store.format import layout
from actlas.store.format.catalog import LOSS
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import HookpointSpec, Receipt
from actlas.store.ledger.model_files import read_model_files
from actlas.store.read.reader import StoreReader
from actlas.store.verify.repair_shard import repair_shard
from actlas.store.write.commit import commit_shard

MIN_CHUNK_TOKENS = 16
"""Smallest token budget of a chunk, when a device runs out of memory."""


class Extractor:
    """An extractor of the shards of a store, with a model that is loaded once.

    Parameters
    ----------
    store : StoreReader
        The store with its plan.
    run : RunOptions
        Options of the run.
    model : str, optional
        A folder or hub id to load the model from; the files must be those of the plan. Default:
        ``run.model_path``, else the model of the plan.
    repair : bool
        Whether to replace only the damaged objects of shards, instead of writing new shards.

    Raises
    ------
    ModelError
        The model does not exist, differs from the plan's, or is not causal although the plan says
        so.
    MemoryBudgetError
        The run would need more memory than it may use.
    ConfigError
        The device does not exist, or remote code is not allowed.
    """

    def __init__(
        self, store: StoreReader, run: RunOptions, *, model: str | None = None, repair: bool = False
    ) -> None:
        self._commit = repair_shard if repair else commit_shard
        self.device = resolve_device(run.device)
        self.tokens_per_batch = run.tokens_per_batch or default_tokens_per_batch(self.device)
        run = run.model_copy(update={"tokens_per_batch": self.tokens_per_batch})
        self.store, self.plan, self.run = store, store.plan, run
        self.threads = run.threads or max(1, n_cpus() // run.n_workers)
        torch.set_num_threads(self.threads)
        spec = self.plan.model
        require_code_consent(spec, run)
        pinned = read_model_files(store.objects, store.plan_file)
        folder = find_model(spec, model or run.model_path, pinned.model if pinned else None)
        config = load_config(folder, trust_remote_code=spec.trust_remote_code)
        check_windows(config, spec.context_length, self.plan.windows.max_length)
        chunked = spec.causal and spec.modality == "text"
        skeleton = build_skeleton(
            config, spec.architecture, trust_remote_code=spec.trust_remote_code
        )
        projection = project(self.plan, config, run, chunked_prefill=chunked, skeleton=skeleton)
        check_memory(projection, run, self.device)
        reached = () if self.plan.with_loss else self.plan.hookpoints
        self.model = load_model(
            spec, str(folder), self.device, hookpoints=reached, run=run, skeleton=skeleton
        )
        self._loss = NextTokenLoss(self.model) if self.plan.with_loss else None
        pad = getattr(config.get_text_config(), "pad_token_id", None)
        self.pad_id = pad if isinstance(pad, int) and pad >= 0 else 0
        self.strategy = self._decide()
        if spec.causal:
            with quiet():
                check_causal(self.model, self._read_at, self.plan.processor)
        if chunked and not self.strategy.chunked_prefill:  # the weights are in memory already
            whole = project(self.plan, config, run, skeleton=skeleton)._replace(weights=0)
            check_memory(whole, run, self.device)
        self._prefill = Prefill(self.model)
        self._transfer = transfer_for(self.device)

    def _decide(self) -> PassStrategy:
        """Test the model; where the device runs out of memory, with half of the token budget."""
        while True:
            run = self.run.model_copy(update={"tokens_per_batch": self.tokens_per_batch})
            about = self.model, self.plan, run, self.device, self._read_at, self.pad_id
            try:
                with quiet():
                    return decide_strategy(*about)
            except torch.OutOfMemoryError as error:
                reason = _first_line(error)
            if self.tokens_per_batch <= MIN_CHUNK_TOKENS:
                raise MemoryBudgetError(
                    f"{self.device} lacks memory for the sequences that the model is tested with "
                    f"({reason}). Compute in a smaller --model-dtype, or give --device-map auto.",
                    tokens_per_batch=self.tokens_per_batch,
                )
            self.tokens_per_batch //= 2

    def compute(self, shard: int) -> ComputedShard:
        """Run the model over a shard and return its activations, in storage order.

        Where the device runs out of memory for a batch, the token budget is halved permanently and
        the shard is started again.

        Parameters
        ----------
        shard : int
            The shard, from 0.

        Raises
        ------
        HookpointError
            A hookpoint's tensor differs in shape from the plan.
        MemoryBudgetError
            The device lacks memory even for the smallest batch.
        """
        while True:
            try:
                return self._compute(shard)
            except torch.OutOfMemoryError as error:
                reason = _first_line(error)
            self._halve(
                shard, reason
            )  # outside of except, where the error would keep tensors alive

    def _compute(self, shard: int) -> ComputedShard:
        plan = self.plan
        start, stop = layout.shard_range(shard, plan.shard_rows, plan.n_tokens)
        row_of = layout.shard_rows_of(plan.order, plan.seed, start, stop)
        dtype = numpy_dtype(plan.dtype)
        buffers = {h.name: np.empty((stop - start, h.width), dtype) for h in plan.hookpoints}
        filled = dict.fromkeys(buffers, 0)
        batches = self.batches(shard)
        waited_s = self._transfer.waited_s
        clock = Clock()

        loss, following = None, np.empty(0, np.int64)
        if self._loss is not None:
            loss = np.full(stop - start, np.nan, np.float32)
            following = next_tokens(self.store, start, stop)

        def consume(name: str, gathered: torch.Tensor, inputs: Inputs) -> None:
            if loss is not None and self._loss is not None and name == LOSS:
                losses = self._loss(gathered, following[inputs.token - start])
                loss[row_of[inputs.token - start]] = losses
                return
            self._transfer.put(buffers[name], row_of[inputs.token - start], gathered)
            filled[name] += len(inputs.token)

        self._forward(batches, self._read_at, consume, clock)
        if wrong := {name: n for name, n in filled.items() if n != stop - start}:
            raise RuntimeError(
                f"shard {shard} has tokens [{start}, {stop}), computed rows: {wrong}"
            )
        return ComputedShard(shard, buffers, self._record(batches, clock, waited_s), loss)

    def _forward(
        self,
        batches: list[Batch],
        hookpoints: Sequence[HookpointSpec],
        consume: Consume,
        clock: Clock,
    ) -> None:
        """Run batches, with the key-value cache of chunked prefill."""
        if not batches:
            return
        if batches[0].chunk is None or batches[0].chunk.start == 0:
            self._prefill.drop()  # no sequence continues from the cache of the shard before
        try:
            run_batches(
                self.model,
                hookpoints,
                batch_inputs(self.store, batches, pad_id=self.pad_id),
                consume,
                device=self.device,
                clock=clock,
                extra=self._prefill.kwargs,
            )
            self._transfer.finish()
        except BaseException:
            self._prefill.drop()
            raise
        self._prefill.finish()

    def _halve(self, shard: int, reason: str) -> None:
        """Halve the token budget after the device ran out of memory."""
        batches = self.batches(shard)
        longest = max(batch.length for batch in batches)
        least = min(MIN_CHUNK_TOKENS, longest) if self.strategy.chunked_prefill else longest
        tried = min(self.tokens_per_batch, max(batch.n_padded for batch in batches))
        if tried <= least:
            raise MemoryBudgetError(
                f"{self.device} lacks memory for {tried:,} tokens of one sequence ({reason}). Plan "
                "with a smaller --max-length, compute in a smaller --model-dtype, or give "
                "--device-map auto.",
                tokens_per_batch=self.tokens_per_batch,
            )
        self._transfer.finish()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        self.tokens_per_batch = max(least, tried // 2)

    def commit(self, computed: ComputedShard, attempt: str) -> Receipt:
        """Write a computed shard and return its receipt.

        Parameters
        ----------
        computed : ComputedShard
            The result of :meth:`compute`.
        attempt : str
            The id of the writer, recorded with every object.
        """
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
        """Release the memory of transfers from the device."""
        self._transfer.close()

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Compute a shard and write it.

        Parameters
        ----------
        shard : int
            The shard, from 0.
        attempt : str
            The id of the writer, recorded with every object.
        """
        return self.commit(self.compute(shard), attempt)

    def extract_many(self, shards: Iterable[int], *, attempt: str) -> Iterator[Receipt]:
        """Extract shards, writing each while the next is computed; yield receipts in order.

        At most two shards are in memory. An error in writing is raised when the next shard has
        been computed.

        Parameters
        ----------
        shards : iterable of int
            The shards, from 0.
        attempt : str
            The id of the writer, recorded with every object.
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
    def _read_at(self) -> tuple[HookpointSpec, ...]:
        """The hookpoints that are read: the plan's, and that of the next-token loss."""
        return (*self.plan.hookpoints, *((self._loss.hookpoint,) if self._loss is not None else ()))

    def batches(self, shard: int) -> list[Batch]:
        """Return the batches of a shard, in the order in which they run."""
        return shard_batches(
            self.store, shard, self.tokens_per_batch, self.strategy, resume=self._prefill.cached
        )

    def bare_forward_rate(self, shard: int = 0, *, max_seconds: float = 2.1) -> Rate:
        """Measure the forward pass alone, in the best of some batch sizes on a CPU.

        Parameters
        ----------
        shard : int
            The shard whose batches are run.
        max_seconds : float
            Seconds of all passes, as :func:`actlas.pipeline.forward.cost.speed.bare_forward_rate`
            takes them for each batch size.
        """
        own = self.tokens_per_batch
        sizes = (own, own // 2, 2 * own) if self.device == "cpu" and own > 1 else (own,)
        inputs = partial(batch_inputs, self.store, pad_id=self.pad_id)
        found = [Rate(0, 0.0)]
        for n_tokens in sizes:
            batches = shard_batches(self.store, shard, n_tokens, self.strategy)
            if whole := [batch for batch in batches if batch.chunk is None]:
                about = self.model, self._read_at, whole, inputs, self.device
                found.append(bare_forward_rate(*about, max_seconds / len(sizes)))
        return max(found, key=lambda rate: rate.tokens_per_s)

    def _record(self, batches: list[Batch], clock: Clock, waited_s: float) -> dict[str, Any]:
        return {
            "device": device_name(self.device),
            "threads": self.threads,
            "tokens_per_batch": self.tokens_per_batch,
            "n_batches": len(batches),
            "n_tokens_fed": sum(batch.n_input_tokens for batch in batches),
            "padding_share": padding_share(batches),
            "compute_s": clock.total_s,
            "forward_s": clock.forward_s,
            "gather_s": clock.gather_s,
            "input_s": clock.input_s,
            **self.strategy.record(),
            "copy_wait_s": self._transfer.waited_s - waited_s,
            "torch": torch.__version__,
        }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
