"""The work of ``actlas ablate``: windows and prompts, and the model under each condition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from actlas.analysis.interventions import ablation_result as result
from actlas.analysis.interventions.ablation import Window, ablated, generate, losses
from actlas.jobs.logs import NowAndThen
from actlas.pipeline.forward.load import load_model
from actlas.pipeline.model.config import quiet
from actlas.pipeline.model.device import resolve_device
from actlas.store.errors import ConfigError, CorpusError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from actlas.analysis.interventions.ablation import Losses
    from actlas.analysis.localizer.masks import Mask
    from actlas.pipeline.plan.settings import Settings

PROMPT_TOKENS = 24

N_PROMPTS = 3


class Asked(NamedTuple):
    """What :func:`actlas.jobs.run.ablate.ablate` was asked for."""

    random: int
    max_tokens: int
    prompts: tuple[str, ...]
    new_tokens: int
    temperature: float
    seed: int


class Prompt(NamedTuple):
    """A text to go on from, and its tokens, the tokenizer's own before them."""

    text: str
    ids: list[int]


def measure(
    settings: Settings, mask: Mask, asked: Asked, device: str, threads: int | None
) -> result.Ablation:
    """Take loss and samples of a model intact, without the mask, without each random draw.

    Everything that can be refused without the model's weights is refused before they are loaded.

    Raises
    ------
    ModelError
        The model has no head that predicts the next token, or cannot be loaded.
    MaskError, CorpusError, ConfigError
        Too few units outside the mask; nothing to predict; a prompt without room.
    """
    _check_head(settings)
    device = resolve_device(device)
    masks = [(result.INTACT, mask.empty()), (result.TOP, mask)]
    masks += [(result.RANDOM, mask.random(asked.seed + i)) for i in range(asked.random)]
    windows, texts = read_windows(settings, asked.max_tokens)
    prompts = read_prompts(settings, asked, texts)
    model = load_model(settings.model.spec, str(settings.model.folder), device)
    say, measured = NowAndThen(), list[tuple[result.Condition, list[str] | None]]()
    intact: Losses | None = None
    with quiet(), _threads(threads):
        for number, (name, each) in enumerate(masks):
            say(f"condition {number + 1} of {len(masks)}: {result.title(name, each.seed)}")
            with ablated(model, each):
                found = losses(model, windows)
                # One random draw is enough to read; its loss says how the others differ.
                written = _samples(settings, model, prompts, asked) if number < 3 else None
            intact = intact or found
            condition = result.condition_of(name, each.seed, each.n_units, found, intact)
            measured.append((condition, written))
    samples = [
        result.Sample(
            prompt.text,
            tuple((c.title, written[i]) for c, written in measured if written is not None),
        )
        for i, prompt in enumerate(prompts)
    ]
    conditions = tuple(condition for condition, _ in measured)
    return result.Ablation(conditions, tuple(samples), _about(settings, mask, asked, len(texts)))


def read_windows(settings: Settings, max_tokens: int) -> tuple[list[Window], list[str]]:
    """Return windows of the corpus's first ``max_tokens`` tokens, and their documents' texts.

    Windows are those of a plan: each is a pass of its own with the tokenizer's own tokens before
    it. Where there are none, the first token has nothing before it and is not predicted.

    Raises
    ------
    CorpusError
        No document has a token to predict.
    """
    content, prefix = settings.windows.content, settings.windows.prefix
    windows: list[Window] = []
    texts: list[str] = []
    left = max_tokens
    for record in settings.corpus.records():
        if record.image is not None:
            raise ConfigError(
                f"{record.source} record {record.record} has an image, and the loss is that of "
                "texts. Give a corpus of texts alone, without --image-field.",
                field="corpus",
            )
        [tokens] = settings.cutter.cut([record.text])
        ids = settings.windows.apply(tokens).token_id[:left]
        for at in range(0, len(ids), content):
            part = np.array([*prefix, *ids[at : at + content]], np.int64)
            start = max(1, len(prefix))
            if len(part) > start:
                windows.append(Window(len(texts), part, start, len(part)))
        texts.append(record.text)
        left -= len(ids)
        if left <= 0:
            break
    if not windows:
        raise CorpusError(
            f"{settings.corpus.uri}: no document of it has a token to predict.",
            corpus=settings.corpus.uri,
        )
    return windows, texts


def read_prompts(settings: Settings, asked: Asked, texts: Sequence[str]) -> list[Prompt]:
    """Return the prompts asked for, or the beginnings of the first documents.

    Raises
    ------
    ConfigError
        A prompt has no token, or does not fit the model with its new tokens.
    """
    if not asked.new_tokens:
        return []
    prefix, spec = settings.windows.prefix, settings.model.spec
    context = spec.context_length
    room = None if context is None else context - len(prefix) - asked.new_tokens
    if room is not None and room < 1:
        raise ConfigError(
            f"--new-tokens {asked.new_tokens}: {spec.id} has a context of {context} tokens, and "
            "a prompt needs room too. Ask for fewer.",
            field="new_tokens",
        )
    found = []
    beginnings = itertools.islice((text for text in texts if text.strip()), N_PROMPTS)
    for text in asked.prompts or beginnings:
        [tokens] = settings.cutter.cut([text])
        limit = len(tokens)
        if not asked.prompts:
            limit = min(PROMPT_TOKENS, max(1, limit // 2), room or PROMPT_TOKENS)
        if not len(tokens) or (room is not None and limit > room):
            raise ConfigError(
                f"--prompt {text[:40]!r} has {len(tokens)} tokens, expected 1 to "
                f"{room or 'any number'}"
                + (f": {spec.id} has a context of {context}." if context else "."),
                field="prompts",
            )
        edges = [*tokens.char_start.tolist(), tokens.char_stop]
        found.append(Prompt(text[: edges[limit]], [*prefix, *tokens.token_id[:limit].tolist()]))
    return found


def _samples(
    settings: Settings, model: nn.Module, prompts: Sequence[Prompt], asked: Asked
) -> list[str]:
    tokenizer = settings.model.tokenizer
    stop = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None}
    return [
        tokenizer.decode(
            generate(
                model,
                prompt.ids,
                asked.new_tokens,
                temperature=asked.temperature,
                seed=asked.seed + i,
                stop_ids=ends,
            )
        )
        for i, prompt in enumerate(prompts)
    ]


def _check_head(settings: Settings) -> None:
    spec, skeleton = settings.model.spec, settings.model.skeleton
    if not spec.causal or skeleton.get_output_embeddings() is None:  # type: ignore[operator]
        raise ModelError(
            f"{spec.id} is a {spec.architecture}, which predicts no next token: there is no loss "
            "to take. Ablation needs a causal language model with its head, such as a "
            "...ForCausalLM.",
            field="architecture",
        )


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def _about(settings: Settings, mask: Mask, asked: Asked, n_documents: int) -> dict[str, Any]:
    spec, options = settings.model.spec, settings.options
    return {
        "model": spec.id,
        "revision": spec.revision,
        "weights_sha256": spec.weights_sha256,
        "compute_dtype": spec.compute_dtype,
        "corpus": settings.corpus.uri,
        "text_field": settings.corpus.text_field,
        "lowercase": options.lowercase,
        "n_documents": n_documents,
        "max_tokens": asked.max_tokens,
        "max_length": settings.max_length,
        "long": settings.windows.long,
        "random": asked.random,
        "new_tokens": asked.new_tokens,
        "temperature": asked.temperature,
        "seed": asked.seed,
        "mask": mask.key.model_dump(mode="json"),
        "units": {name: list(units) for name, units in mask.units.items()},
    }
