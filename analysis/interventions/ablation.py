"""A model without some of its units: loss and text while they are set to zero.

The units of a mask are set to zero in the tensor of their hookpoint, at every position, in the
prompt and in what is generated (zero ablation, as AlKhamissi et al. 2025, arXiv 2411.02280). A
later block may write to the same coordinate again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.analysis.interventions.ablation_forward import generate as generate
from actlas.analysis.interventions.ablation_forward import logits_of
from actlas.store.errors import MaskError

if TYPE_CHECKING:
    from torch import nn

    from actlas.analysis.localizer.masks import Mask
    from actlas.store.format.schema import HookpointSpec

TOKENS_PER_BATCH = 4096

LOGITS_PER_BATCH = 1 << 28


class Window(NamedTuple):
    """What the model sees in one pass.

    Attributes
    ----------
    document : int
        Which document it is of, counted from 0.
    ids : ndarray of int64, shape [positions]
        Special tokens included.
    start, stop : int
        The positions whose tokens are predicted and count, from 1 on.
    """

    document: int
    ids: NDArray[np.int64]
    start: int
    stop: int


class Losses(NamedTuple):
    """Next-token losses in nats, summed by document; shape [documents] each."""

    total: NDArray[np.float64]
    n_tokens: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Nats per predicted token."""
        return float(self.total.sum() / self.n_tokens.sum())


@contextmanager
def ablated(model: nn.Module, mask: Mask) -> Iterator[None]:
    """Set a mask's units to zero in every forward pass of a model, as long as this is open.

    The units are those of a hookpoint's tensor: what its module gives (the tensor, or the first
    of a tuple), or takes where the side is "input". They are zero at every position, in the
    prompt and in what is generated; no other number changes, and a mask without units changes
    no bit. Several may be open at once. On the way out the hooks come off, after an error too.

    Parameters
    ----------
    model : torch.nn.Module
        In any dtype, on any device.
    mask : Mask

    Raises
    ------
    MaskError
        The model has no such module, or its tensor there is not as wide as the mask says (which
        shows in the first pass).

    Examples
    --------
    >>> with ablated(model, Mask.load("language/mask.json")):      # doctest: +SKIP
    ...     logits = model(input_ids).logits
    """
    specs = {spec.name: spec for spec in mask.key.hookpoints}
    handles: list[Any] = []
    try:
        for name, units in mask.units.items():
            handles.append(_install(model, specs[name], units))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _install(model: nn.Module, spec: HookpointSpec, units: Sequence[int]) -> Any:
    try:
        module = model.get_submodule(spec.module)
    except AttributeError as error:
        raise _wrong(spec, f"{type(model).__name__} has no such module") from error
    index = torch.tensor(units, dtype=torch.long)

    def zeroed(value: Any) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            raise _wrong(spec, f"it has a {type(value).__name__}, expected a tensor")
        if value.shape[-1] != spec.width:
            raise _wrong(spec, f"it is {value.shape[-1]} units wide, the mask says {spec.width}")
        # A copy: what the model keeps of the tensor elsewhere stays as it is. A product with
        # zero would leave NaN and infinity.
        return value.index_fill(-1, index.to(value.device), 0)

    def before(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (zeroed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": zeroed(kwargs.get("hidden_states"))}

    def after(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, list) and output:
            return [zeroed(output[0]), *output[1:]]
        if isinstance(output, tuple) and output:
            parts = (zeroed(output[0]), *output[1:])
            return type(output)(*parts) if hasattr(output, "_fields") else parts
        return zeroed(output)

    if spec.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _wrong(spec: HookpointSpec, what: str) -> MaskError:
    return MaskError(
        f"the mask's {spec.name} (module {spec.module}, {spec.side}): {what}. The mask was made "
        "for another model: localize on this one.",
        field="hookpoints",
        hookpoint=spec.name,
    )


def losses(
    model: nn.Module,
    windows: Sequence[Window],
    *,
    pad_id: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Losses:
    """Return the next-token cross-entropy of windows, summed by document.

    Windows are padded on the right and padding is masked: a window's loss is what it has alone.
    The log-softmax is in float32, sums are in float64.

    Parameters
    ----------
    model : torch.nn.Module
        Causal, with a head onto the vocabulary.
    windows : sequence of Window
    pad_id : int
        What stands in for no token; any that the model knows.
    tokens_per_batch : int
        Windows times the longest, padding included; one window at least. A large vocabulary,
        whose logits fill the memory, makes it less.

    Raises
    ------
    ModelError
        The model has no head onto a vocabulary.
    """
    n_documents = 1 + max((window.document for window in windows), default=-1)
    total = np.zeros(n_documents)
    n_tokens = np.zeros(n_documents, np.int64)
    device = next(model.parameters()).device
    budget = min(tokens_per_batch, LOGITS_PER_BATCH // _vocabulary(model))
    for batch in _batches(windows, budget):
        ids = np.full((len(batch), max(len(window.ids) for window in batch)), pad_id, np.int64)
        there = np.zeros_like(ids)
        for row, window in enumerate(batch):
            ids[row, : len(window.ids)] = window.ids
            there[row, : len(window.ids)] = 1
        tokens, mask = torch.from_numpy(ids).to(device), torch.from_numpy(there).to(device)
        with torch.inference_mode():
            logits = logits_of(model, tokens, mask)
            for row, window in enumerate(batch):
                wanted = tokens[row, window.start : window.stop]
                scores = logits[row, window.start - 1 : window.stop - 1].float()
                each = torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
                total[window.document] += each.cpu().numpy().astype(np.float64).sum()
                n_tokens[window.document] += len(wanted)
    return Losses(total, n_tokens)


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return int(getattr(config.get_text_config(), "vocab_size", 1))


def _batches(windows: Sequence[Window], tokens_per_batch: int) -> Iterator[list[Window]]:
    """Yield windows of like length together."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda each: -len(each.ids)):
        longest = len(batch[0].ids) if batch else len(window.ids)
        if batch and longest * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
