"""Logits and generated tokens of a causal language model, through whatever hooks it has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from actlas.pipeline.forward.hooks import accepted_inputs, masked
from actlas.pipeline.model.device import input_device
from actlas.store.errors import ConfigError, ModelError
from actlas.store.format.catalog import LOSS
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor, nn


def compute_logits(
    model: nn.Module,
    input_ids: Int64[Tensor, "batch positions"],
    attention_mask: Int64[Tensor, "batch positions"] | None = None,
) -> Float[Tensor, "batch positions vocabulary"]:
    """Return the logits of one forward pass, with their gradient history.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers.
    input_ids : Tensor of int64, shape [batch, position]
        Tokens, special ones included.
    attention_mask : Tensor of int64, shape [batch, position], optional
        1 for tokens, 0 for padding. Default: no padding.

    Returns
    -------
    Tensor, shape [batch, position, vocabulary]
        In the dtype that the model gives them in.

    Raises
    ------
    ModelError
        The model has no head onto a vocabulary, or takes no mask and is given one.
    """
    output = model(input_ids, **masked(model, attention_mask))
    return _logits(model, output, input_ids)


def head_input(model: nn.Module) -> HookpointSpec | None:
    """Return the input of a model's projection onto its vocabulary; None where it has none.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        return None
    path = next(path for path, module in model.named_modules() if module is head)
    width = int(head.weight.shape[1])
    return HookpointSpec(name=LOSS, module=path, side="input", width=width)


def generate(
    model: nn.Module,
    prompt: Sequence[int],
    n_new: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """Return the tokens that a model generates after a prompt.

    Every pass goes through the model's hooks: the pass of the prompt, and the pass of each new
    token, which attends to the earlier ones through the key-value cache where the model has one.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers.
    prompt : sequence of int
        Tokens, special ones included; at least one.
    n_new : int
        The largest number of new tokens.
    temperature : float
        Of the softmax that tokens are drawn from; 0 takes the most likely token, the first of
        equals.
    seed : int
        Of the draws. They have a generator of their own: torch's global one is not touched.
    stop_ids : collection of int
        Tokens that end the generation; they are not returned.

    Raises
    ------
    ConfigError
        The prompt is empty.
    ModelError
        The model has no head onto a vocabulary.
    """
    ids = list(prompt)
    if not ids:
        raise ConfigError(
            "got an empty prompt, expected at least one token. To generate from nothing, give the "
            "token that begins a text, such as tokenizer.bos_token_id.",
            field="prompt",
        )
    device = input_device(model)
    generator = torch.Generator().manual_seed(seed)
    cache, found = None, []
    keeps_cache = bool(accepted_inputs(model, {"past_key_values": True}))
    for _ in range(n_new):
        input_ids = torch.tensor([ids if cache is None else ids[-1:]], device=device)
        options = accepted_inputs(model, {"use_cache": True, "past_key_values": cache})
        with torch.inference_mode():
            output = model(input_ids, **options)
        cache = getattr(output, "past_key_values", None) if keeps_cache else None
        scores = _logits(model, output, input_ids)[0, -1].float().cpu()
        if temperature > 0:
            probabilities = torch.softmax(scores / temperature, dim=-1)
            token = int(torch.multinomial(probabilities, 1, generator=generator))
        else:
            token = int(scores.argmax())
        if token in stop_ids:
            break
        found.append(token)
        ids.append(token)
    return found


def _logits(model: nn.Module, output: Any, input_ids: Tensor) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != input_ids.shape:
        raise ModelError(
            f"{type(model).__name__} gives no logits over a vocabulary for each token. Expected a "
            "causal language model with its head, such as a ...ForCausalLM.",
            field="architecture",
        )
    return logits
