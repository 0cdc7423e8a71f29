"""Logits and continuations of a causal language model, whatever hooks are in it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from actlas.store.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def logits_of(
    model: nn.Module, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a model's logits; shape [batch, position, vocabulary].

    Raises
    ------
    ModelError
        It has no head onto a vocabulary.
    """
    return _logits(model, model(ids, **accepted(model, {"attention_mask": attention_mask})), ids)


def generate(
    model: nn.Module,
    prompt: Sequence[int],
    n_new: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """Return the tokens with which a model goes on after a prompt.

    Every pass goes through the model's hooks: the prompt's, and that of each new token, which
    sees the earlier ones through the model's cache where it has one.

    Parameters
    ----------
    model : torch.nn.Module
    prompt : sequence of int
        At least one token.
    n_new : int
        At most so many.
    temperature : float
        0 takes the most likely token each time, the first of equals.
    seed : int
        Of the draws, by a generator of their own: torch's is not touched.
    stop_ids : collection of int
        Tokens that end it; they are not returned.

    Raises
    ------
    ModelError
        The model has no head onto a vocabulary.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids, past, found = list(prompt), None, []
    for _ in range(n_new):
        fed = torch.tensor([ids if past is None else ids[-1:]], device=device)
        with torch.inference_mode():
            output = model(fed, **accepted(model, {"use_cache": True, "past_key_values": past}))
        past = getattr(output, "past_key_values", None)
        scores = _logits(model, output, fed)[0, -1].float().cpu()
        if temperature > 0:
            shares = torch.softmax(scores / temperature, dim=-1)
            token = int(torch.multinomial(shares, 1, generator=generator))
        else:
            token = int(scores.argmax())
        if token in stop_ids:
            break
        found.append(token)
        ids.append(token)
    return found


def accepted(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some optional inputs that are not None and that a model takes."""
    parameters = inspect.signature(model.forward).parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in inputs.items() if v is not None and (free or k in parameters)}


def _logits(model: nn.Module, output: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != ids.shape:
        raise ModelError(
            f"{type(model).__name__} gives no logits over a vocabulary for each token. Ablation "
            "needs a causal language model with its head, such as a ...ForCausalLM.",
            field="architecture",
        )
    return logits
