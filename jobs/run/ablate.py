"""``actlas.ablate``: windows and prompts of a corpus, and the model without units of a mask."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.analysis.figures import DPI, Figures
from actlas.jobs.output import check_free, output_folder
from actlas.jobs.run.extract import plain_value
from actlas.store.errors import ConfigError, CorpusError, ModelError
from actlas.store.extras import explains_missing

if TYPE_CHECKING:
    from torch import nn

    from actlas.analysis.interventions.ablation import Prompt
    from actlas.analysis.interventions.ablation_result import Ablation
    from actlas.analysis.interventions.loss import Window
    from actlas.analysis.localizer.masks import Mask
    from actlas.pipeline.plan.settings import Settings

PROMPT_TOKENS = 24
"""Tokens of a prompt that is a document's beginning."""

N_PROMPTS = 3
"""Documents whose beginnings are prompts, where none are given."""


@explains_missing
def ablate(
    model: str | os.PathLike[str],
    mask: Mask | str | os.PathLike[str],
    corpus: str | os.PathLike[str] | Iterable[Any],
    *,
    out: str | os.PathLike[str] | None = None,
    random: int = 5,
    max_tokens: int = 20_000,
    prompts: Sequence[str] = (),
    new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    figures: str | Sequence[str] = "png",
    dpi: int = DPI,
    **options: Any,
) -> Ablation:
    """Measure a model's loss without a mask's units, and without as many random ones.

    Everything that can be refused without the model's weights is refused before they are loaded.

    Parameters
    ----------
    model : str or path
        A hub id, a local folder, ``builtin:NAME``: the model that the mask was made for.
    mask : Mask or path
        A mask, its file, or the folder that ``actlas localize`` wrote.
    corpus : str, path or iterable
        The texts whose loss is measured; see :class:`~actlas.pipeline.options.PlanOptions` and
        :func:`actlas.extract`.
    out : path, optional
        Folder for ``ablation.csv``, ``ablation.png``, ``samples.txt`` and ``summary.json``.
        Default: nothing is written.
    random : int
        Draws of random units outside the mask, with the seeds from ``seed`` on.
    max_tokens : int
        Tokens of text from the corpus's beginning; the last document is cut at that number.
    prompts : sequence of str
        Texts to continue. Default: the beginnings of the first documents.
    new_tokens : int
        Tokens of each continuation.
    temperature : float
        Of the softmax that new tokens are drawn from; 0 takes the most likely token.
    seed : int
        Of random units and of drawn tokens: every condition has the same draws.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    threads : int, optional
        CPU threads of torch during the call. Default: torch's own number.
    overwrite : bool
        Whether results at ``out`` are replaced.
    figures : str or sequence of str
        Formats of the picture: ``png``, ``svg``, ``pdf``, several of them, or ``none``.
    dpi : int
        Pixels per inch of the picture.
    **options
        More fields of :class:`~actlas.pipeline.options.PlanOptions`: ``text_field``,
        ``lowercase``, ``max_length``, ``revision``, ``model_dtype``.

    Returns
    -------
    Ablation
        A table of conditions, samples, and one sentence that compares them.

    Raises
    ------
    MaskError
        The mask does not exist, or was made for another model (``details["field"]`` says what
        differs), or too few units are outside it.
    ModelError
        The model does not exist, or has no head that predicts the next token.
    CorpusError
        The corpus cannot be read, or has no token to predict.
    ConfigError
        An option is out of range, or a prompt does not fit the model's context.
    StoreExistsError
        Something lies at ``out``, and ``overwrite`` is not set.

    Examples
    --------
    >>> found = actlas.ablate(                                      # doctest: +SKIP
    ...     "gpt2", "language/mask.json", "texts.jsonl", out="without-language"
    ... )
    >>> found.table[["condition", "seed", "loss_delta"]]           # doctest: +SKIP
    """
    from actlas.analysis.interventions.ablation import Sampling, compare, masks_to_compare
    from actlas.analysis.interventions.ablation_result import Ablation
    from actlas.analysis.interventions.loss import loss_batching
    from actlas.analysis.localizer.masks import Mask
    from actlas.jobs.logs import NowAndThen
    from actlas.jobs.run.run import on_stderr
    from actlas.pipeline.forward.load import load_model
    from actlas.pipeline.forward.strategy import BATCHING
    from actlas.pipeline.model.config import quiet
    from actlas.pipeline.model.device import resolve_device, torch_threads

    if out is not None:
        check_free(Path(out).expanduser().absolute(), overwrite=overwrite)
    pictures = Figures.parse(figures, dpi)
    _check(random=random, new_tokens=new_tokens, temperature=temperature, seed=seed)
    _check(1, max_tokens=max_tokens, threads=1 if threads is None else threads)
    chosen = mask if isinstance(mask, Mask) else Mask.load(mask)
    settings = _settings(model, corpus, options, device)
    chosen.check_model(settings.model.spec)
    _check_head(settings)
    device = resolve_device(device)
    masks = masks_to_compare(chosen, random, seed)
    windows, texts = read_windows(settings, max_tokens)
    continued = read_prompts(settings, prompts, new_tokens, texts)
    loaded = load_model(settings.model.spec, str(settings.model.folder), device)
    sampling = Sampling(new_tokens, temperature, seed, _stop_ids(settings, loaded))
    with quiet(), torch_threads(threads), NowAndThen() as say:
        batching, why = loss_batching(loaded, windows)
        if batching != "padded":
            on_stderr(f"batches: {BATCHING[batching]}, because {why}")
        dtype = settings.model.compute_dtype
        on_stderr(f"compute: {dtype.name}, {dtype.reason}")
        conditions, samples = compare(
            loaded,
            masks,
            windows,
            continued,
            sampling,
            decode=settings.model.tokenizer.decode,
            progress=say,
            batching=batching,
        )
    asked = {
        "max_tokens": max_tokens,
        "random": random,
        "new_tokens": new_tokens,
        "temperature": temperature,
        "seed": seed,
        "batching": f"{BATCHING[batching]}: {why}",
    }
    found = Ablation(conditions, samples, _about(settings, chosen, asked, len(texts)))
    if out is not None:
        with output_folder(out, overwrite=overwrite) as folder:
            found.save(folder, pictures)
    return found


def _check(least: int = 0, **numbers: float) -> None:
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= least):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {value}: expected {least} or more.", field=name)


def _settings(model: Any, corpus: Any, options: dict[str, Any], device: str) -> Settings:
    from pydantic import ValidationError

    from actlas.pipeline.corpus.in_memory import PREFIX, GivenDocuments
    from actlas.pipeline.options import PlanOptions
    from actlas.pipeline.plan.settings import resolve_settings
    from actlas.store.format.sealing import summarize

    given = {name: plain_value(name, value) for name, value in options.items()}
    given |= {"model": plain_value("model", model), "corpus": plain_value("corpus", corpus)}
    documents = None
    if not isinstance(given["corpus"], str):
        documents, given["corpus"] = GivenDocuments(corpus), PREFIX
    try:
        # A hookpoint that every model has; the mask brings its own.
        asked = PlanOptions(hookpoints=("resid_post.last",), **given).with_documents(documents)
    except ValidationError as error:
        raise ConfigError(summarize(error)) from error
    return resolve_settings(asked, device)


def _check_head(settings: Settings) -> None:
    spec, skeleton = settings.model.spec, settings.model.skeleton
    if not spec.causal or skeleton.get_output_embeddings() is None:  # type: ignore[operator]
        raise ModelError(
            f"{spec.id} is a {spec.architecture}, which predicts no next token: there is no loss "
            "to take. Ablation needs a causal language model with its head, such as a "
            "...ForCausalLM.",
            field="architecture",
        )


def read_windows(settings: Settings, max_tokens: int) -> tuple[list[Window], list[str]]:
    """Return windows of a corpus's first tokens, and the texts of their documents.

    The windows are those of a plan: each runs on its own, after the tokenizer's special tokens.

    Parameters
    ----------
    settings : Settings
        Model, corpus, tokenizer and windows.
    max_tokens : int
        Tokens of all documents together; the last document is cut at that number.

    Returns
    -------
    list of Window
        In the corpus's order.
    list of str
        One text for each document that was read.

    Raises
    ------
    CorpusError
        No document has a token to predict.
    ConfigError
        A record has an image.
    """
    from actlas.analysis.interventions.loss import cut_windows

    windows: list[Window] = []
    texts: list[str] = []
    n_left = max_tokens
    for record in settings.corpus.records():
        if record.image is not None:
            raise ConfigError(
                f"{record.source} record {record.record} has an image, and the loss is that of "
                "texts. Give a corpus of texts alone, without --image-field.",
                field="corpus",
            )
        [tokens] = settings.tokenizer.tokenize([record.text])
        ids = settings.windows.apply(tokens).token_id[:n_left]
        content, prefix = settings.windows.content, settings.windows.prefix
        windows += cut_windows(ids, content, prefix, document=len(texts))
        texts.append(record.text)
        n_left -= len(ids)
        if n_left <= 0:
            break
    if not windows:
        raise CorpusError(
            f"{settings.corpus.uri}: no document of it has a token to predict.",
            corpus=settings.corpus.uri,
        )
    return windows, texts


def read_prompts(
    settings: Settings, prompts: Sequence[str], new_tokens: int, texts: Sequence[str]
) -> list[Prompt]:
    """Return prompts with their tokens: those given, or the beginnings of the first documents.

    Parameters
    ----------
    settings : Settings
        Model, tokenizer and windows.
    prompts : sequence of str
        The prompts; empty for the documents' beginnings.
    new_tokens : int
        Tokens that must fit into the model's context after a prompt; 0 for no prompts at all.
    texts : sequence of str
        The documents.

    Raises
    ------
    ConfigError
        A prompt has no token, or does not fit the model's context with its new tokens.
    """
    from actlas.analysis.interventions.ablation import Prompt

    if not new_tokens:
        return []
    prefix, spec = settings.windows.prefix, settings.model.spec
    context = spec.context_length
    room = None if context is None else context - len(prefix) - new_tokens
    if room is not None and room < 1:
        raise ConfigError(
            f"--new-tokens {new_tokens}: {spec.id} has a context of {context} tokens, and "
            "a prompt needs room too. Ask for fewer.",
            field="new_tokens",
        )
    found = []
    beginnings = itertools.islice((text for text in texts if text.strip()), N_PROMPTS)
    for text in prompts or beginnings:
        [tokens] = settings.tokenizer.tokenize([text])
        n_tokens = len(tokens)
        if not prompts:
            n_tokens = min(PROMPT_TOKENS, max(1, n_tokens // 2), room or PROMPT_TOKENS)
        if not len(tokens) or (room is not None and n_tokens > room):
            raise ConfigError(
                f"--prompt {text[:40]!r} has {len(tokens)} tokens, expected 1 to "
                f"{room or 'any number'}"
                + (f": {spec.id} has a context of {context}." if context else "."),
                field="prompts",
            )
        edges = [*tokens.char_start.tolist(), tokens.char_stop]
        ids = [*prefix, *tokens.token_id[:n_tokens].tolist()]
        found.append(Prompt(text[: edges[n_tokens]], ids))
    return found


def _stop_ids(settings: Settings, model: nn.Module) -> set[int]:
    stop = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {settings.model.tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])}
    return ends - {None}


def _about(
    settings: Settings, mask: Mask, asked: dict[str, Any], n_documents: int
) -> dict[str, Any]:
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
        "max_length": settings.max_length,
        "long": settings.windows.long,
        **asked,
        "mask": mask.key.model_dump(mode="json"),
        "units": {name: list(units) for name, units in mask.units.items()},
    }
