"""Next-token loss: the cross-entropy of the token that follows each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from actlas.pipeline.extract.inputs import window_tokens
from actlas.pipeline.forward.generate import head_input
from actlas.pipeline.model.config import quiet
from actlas.pipeline.model.device import input_device
from actlas.store.errors import ModelError
from actlas.store.format.schema import Plan
from actlas.store.read.reader import StoreReader

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int64

CHUNK_VALUES = 1 << 25
"""Largest number of logits in memory at once."""

N_POSITIONS = 6

Finish = Callable[[torch.Tensor], torch.Tensor]


class NextTokenLoss:
    """The next-token loss of a causal language model, in nats.

    The input of the projection onto the vocabulary is read at ``hookpoint`` and projected a few
    rows at a time, so that the logits of a whole batch are never in memory.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model, with all blocks and its head loaded.

    Attributes
    ----------
    hookpoint : HookpointSpec
        The input of the projection, the place to read.

    Raises
    ------
    ModelError
        The model has no projection onto a vocabulary, or changes its logits afterwards in an
        unknown way.
    """

    def __init__(self, model: nn.Module) -> None:
        hookpoint = head_input(model)
        if hookpoint is None:
            raise ModelError(
                f"{type(model).__name__} has no projection onto a vocabulary: no next-token loss. "
                "Plan without --with-loss.",
                field="with_loss",
            )
        self.hookpoint = hookpoint
        self._head = model.get_submodule(hookpoint.module)
        self._finish = self._find_finish(model)

    def __call__(
        self,
        entering: Float[torch.Tensor, "rows d_model"],
        target: Int64[NDArray[np.int64], " rows"],
    ) -> Float32[NDArray[np.float32], " rows"]:
        """Return the loss of each row.

        Parameters
        ----------
        entering : Tensor, shape [rows, d_model]
            The input of the projection.
        target : ndarray of int64, shape [rows]
            The id of the next token; -1 where none follows.

        Returns
        -------
        ndarray of float32, shape [rows]
            In nats; NaN where no token follows.
        """
        losses = np.full(len(target), np.nan, np.float32)
        known = np.flatnonzero(target >= 0)
        n_rows = max(1, CHUNK_VALUES // int(self._head.weight.shape[0]))  # type: ignore[index]
        for start in range(0, len(known), n_rows):
            chosen = known[start : start + n_rows]
            rows = entering.index_select(0, torch.from_numpy(chosen).to(entering.device))
            logits = self._finish(self._head.forward(rows).float())  # without hooks
            wanted = torch.from_numpy(target[chosen]).to(logits.device)
            losses[chosen] = functional.cross_entropy(logits, wanted, reduction="none").cpu()
        return losses

    def _find_finish(self, model: nn.Module) -> Finish:
        """Return the function from the projection's output to the logits, tested on the model."""
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        tokens = torch.arange(N_POSITIONS)[None] % embedding.num_embeddings
        tokens = tokens.to(input_device(model))
        seen: list[torch.Tensor] = []
        handle = self._head.register_forward_hook(lambda _m, _args, out: seen.append(out))
        try:
            with quiet(), torch.inference_mode():
                expected = model(input_ids=tokens).logits.float()
        finally:
            handle.remove()
        plain = seen[0].float()
        share = 1e-3 if seen[0].dtype == torch.float32 else 2e-2
        near = share * float(expected.abs().max())
        for finish in _finishes(model.config):
            if torch.allclose(finish(plain), expected, rtol=share, atol=near):
                return finish
        raise ModelError(
            f"{type(model).__name__} changes its logits after the projection in a way that actlas "
            "does not know, so the loss would be wrong. Plan without --with-loss.",
            field="with_loss",
        )


def _finishes(config: Any) -> list[Finish]:
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None)
    factor = getattr(text, "logit_scale", None)
    divisor = getattr(text, "logits_scaling", None)
    found: list[Finish] = []
    if cap:
        found.append(lambda logits: torch.tanh(logits / cap) * cap)
    if factor:
        found.append(lambda logits: logits * factor)
    if divisor:
        found.append(lambda logits: logits / divisor)
    # The identity is no candidate where the configuration names a change: with small logits the
    # difference might not show.
    return found or [lambda logits: logits]


def next_tokens(store: StoreReader, start: int, stop: int) -> NDArray[np.int64]:
    """Return the id of the token that follows each token in its window.

    Parameters
    ----------
    store : StoreReader
        The store of the tokens.
    start, stop : int
        Tokens [start, stop) of the corpus.

    Returns
    -------
    ndarray of int64, shape [stop - start]
        -1 for the last token of a window: the next token of the document is in another forward
        pass.
    """
    plan: Plan = store.plan
    documents = store.documents
    first, last = documents.find(start), documents.find(stop - 1)
    edges = documents.starts(first, last + 1)
    t = np.arange(start, stop, dtype=np.int64)
    document = np.searchsorted(edges, t, side="right") - 1
    place = t - edges[document]
    ends = (t + 1 == edges[document + 1]) | ((place + 1) % window_tokens(plan) == 0)
    beyond = min(stop + 1, plan.n_tokens)
    ids = documents.token_ids(start, beyond).astype(np.int64)
    following = np.full(stop - start, -1, np.int64)
    following[: beyond - start - 1] = ids[1:]
    return np.where(ends, -1, following)
