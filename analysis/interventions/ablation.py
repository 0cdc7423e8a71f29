"""Ablation: a model's loss and samples while units of a mask are set to zero.

Zero ablation as in AlKhamissi et al. 2025 (arXiv 2411.02280): the units are zero in the tensor of
their hookpoint, at every position, in the prompt and in generated tokens. A later block may write
to the same coordinate of the residual stream again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from actlas.analysis.interventions.ablation_result import Sample
from actlas.analysis.interventions.conditions import (
    INTACT,
    RANDOM,
    TOP,
    Condition,
    condition_of,
    title,
)
from actlas.analysis.interventions.loss import Losses, Window, losses
from actlas.pipeline.forward.batching import Batching
from actlas.pipeline.forward.edits import Zero
from actlas.pipeline.forward.generate import generate
from actlas.pipeline.forward.intervene import Intervention, intervene
from actlas.store.errors import MaskError

if TYPE_CHECKING:
    from torch import nn

    from actlas.analysis.localizer.masks import Mask

N_SAMPLED = 3
"""Conditions whose continuations are written down: intact, top, and the first random draw."""


@contextmanager
def ablated(model: nn.Module, mask: Mask) -> Iterator[None]:
    """Set a mask's units to zero in every forward pass of a model, as long as this is open.

    The units are those of a hookpoint's tensor: the output of its module (the tensor, or the first
    of a tuple), or the input where the side is "input". They are zero at every position, in the
    prompt and in generated tokens; no other number changes, and a mask without units changes no
    bit. Several masks may be open at once. The hooks come off on the way out, after an error too.

    Parameters
    ----------
    model : torch.nn.Module
        In any dtype, on any device.
    mask : Mask
        Units of hookpoints, as ``actlas localize`` selects them.

    Raises
    ------
    MaskError
        The model has no such module; or, raised by the first pass itself, its tensor has another
        width than the mask's hookpoint.

    Examples
    --------
    >>> with ablated(model, Mask.load("language/mask.json")):      # doctest: +SKIP
    ...     logits = model(input_ids).logits
    """
    specs = {spec.name: spec for spec in mask.key.hookpoints}
    zeros = [Intervention(specs[name], Zero(), units) for name, units in mask.units.items()]
    with intervene(model, zeros, error_of=_mask_error):
        yield


def _mask_error(each: Intervention, reason: str) -> MaskError:
    spec = each.hookpoint
    return MaskError(
        f"the mask's {spec.name} (module {spec.module}, {spec.side}): {reason}. The mask was made "
        "for another model: localize on this one.",
        field="hookpoints",
        hookpoint=spec.name,
    )


class Prompt(NamedTuple):
    """A text to continue.

    Attributes
    ----------
    text : str
        The text.
    ids : list of int
        Its tokens, the tokenizer's special tokens before them.
    """

    text: str
    ids: list[int]


class Sampling(NamedTuple):
    """How prompts are continued.

    Attributes
    ----------
    new_tokens : int
        The largest number of new tokens.
    temperature : float
        Of the softmax that tokens are drawn from; 0 takes the most likely token.
    seed : int
        Of the first prompt's draws; the next prompts count on from it.
    stop_ids : collection of int
        Tokens that end a continuation.
    """

    new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop_ids: Collection[int] = ()


def masks_to_compare(mask: Mask, n_random: int, seed: int) -> list[tuple[str, Mask]]:
    """Return the conditions of an ablation, each with its mask.

    Parameters
    ----------
    mask : Mask
        The units under test.
    n_random : int
        Draws of as many units outside the mask.
    seed : int
        Of the first draw; the next draws count on from it.

    Returns
    -------
    list of (str, Mask)
        "intact" with no units, "top" with the mask, "random" for each draw.

    Raises
    ------
    MaskError
        Fewer units are outside the mask than in it.
    """
    draws = [(RANDOM, mask.random(seed + i)) for i in range(n_random)]
    return [(INTACT, mask.empty()), (TOP, mask), *draws]


def compare(
    model: nn.Module,
    masks: Sequence[tuple[str, Mask]],
    windows: Sequence[Window],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    decode: Callable[[list[int]], str],
    progress: Callable[[str], None] = lambda _text: None,
    batching: Batching = "padded",
) -> tuple[tuple[Condition, ...], tuple[Sample, ...]]:
    """Measure a model's loss and samples under each condition.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model with its head.
    masks : sequence of (str, Mask)
        As :func:`masks_to_compare` gives them: the intact model first.
    windows : sequence of Window
        The loss is that of their predicted tokens.
    prompts : sequence of Prompt
        Continued under the first three conditions: one random draw is enough to read, and the
        losses say how the others differ.
    sampling : Sampling
        How prompts are continued.
    decode : callable
        Returns the text of tokens.
    progress : callable
        Called with a line of text before each condition.
    batching : {"padded", "equal", "single"}
        Which windows may share a forward pass.

    Returns
    -------
    tuple of Condition
        One for each mask, in order.
    tuple of Sample
        One for each prompt.

    Raises
    ------
    ModelError
        The model has no head onto a vocabulary.
    """
    conditions: list[Condition] = []
    written: dict[str, list[str]] = {}
    intact: Losses | None = None
    for number, (name, mask) in enumerate(masks):
        progress(f"condition {number + 1} of {len(masks)}: {title(name, mask.seed)}")
        with ablated(model, mask):
            found = losses(model, windows, batching=batching)
            intact = intact or found
            conditions.append(condition_of(name, mask.seed, mask.n_units, found, intact))
            if number < N_SAMPLED:
                written[conditions[-1].title] = _continue(model, prompts, sampling, decode)
    samples = tuple(
        Sample(prompt.text, tuple((name, texts[i]) for name, texts in written.items()))
        for i, prompt in enumerate(prompts)
    )
    return tuple(conditions), samples


def _continue(
    model: nn.Module,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    decode: Callable[[list[int]], str],
) -> list[str]:
    return [
        decode(
            generate(
                model,
                prompt.ids,
                sampling.new_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed + i,
                stop_ids=sampling.stop_ids,
            )
        )
        for i, prompt in enumerate(prompts)
    ]
