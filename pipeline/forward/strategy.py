"""The strategy for forward passes (batching, packing, prefill), decided on the loaded model.

Usage::

    strategy = decide_strategy(model, plan, run, device)
    batches = shard_batches(store, shard, run.tokens_per_batch, strategy, resume=prefill.cached)
    receipt.run |= strategy.record()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from actlas.pipeline.forward.batching import Batching
from actlas.pipeline.forward.checks.batch_invariance import decide_batching
from actlas.pipeline.forward.checks.samples import samples_for
from actlas.pipeline.forward.packing import packing_obstacle
from actlas.pipeline.forward.prefill import prefill_obstacle
from actlas.pipeline.model.device import default_tokens_per_batch
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import HookpointSpec, Plan

if TYPE_CHECKING:
    from torch import nn

CPU_PASS_TOKENS = 64
"""Cost of a forward pass on a CPU beside its tokens, in tokens: 20 to 80 were measured."""

BATCHING: Mapping[Batching, str] = {
    "padded": "any sequences",
    "equal": "sequences of equal length",
    "single": "one sequence at a time",
}
"""Which sequences share a forward pass, in words."""


class PassStrategy(NamedTuple):
    """The strategy for forward passes. The default is for models whose rows no padding changes.

    Attributes
    ----------
    batching : {"padded", "equal", "single"}
        Which sequences share a pass, where they are not packed.
    packed : bool
        Whether several sequences share a row of the input, without attention between them.
    one_row : bool
        Whether sequences are packed into one row as long as the token budget, for variable-length
        attention, which computes nothing between sequences. If not, rows are as long as the longest
        sequence.
    pass_tokens : int, optional
        The cost of a pass beside its tokens, in tokens. Default: a sixteenth of the token budget.
    chunked_prefill : bool
        Whether sequences longer than the token budget are computed in chunks, with a key-value
        cache that also passes from shard to shard.
    why_batching, why_packing, why_chunked : str
        The reasons, for the record.
    """

    batching: Batching = "padded"

    packed: bool = False
    one_row: bool = False
    pass_tokens: int | None = None
    chunked_prefill: bool = False
    why_batching: str = ""
    why_packing: str = ""
    why_chunked: str = ""

    def record(self) -> dict[str, str]:
        """Return the strategy as a receipt records it; ``note`` is the message to the user."""
        note = f"batches: {BATCHING[self.batching]}, because {self.why_batching}"
        return {
            **({"note": note} if self.batching != "padded" else {}),
            "batching": f"{BATCHING[self.batching]}: {self.why_batching}",
            "packing": ("packed" if self.packed else "padded") + f": {self.why_packing}",
            "long_sequences": ("by pieces" if self.chunked_prefill else "whole")
            + f": {self.why_chunked}",
        }


def decide_strategy(
    model: nn.Module,
    plan: Plan,
    run: RunOptions,
    device: str,
    hookpoints: Sequence[HookpointSpec] | None = None,
    pad_id: int = 0,
) -> PassStrategy:
    """Decide the strategy for a loaded model; what the model can do is tested on it.

    Parameters
    ----------
    model : torch.nn.Module
        The model, loaded.
    plan : Plan
        The plan of the store.
    run : RunOptions
        ``packing`` is read: ``auto`` packs where attention is variable-length (flash attention).
        Other attention needs a mask for packed rows and computes the masked scores too; on a CPU,
        small passes with next to no padding were measured to be as fast.
    device : str
        The device of the model.
    hookpoints : sequence of HookpointSpec, optional
        The hookpoints that are read; the tests run the model as deep as the deepest of them.
        Default: the plan's hookpoints.
    pad_id : int
        The padding token.

    Raises
    ------
    ModelError
        The model gives other rows for the same sequence when it runs again.
    """
    read = plan.hookpoints if hookpoints is None else tuple(hookpoints)
    pass_tokens = CPU_PASS_TOKENS if device == "cpu" else None
    budget = run.tokens_per_batch or default_tokens_per_batch(device)
    samples = samples_for(
        model,
        plan.model,
        plan.windows.max_length,
        budget,
        pad_id=pad_id,
        processor=plan.processor,
    )
    batching, why_batching = decide_batching(model, read, samples, device)
    decided = PassStrategy(batching, pass_tokens=pass_tokens, why_batching=why_batching)
    if plan.model.modality != "text":
        why = f"of {plan.model.modality} sequences only the text alone could be shared or cut"
        return decided._replace(why_packing=why, why_chunked=why)
    attention = str(getattr(model.config, "_attn_implementation", None))
    one_row = "flash" in attention
    if run.packing == "padded":
        not_packed: str | None = "as asked"
    elif run.packing == "auto" and not one_row:
        not_packed = f"{attention} attention would compute what packing hides"
    elif batching != "padded":
        not_packed = f"only {BATCHING[batching]} may share a pass"
    else:
        not_packed = packing_obstacle(model, read, one_row=one_row)
    not_cut: str | None = "the model is not causal"
    if plan.model.causal:
        not_cut = prefill_obstacle(model, read, plan.windows.max_length)
    return decided._replace(
        packed=not_packed is None,
        one_row=one_row,
        chunked_prefill=not_cut is None,
        why_packing=not_packed or "seen on this model: no sequence sees another",
        why_chunked=not_cut or "seen on this model: equal to one pass",
    )
