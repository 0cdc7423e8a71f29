"""Next-token loss of a causal language model on windows of a corpus, summed by document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.pipeline.forward.batching import Batching
from actlas.pipeline.forward.checks.batch_invariance import decide_batching
from actlas.pipeline.forward.checks.samples import text_samples, trial_lengths
from actlas.pipeline.forward.generate import compute_logits, head_input
from actlas.pipeline.model.device import input_device

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import nn

TOKENS_PER_BATCH = 4096

LOGITS_PER_BATCH = 1 << 28


class Window(NamedTuple):
    """A window of a document, for one forward pass.

    Attributes
    ----------
    document : int
        The window's document, counted from 0.
    ids : ndarray of int64, shape [positions]
        Tokens, special ones included.
    start, stop : int
        The positions [start, stop) whose tokens are predicted and count; ``start`` is 1 or more.
    """

    document: int
    ids: NDArray[np.int64]
    start: int
    stop: int


class Losses(NamedTuple):
    """Next-token losses by document.

    Attributes
    ----------
    total : ndarray of float64, shape [documents]
        Sum of the document's losses, in nats.
    n_tokens : ndarray of int64, shape [documents]
        Predicted tokens of the document.
    """

    total: NDArray[np.float64]
    n_tokens: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Nats per predicted token, over all documents."""
        return float(self.total.sum() / self.n_tokens.sum())


def cut_windows(
    ids: Int[NDArray[np.integer], " tokens"], content: int, prefix: Sequence[int], document: int
) -> list[Window]:
    """Cut a document's tokens into windows.

    Parameters
    ----------
    ids : ndarray of int, shape [tokens]
        The document's tokens, without special ones.
    content : int
        Tokens of the document in a window; the last window may have fewer.
    prefix : sequence of int
        Special tokens before each window. Where there are none, a window's first token has no
        context and is not predicted.
    document : int
        The document's number.

    Returns
    -------
    list of Window
        Those in which at least one token is predicted.
    """
    windows = []
    start = max(1, len(prefix))
    for at in range(0, len(ids), content):
        part = np.array([*prefix, *ids[at : at + content]], np.int64)
        if len(part) > start:
            windows.append(Window(document, part, start, len(part)))
    return windows


def losses(
    model: nn.Module,
    windows: Sequence[Window],
    *,
    pad_id: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    batching: Batching = "padded",
) -> Losses:
    """Return the next-token cross-entropy of windows, summed by document.

    Windows are padded on the right, where no token of a causal model sees it: a window's loss does
    not depend on the other windows of its batch (see :func:`loss_batching`). The log-softmax is
    computed in float32, sums in float64.

    Parameters
    ----------
    model : torch.nn.Module
        A causal model with a head onto the vocabulary.
    windows : sequence of Window
        In any order.
    pad_id : int
        The padding token: any token that the model knows.
    tokens_per_batch : int
        Windows of a batch times the longest, padding included; a batch has at least one window.
        Models with a large vocabulary get smaller batches, so that logits fit in memory.
    batching : {"padded", "equal", "single"}
        Which windows may share a pass, as :func:`loss_batching` returns it.

    Returns
    -------
    Losses
        For the documents from 0 to the last one that has a window.

    Raises
    ------
    ModelError
        The model has no head onto a vocabulary.
    """
    n_documents = 1 + max((window.document for window in windows), default=-1)
    total = np.zeros(n_documents)
    n_tokens = np.zeros(n_documents, np.int64)
    device = next(model.parameters()).device
    budget = min(tokens_per_batch, LOGITS_PER_BATCH // _vocabulary_size(model))
    for batch in _batches(windows, budget, batching):
        ids = np.full((len(batch), max(len(window.ids) for window in batch)), pad_id, np.int64)
        for row, window in enumerate(batch):
            ids[row, : len(window.ids)] = window.ids
        tokens = torch.from_numpy(ids).to(device)
        with torch.inference_mode():
            logits = compute_logits(model, tokens)
            for row, window in enumerate(batch):
                targets = tokens[row, window.start : window.stop]
                scores = logits[row, window.start - 1 : window.stop - 1].float()
                each = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
                total[window.document] += each.cpu().numpy().astype(np.float64).sum()
                n_tokens[window.document] += len(targets)
    return Losses(total, n_tokens)


def loss_batching(model: nn.Module, windows: Sequence[Window]) -> tuple[Batching, str]:
    """Decide on a loaded model which windows may share a forward pass, and return the reason.

    Parameters
    ----------
    model : torch.nn.Module
        A causal model with a head onto the vocabulary.
    windows : sequence of Window
        The windows whose losses are wanted.

    Raises
    ------
    ModelError
        The model gives other logits for the same window when it runs again.
    """
    hookpoint = head_input(model)
    if hookpoint is None:
        return "single", "the model has no head"  # as its first window will say
    longest = max((len(window.ids) for window in windows), default=1)
    lengths = trial_lengths(model.config, longest, TOKENS_PER_BATCH, causal=True)
    samples = text_samples(model, lengths, causal=True)
    return decide_batching(model, [hookpoint], samples, str(input_device(model)))


def _vocabulary_size(model: nn.Module) -> int:
    config: Any = model.config
    return int(getattr(config.get_text_config(), "vocab_size", 1))


def _batches(
    windows: Sequence[Window], tokens_per_batch: int, batching: Batching
) -> Iterator[list[Window]]:
    """Yield windows of similar length together, the longest first."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda each: -len(each.ids)):
        longest = len(batch[0].ids) if batch else len(window.ids)
        apart = batching == "single" or (batching == "equal" and len(window.ids) < longest)
        if batch and (apart or longest * (len(batch) + 1) > tokens_per_batch):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
