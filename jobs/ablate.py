"""``actlas ablate``: a model's loss and samples, intact, without a mask's units, without others."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.flags import debug_option, json_option
from actlas.jobs.formatting import count, printable
from actlas.jobs.options import Count
from actlas.jobs.output import check_free, output_folder
from actlas.jobs.progress import NowAndThen
from actlas.store.errors import ConfigError, CorpusError, ModelError

if TYPE_CHECKING:
    from actlas.analysis.localizer.ablation import Window
    from actlas.analysis.localizer.ablation_result import Ablation
    from actlas.analysis.localizer.masks import Mask
    from actlas.pipeline.settings import Settings

PROMPT_TOKENS = 24
N_PROMPTS = 3


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
    """Set a mask's units to zero, and as many random others, and see what the model loses.

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
        How many draws of random units, with the seeds from ``seed`` on.
    max_tokens : int
        The first documents that have these many tokens in all.
    prompts : sequence of str
        To go on from; by default the beginnings of the first documents.
    new_tokens : int
        Of each continuation.
    temperature : float
        0 takes the most likely token.
    seed : int
        Of random units and of drawn tokens.
    device : str
    **options
        More fields of :class:`~actlas.pipeline.options.PlanOptions`: ``text_field``, ``lowercase``,
        ``max_length``, ``revision``.

    Raises
    ------
    MaskError
        There is no such mask, or it was made for another model.
    ModelError
        The model is not there, or has no head onto a vocabulary.
    CorpusError, ConfigError
        The corpus or an option makes no sense.
    """
    from actlas.analysis.localizer.masks import Mask

    if out is not None:
        check_free(Path(out).expanduser().absolute(), overwrite=overwrite)
    if random < 0 or new_tokens < 0 or max_tokens < 1 or temperature < 0:
        raise ConfigError("random, new_tokens and temperature must be 0 or more, max_tokens 1.")
    chosen = mask if isinstance(mask, Mask) else Mask.load(mask)
    settings = _settings(model, corpus, options)
    spec = settings.model.spec
    chosen.check_model(spec)
    if not spec.causal:
        raise ModelError(
            f"{spec.id} is not causal: it predicts no next token. Ablation needs a causal language "
            "model.",
            field="causal",
        )
    found = _measure(
        settings,
        chosen,
        random,
        max_tokens,
        tuple(prompts),
        new_tokens,
        temperature,
        seed,
        device,
        threads,
    )
    if out is not None:
        with output_folder(out, overwrite=overwrite) as folder:
            found.save(folder)
    return found


def _settings(model: str, corpus: str, options: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    from actlas.pipeline.options import PlanOptions
    from actlas.pipeline.settings import resolve_settings
    from actlas.store.schema import summarize

    try:
        asked = PlanOptions(model=model, corpus=corpus, hookpoints=("resid_post.last",), **options)
    except ValidationError as error:
        raise ConfigError(summarize(error)) from error
    return resolve_settings(asked)


def read_windows(settings: Settings, max_tokens: int) -> tuple[list[Window], list[str]]:
    """Return the windows of the first documents with these many tokens, and the documents' texts.

    Each window is a pass of its own, with the tokenizer's own tokens around it.

    Raises
    ------
    CorpusError
        No document has a token to predict.
    """
    import numpy as np

    from actlas.analysis.localizer.ablation import Window

    prefix, suffix = settings.windows.prefix, settings.windows.suffix
    content = settings.windows.content
    windows: list[Window] = []
    texts: list[str] = []
    n_tokens = 0
    for record in settings.corpus.records():
        [tokens] = settings.cutter.cut([record.text])
        ids = tokens.token_id[:content] if settings.windows.long == "truncate" else tokens.token_id
        if n_tokens and n_tokens + len(ids) > max_tokens:
            ids = ids[: max_tokens - n_tokens]
        for at in range(0, len(ids), content):
            part = [*prefix, *ids[at : at + content].tolist(), *suffix]
            start, stop = max(1, len(prefix)), len(part) - len(suffix)
            if stop > start:
                windows.append(Window(len(texts), np.array(part, np.int64), start, stop))
        texts.append(record.text)
        n_tokens += len(ids)
        if n_tokens >= max_tokens:
            break
    if not windows:
        raise CorpusError(
            f"{settings.corpus.uri}: no document of it has a token to predict.",
            uri=settings.corpus.uri,
        )
    return windows, texts


def _measure(
    settings: Settings,
    mask: Mask,
    n_random: int,
    max_tokens: int,
    prompts: tuple[str, ...],
    n_new: int,
    temperature: float,
    seed: int,
    device: str,
    threads: int | None,
) -> Ablation:
    import torch

    from actlas.analysis.localizer import ablation_result as result
    from actlas.analysis.localizer.ablation import ablated, generate, losses
    from actlas.pipeline.architecture import quiet
    from actlas.pipeline.cpus import n_cpus
    from actlas.pipeline.device import resolve_device
    from actlas.pipeline.model import load_model

    windows, texts = read_windows(settings, max_tokens)
    masks = [(result.INTACT, mask.empty()), (result.TOP, mask)]
    masks += [(result.RANDOM, mask.random(seed + i)) for i in range(n_random)]
    torch.set_num_threads(threads or n_cpus())
    model = load_model(settings.model.spec, str(settings.model.folder), resolve_device(device))
    asked = prompts or tuple(itertools.islice((t for t in texts if t.strip()), N_PROMPTS))
    starts = [_prompt(settings, text, n_new, whole=bool(prompts)) for text in asked]
    tokenizer, say = settings.model.tokenizer, NowAndThen()
    stop_ids = [i for i in [tokenizer.eos_token_id] if i is not None]
    conditions: list[result.Condition] = []
    went_on: list[list[tuple[str, str]]] = [[] for _ in starts]
    intact = None
    for number, (name, each) in enumerate(masks):
        title = name if each.seed is None else f"{name}, seed {each.seed}"
        say(f"{title} ({number + 1} of {len(masks)} conditions)")
        with quiet(), ablated(model, each) if each.n_units else nullcontext():
            found = losses(model, windows)
            for i, (_, ids) in enumerate(starts):
                new = generate(
                    model, ids, n_new, temperature=temperature, seed=seed + i, stop_ids=stop_ids
                )
                went_on[i].append((title, tokenizer.decode(new)))
        intact = intact or found
        conditions.append(result.condition_of(name, each.seed, each.n_units, found, intact))
    samples = [
        result.Sample(text, tuple(pairs)) for (text, _), pairs in zip(starts, went_on, strict=True)
    ]
    about = {
        "model": settings.model.spec.id,
        "weights_sha256": settings.model.spec.weights_sha256,
        "corpus": settings.corpus.uri,
        "n_documents": len(texts),
        "max_tokens": max_tokens,
        "max_length": settings.max_length,
        "mask": mask.key.model_dump(mode="json"),
        "units": {name: list(units) for name, units in mask.units.items()},
        "new_tokens": n_new,
        "temperature": temperature,
        "seed": seed,
    }
    return result.Ablation(tuple(conditions), tuple(samples), about)


def _prompt(settings: Settings, text: str, n_new: int, *, whole: bool) -> tuple[str, list[int]]:
    """Return a prompt's text and tokens: all of it, or a document's beginning."""
    [tokens] = settings.cutter.cut([text])
    room = settings.max_length - len(settings.windows.prefix) - n_new
    limit = min(room, len(tokens) if whole else min(PROMPT_TOKENS, max(1, len(tokens) // 2)))
    if limit < 1 or not len(tokens):
        raise ConfigError(
            f"a prompt of {len(tokens)} tokens and {n_new} new ones in windows of "
            f"{settings.max_length}: expected room for at least one token of the prompt."
        )
    start = max(0, len(tokens) - limit) if whole else 0
    kept = tokens.token_id[start : start + limit]
    edges = [*tokens.char_start.tolist(), tokens.char_stop]
    return text[edges[start] : edges[start + limit]], [*settings.windows.prefix, *kept.tolist()]


def _lines(found: Ablation) -> list[str]:
    header = ("units", "loss", "change", "se", "perplexity", "bits/token")
    lines = [f"{'condition':<18}" + "".join(f"{name:>12}" for name in header)]
    for c in found.conditions:
        title = c.name if c.seed is None else f"{c.name}, seed {c.seed}"
        change = "" if c.name == "intact" else f"{c.loss_delta:+.4f}"
        se = "" if c.name == "intact" else f"{c.se:.4f}"
        cells = [count(c.n_units), f"{c.loss:.4f}", change, se]
        cells += [f"{c.perplexity:.4g}", f"{c.bits_per_token:.4f}"]
        lines.append(f"{title:<18}" + "".join(f"{cell:>12}" for cell in cells))
    n = found.top.n_tokens
    return [*lines, f"{count(n)} predicted tokens; loss in nats per token", "", found.sentence()]


@click.command("ablate", short_help="The model without a mask's units.")
@click.argument("model")
@click.option(
    "--mask", required=True, metavar="FILE", help="mask.json, or the folder that localize wrote."
)
@click.option("--corpus", required=True, help="On which the loss is taken: see `actlas plan`.")
@click.option("--out", required=True, metavar="DIR", help="Where the results are written.")
@click.option("--random", type=Count(), default=5, help="Draws of random units.  [default: 5]")
@click.option(
    "--max-tokens",
    type=Count(),
    default=20_000,
    help="The first documents with these many tokens in all.  [default: 20,000]",
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
@click.option("--lowercase", is_flag=True, help="Lowercase the text first.  [default: no]")
@click.option("--revision", help="Of a model on the hub.  [default: main]")
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps.  [default: auto]")
@click.option("--threads", type=Count(), help="CPU threads.  [default: the machine's]")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.  [default: no]")
@json_option
@debug_option
def command(
    model: str,
    mask: str,
    corpus: str,
    text_field: str | None,
    lowercase: bool,
    max_length: int | None,
    revision: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure MODEL without the units of a mask, and without as many random ones.

    The units are set to zero at their hookpoints, in every pass. It says plainly when the mask's
    units do no more than random ones.
    """
    options: dict[str, Any] = {
        "text_field": text_field,
        "lowercase": lowercase or None,
        "max_length": max_length,
        "revision": revision,
    }
    given = {name: value for name, value in options.items() if value is not None}
    found = ablate(model, mask, corpus, **asked, **given)
    if as_json:
        rows = [condition.row() for condition in found.conditions]
        click.echo(json.dumps({"conditions": rows, "sentence": found.sentence()}))
        return
    click.echo("\n".join(_lines(found)))
    if found.samples:
        sample = found.samples[0]
        click.echo(f"\nafter {printable(sample.prompt)!r}:")
        for title, text in sample.texts[:3]:
            click.echo(f"  {title:<16} {printable(text)}")
    click.echo(f"\ndone: {asked['out']}: ablation.csv, ablation.png, samples.txt, summary.json")
