"""``actlas ablate``: a model's loss and samples, intact, without top units, without others."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.flags import debug_option, json_option
from actlas.jobs.formatting import count, printable
from actlas.jobs.options import Count
from actlas.jobs.output import check_free, output_folder
from actlas.store.errors import ConfigError

if TYPE_CHECKING:
    from actlas.analysis.localizer.ablation_result import Ablation
    from actlas.analysis.localizer.masks import Mask
    from actlas.pipeline.settings import Settings


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
    from actlas.jobs.ablation import Asked, measure

    if out is not None:
        check_free(Path(out).expanduser().absolute(), overwrite=overwrite)
    _check(random=random, new_tokens=new_tokens, temperature=temperature, seed=seed)
    _check(1, max_tokens=max_tokens, threads=1 if threads is None else threads)
    chosen = mask if isinstance(mask, Mask) else Mask.load(mask)
    settings = _settings(model, corpus, options)
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


def _settings(model: str, corpus: str, options: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    from actlas.pipeline.options import PlanOptions
    from actlas.pipeline.settings import resolve_settings
    from actlas.store.schema import summarize

    try:
        # A hookpoint that every model has; the mask has its own.
        asked = PlanOptions(model=model, corpus=corpus, hookpoints=("resid_post.last",), **options)
    except ValidationError as error:
        raise ConfigError(summarize(error)) from error
    return resolve_settings(asked)


def _lines(found: Ablation) -> list[str]:
    header = ("units", "loss", "change", "se", "perplexity", "bits/token")
    lines = [f"{'condition':<18}" + "".join(f"{name:>12}" for name in header)]
    for c in found.conditions:
        change = "" if c.name == "intact" else f"{c.loss_delta:+.4f}"
        se = "" if c.name == "intact" else f"{c.se:.4f}"
        cells = [count(c.n_units), f"{c.loss:.4f}", change, se]
        cells += [f"{c.perplexity:.4g}", f"{c.bits_per_token:.4f}"]
        lines.append(f"{c.title:<18}" + "".join(f"{cell:>12}" for cell in cells))
    n = found.top.n_tokens
    return [*lines, f"{count(n)} predicted tokens; loss in nats per token", "", found.sentence()]


@click.command("ablate", short_help="The model without a mask's units.")
@click.argument("model")
@click.option(
    "--mask", required=True, metavar="FILE", help="mask.json, or the folder that localize wrote."
)
@click.option("--corpus", required=True, help="On which the loss is taken: see `actlas plan`.")
@click.option("--out", required=True, metavar="DIR", help="Where the results are written.")
@click.option(
    "--random", type=Count(), default=5, help="Draws of random units to compare with.  [default: 5]"
)
@click.option(
    "--max-tokens",
    type=Count(),
    default=20_000,
    help="Tokens of text, from the corpus's beginning.  [default: 20,000]",
)
@click.option(
    "--max-length",
    type=Count(),
    help="Tokens of a window.  [default: the model's context, at most 1,024]",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="To go on from; may be repeated.  [default: the beginnings of the first 3 documents]",
)
@click.option("--new-tokens", type=Count(), default=40, help="Of each continuation.  [default: 40]")
@click.option(
    "--temperature",
    type=click.FLOAT,
    default=0.0,
    help="0 takes the most likely token.  [default: 0]",
)
@click.option(
    "--seed", type=Count(), default=0, help="Of random units and drawn tokens.  [default: 0]"
)
@click.option("--text-field", help="The text's field or column.  [default: text]")
@click.option(
    "--label-field",
    help="The label's field: a labelled corpus, whose longer documents are cut.  "
    "[default: no labels]",
)
@click.option("--lowercase", is_flag=True, help="Lowercase the text first.  [default: no]")
@click.option("--revision", help="Of a model on the hub.  [default: main]")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the model.  [default: no]"
)
@click.option(
    "--model-dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    help="What computes.  [default: auto, the checkpoint's own]",
)
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps.  [default: auto]")
@click.option("--threads", type=Count(), help="CPU threads.  [default: torch's own]")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.  [default: no]")
@json_option
@debug_option
def command(
    model: str,
    mask: str,
    corpus: str,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure MODEL without the units of a mask, and without as many random ones.

    The units are set to zero at their hookpoints, in every pass. It says plainly when the mask's
    units do no more than random ones. Writes ablation.csv, ablation.png, samples.txt and
    summary.json.
    """
    # What was not given is left to the defaults of a plan.
    found = ablate(model, mask, corpus, **{k: v for k, v in asked.items() if v is not None})
    if as_json:
        click.echo(json.dumps({"out": asked["out"], **found.summary()}))
        return
    click.echo("\n".join(_lines(found)))
    if found.samples:
        sample = found.samples[0]
        click.echo(f"\nafter {printable(sample.prompt)!r}:")
        for title, text in sample.texts:
            click.echo(f"  {title:<16} {_short(text)}")
    click.echo(f"\nwrote {asked['out']}: ablation.csv, ablation.png, samples.txt, summary.json")


def _short(text: str, limit: int = 100) -> str:
    return printable(text if len(text) <= limit else text[: limit - 1] + "…")
