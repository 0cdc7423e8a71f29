"""How a model's sequences are put into forward passes: decided once, on the model as it is loaded.

How it is called::

    passes = decide_passes(model, plan, run, device)
    batches = shard_batches(store, shard, run.tokens_per_batch, passes, resume=prefill.standing)
    receipt.run |= passes.record()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from actlas.pipeline.forward.packing import can_pack
from actlas.pipeline.forward.prefill import can_prefill
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import HookpointSpec, Plan

if TYPE_CHECKING:
    from torch import nn

CPU_PASS_TOKENS = 64
"""What a forward pass costs on a CPU beside its tokens, in tokens: 20 to 80 were measured."""


class Passes(NamedTuple):
    """How sequences are put into forward passes. The default suits every model.

    Attributes
    ----------
    packed : bool
        Several sequences one behind the other in a row, none seeing another.
    one_row : bool
        Packed into one row as long as the token budget: for attention of variable length, which
        computes nothing between sequences. Else rows are as long as the longest sequence.
    pass_tokens : int, optional
        What a pass costs beside its tokens, in tokens. Default: a sixteenth of the token budget.
    by_pieces : bool
        Sequences longer than the token budget go through in pieces, with a cache; and one that
        goes on in the next shard leaves its cache for it.
    why_packing, why_pieces : str
        For the record.
    """

    packed: bool = False
    one_row: bool = False
    pass_tokens: int | None = None
    by_pieces: bool = False
    why_packing: str = ""
    why_pieces: str = ""

    def record(self) -> dict[str, str]:
        """Return what a receipt says of it."""
        return {
            "packing": ("packed" if self.packed else "padded") + f": {self.why_packing}",
            "long_sequences": ("by pieces" if self.by_pieces else "whole") + f": {self.why_pieces}",
        }


def decide_passes(
    model: nn.Module,
    plan: Plan,
    run: RunOptions,
    device: str,
    places: Sequence[HookpointSpec] | None = None,
) -> Passes:
    """Decide how a loaded model is fed, trying on it whatever is not certain.

    Parameters
    ----------
    model : torch.nn.Module
    plan : Plan
    run : RunOptions
        Its ``packing``: ``auto`` packs where attention is of variable length (flash attention).
        Elsewhere packing needs a mask, under which attention computes what it then hides; on a
        CPU passes so small that next to nothing is padding were measured to be as fast.
    device : str
    places : sequence of HookpointSpec, optional
        Where rows are read; the deepest decides how much of the model is tried. Default: the plan's
        hookpoints.
    """
    read = plan.hookpoints if places is None else tuple(places)
    pass_tokens = CPU_PASS_TOKENS if device == "cpu" else None
    if plan.model.modality != "text":
        why = f"of {plan.model.modality} sequences only the text alone could be shared or cut"
        return Passes(pass_tokens=pass_tokens, why_packing=why, why_pieces=why)
    attention = str(getattr(model.config, "_attn_implementation", None))
    one_row = "flash" in attention
    if run.packing == "padded":
        not_packed: str | None = "as asked"
    elif run.packing == "auto" and not one_row:
        not_packed = f"{attention} attention would compute what packing hides"
    else:
        not_packed = can_pack(model, read, one_row=one_row)
    not_cut: str | None = "the model is not causal"
    if plan.model.causal:
        not_cut = can_prefill(model, read, plan.windows.max_length)
    return Passes(
        packed=not_packed is None,
        one_row=one_row,
        pass_tokens=pass_tokens,
        by_pieces=not_cut is None,
        why_packing=not_packed or "seen on this model: no sequence sees another",
        why_pieces=not_cut or "seen on this model: equal to one pass",
    )
