"""``actlas ablate``: a model's loss and samples, intact, without top units, without others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from actlas.jobs.cli.flags import debug_option, json_option
from actlas.jobs.cli.options import Count
from actlas.jobs.formatting import count, printable
from actlas.jobs.run.ablate import ablate

if TYPE_CHECKING:
    from actlas.analysis.interventions.ablation_result import Ablation


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
    help="Data type of the model's computation.  [default: auto, the checkpoint's own, or float32 "
    "on a CPU where that is measured to be faster]",
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
