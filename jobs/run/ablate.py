"""Ablation from Python."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.jobs.output import check_free, output_folder
from actlas.store.errors import ConfigError

if TYPE_CHECKING:
    from actlas.analysis.interventions.ablation_result import Ablation
    from actlas.analysis.localizer.masks import Mask
    from actlas.pipeline.plan.settings import Settings


def ablate(
    model: str,
    mask: Mask | str | os.PathLike[str],
    corpus: str,
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
    **options: Any,
) -> Ablation:
    """Set a mask's units to zero, then as many random others, and see what the model loses.

    Parameters
    ----------
    model : str
        A hub id, a local folder, ``builtin:NAME``: the one that the mask was made for.
    mask : Mask or path
        A mask, its file, or the folder that ``actlas localize`` wrote.
    corpus : str
        On which the loss is taken.
    out : path, optional
        Where ``ablation.csv``, ``ablation.png``, ``samples.txt`` and ``summary.json`` are written.
    random : int
        How many draws of random units outside the mask, with the seeds from ``seed`` on.
    max_tokens : int
        Tokens of text, from the corpus's beginning; the last document is cut there.
    prompts : sequence of str
        To go on from; by default the beginnings of the first documents.
    new_tokens : int
        Of each continuation.
    temperature : float
        0 takes the most likely token; else tokens are drawn, by the same numbers each time.
    seed : int
        Of random units and of drawn tokens.
    device : str
    threads : int, optional
        CPU threads, while this runs. Default: torch's own.
    overwrite : bool
        Replace what lies at ``out``.
    **options
        More fields of :class:`~actlas.pipeline.options.PlanOptions`: ``text_field``,
        ``lowercase``, ``max_length``, ``revision``, ``model_dtype``.

    Raises
    ------
    MaskError
        There is no such mask, or it was made for another model (``details["field"]`` says what
        differs), or there are too few units outside it.
    ModelError
        The model is not there, or has no head that predicts the next token.
    CorpusError, ConfigError, StoreExistsError
        The corpus, an option or ``out`` will not do.

    Examples
    --------
    >>> found = actlas.ablate(                                      # doctest: +SKIP
    ...     "gpt2", "language/mask.json", "texts.jsonl", out="without-language"
    ... )
    >>> found.table[["condition", "seed", "loss_delta"]]           # doctest: +SKIP
    """
    from actlas.analysis.localizer.masks import Mask
    from actlas.jobs.run.ablation import Asked, measure

    if out is not None:
        check_free(Path(out).expanduser().absolute(), overwrite=overwrite)
    _check(random=random, new_tokens=new_tokens, temperature=temperature, seed=seed)
    _check(1, max_tokens=max_tokens, threads=1 if threads is None else threads)
    chosen = mask if isinstance(mask, Mask) else Mask.load(mask)
    settings = _settings(model, corpus, options, device)
    chosen.check_model(settings.model.spec)
    asked = Asked(random, max_tokens, tuple(prompts), new_tokens, temperature, seed)
    found = measure(settings, chosen, asked, device, threads)
    if out is not None:
        with output_folder(out, overwrite=overwrite) as folder:
            found.save(folder)
    return found


def _check(least: int = 0, **numbers: float) -> None:
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= least):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {value}: expected {least} or more.", field=name)


def _settings(model: str, corpus: str, options: dict[str, Any], device: str) -> Settings:
    from pydantic import ValidationError

    from actlas.pipeline.options import PlanOptions
    from actlas.pipeline.plan.settings import resolve_settings
    from actlas.store.format.sealing import summarize

    try:
        # A hookpoint that every model has; the mask has its own.
        asked = PlanOptions(model=model, corpus=corpus, hookpoints=("resid_post.last",), **options)
    except ValidationError as error:
        raise ConfigError(summarize(error)) from error
    return resolve_settings(asked, device)
