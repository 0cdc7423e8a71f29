"""``actlas ablate``: a model's loss without the units of a mask, and without random units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from actlas.analysis.figures import Figures
from actlas.jobs.cli.flags import debug_option, figure_options, json_option
from actlas.jobs.cli.options import Count, model_options
from actlas.jobs.cli.table import cells
from actlas.jobs.formatting import count
from actlas.jobs.run.ablate import ablate
from actlas.jobs.run.reports.analysis import AblateReport
from actlas.jobs.terminal import echo
from actlas.pipeline.options import PlanOptions

if TYPE_CHECKING:
    from actlas.analysis.interventions.ablation_result import Ablation


def _lines(found: Ablation) -> list[str]:
    header = ("units", "loss", "change", "se", "perplexity", "bits/token")
    lines = [f"{'condition':<18}{cells(header, 12)}"]
    for c in found.conditions:
        change = "" if c.name == "intact" else f"{c.loss_delta:+.4f}"
        se = "" if c.name == "intact" else f"{c.se:.4f}"
        values = [count(c.n_units), f"{c.loss:.4f}", change, se]
        values += [f"{c.perplexity:.4g}", f"{c.bits_per_token:.4f}"]
        lines.append(f"{c.title:<18}{cells(values, 12)}")
    n = found.top.n_tokens
    return [*lines, f"{count(n)} predicted tokens; loss in nats per token", "", found.sentence()]


@click.command("ablate", short_help="Measure a model without the units of a mask.")
@click.argument("model")
@click.option(
    "--mask",
    required=True,
    metavar="FILE",
    help="Mask: mask.json, or the output folder of `actlas localize`.",
)
@click.option("--corpus", required=True, help="Corpus for the loss; see `actlas plan`.")
@click.option("--out", required=True, metavar="DIR", help="Output folder, new or empty.")
@click.option(
    "--random", type=Count(), default=5, help="Number of draws of random units.  [default: 5]"
)
@click.option(
    "--max-tokens",
    type=Count(),
    default=20_000,
    help="Maximum tokens, from the beginning of the corpus.  [default: 20,000]",
)
@model_options(PlanOptions, "max_length")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Prompt to continue; may be repeated.  [default: the beginnings of the first 3 documents]",
)
@click.option(
    "--new-tokens", type=Count(), default=40, help="Tokens per continuation.  [default: 40]"
)
@click.option(
    "--temperature",
    type=click.FLOAT,
    default=0.0,
    help="Sampling temperature; 0 takes the most likely token.  [default: 0]",
)
@click.option(
    "--seed",
    type=Count(),
    default=0,
    help="Seed of the random units and of sampling.  [default: 0]",
)
@model_options(
    PlanOptions,
    "text_field",
    "label_field",
    "lowercase",
    "revision",
    "trust_remote_code",
    "model_dtype",
)
@click.option(
    "--device",
    default="auto",
    help="Device: cpu, cuda, cuda:1 or mps.  [default: auto, the accelerator if there is one]",
)
@click.option("--threads", type=Count(), help="CPU threads.  [default: torch's choice]")
@click.option("--overwrite", is_flag=True, help="Replace the contents of --out.  [default: no]")
@figure_options
@json_option
@debug_option
def command(
    model: str,
    mask: str,
    corpus: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure MODEL without the units of a mask, and without as many random units.

    The units are set to zero at their hookpoints in every forward pass. The result states whether
    the mask's units matter more than random ones. Writes ablation.csv, samples.txt, summary.json
    and the picture ablation.
    """
    # Options that were not given take the defaults of a plan.
    found = ablate(model, mask, corpus, **{k: v for k, v in options.items() if v is not None})
    if as_json:
        echo(AblateReport(out=options["out"], **found.summary()).to_json())
        return
    echo(*_lines(found))
    if found.samples:
        sample = found.samples[0]
        echo("", f"after {sample.prompt!r}:")
        for title, text in sample.texts:
            echo(f"  {title:<16} {_short(text)}")
    pictures = Figures.parse(options["figures"], options["dpi"]).names("ablation")
    files = ", ".join(["ablation.csv", *pictures, "samples.txt", "summary.json"])
    echo("", f"wrote {options['out']}: {files}")


def _short(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
