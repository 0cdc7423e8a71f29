"""Turn a finished run into the shipped folder: weights, tokenizer, curve, card.

Run ``python -m actlas_6m.finish --run DIR --data DATA --out FOLDER``.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

from actlas_6m.evaluate import measure
from actlas_6m.train import Recipe

WEIGHTS = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")

CARD = """\
# actlas-6m

A causal language model of {n_parameters:,} parameters that comes with actlas, so that every
verb of the program can be tried, tested and measured without a network. `builtin:actlas-6m`
names it. It is a small instrument, not a source of knowledge.

| | |
|---|---|
| architecture | `LlamaForCausalLM`: 6 blocks, d_model 256, 4 heads, SwiGLU 688, tied embeddings |
| vocabulary | 4,096 byte-level BPE tokens of our own; digits single; BOS added at the start |
| context | 512 tokens |
| weights | bfloat16, {n_bytes:,} bytes |
| tokens seen | {n_tokens:,} in {n_steps:,} steps |
| hardware | 2 CPU cores, shared with other work |
| held-out bits per byte | {bits:.3f} (chance 8; windows of 256 tokens) |
| BLiMP | {blimp:.1f} % mean over 67 phenomena (chance 50 %, our aim was 60 %: {verdict}) |

## Training text and its terms

- WikiText-2, validation and test parts (Wikipedia, CC BY-SA 3.0); every 30th article held out.
  Tokenization undone; `<unk>` became the token `<|missing|>`, which is read and never learnt.
- A sample of C4 (ODC-BY, over web text under Common Crawl's terms of use), spam filtered.
- Inaugural and State of the Union addresses (public domain).
- Documentation inside Python (PSF licence) and packages under BSD, MIT, Apache, PSF-like or
  (hypothesis) MPL terms:
{packages}.

The model is offered under the terms of actlas; where text of Wikipedia could be recovered from
it, CC BY-SA 3.0 applies to that text. No evaluation data was trained on: no BLiMP, SyntaxGym or
localizer stimuli.

About 62 % of the tokens seen are the English text (1.66 million tokens, {epochs:.1f} times over),
38 % documentation (each docstring at most once or twice).

## Recipe

`PYTHONPATH=tools python -m actlas_6m.train --data DATA --out DIR`, then `actlas_6m.finish`.
Muon (Jordan et al., 2024) on the blocks' matrices at {muon_lr}, AdamW on embeddings and norms at
{adam_lr}; {batch:,} tokens a step in sequences of 256, of 512 in the decay; passages of 8 to 500
tokens cut at sentences, each after a BOS, packed without padding (attention runs across their
borders); warmup {warmup} steps, constant, linear decay to zero over the last {decay} steps;
dropout {dropout} with one mask per sequence and channel; gradients clipped at norm 1; seed
{seed}. `loss.csv` and `loss.png` hold the curve. The kernels' sums depend on the number of
threads, so a second run is alike, not the same bit by bit.

## BLiMP by field and phenomenon

Share of the {n_pairs} minimal pairs per phenomenon (Warstadt et al., 2020) whose good sentence
has the higher log-probability, BOS as the only context.

| field | mean, % |
|---|---|
{fields}

| phenomenon | % |
|---|---|
{phenomena}

## Ten samples

Top-40 sampling at temperature 0.7 with a seeded generator, not picked.

{samples}

## Limits

It has read some six megabytes of English prose, mostly encyclopaedic, political and technical,
American and British, much of it old; its sentences are locally grammatical and seldom true.
It knows no dialogue, hardly any arithmetic, no language but English. Names, claims and biases
are those of its sources. Phenomena far below 50 % in the table are systematic preferences for
the wrong form, not noise. Use it to try out and test methods; do not draw conclusions from it
about models at large, nor show its output as fact.
"""


def draw_loss(run: Path, picture: Path) -> None:
    """Draw the training loss and the held-out bits per byte against the tokens seen."""
    with (run / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    mpl.use("agg")
    figure, left = plt.subplots(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    right = left.twinx()
    curves = (
        (left, "train_loss_nats", "training loss (nats per token)", "tab:blue", "o"),
        (right, "held_out_bits_per_byte", "held-out bits per byte", "tab:orange", "s"),
    )
    for axes, column, label, colour, marker in curves:
        values = [float(row[column]) for row in rows]
        axes.plot(tokens, values, color=colour, marker=marker, markersize=3, linewidth=1.2)
        axes.set_ylabel(label, color=colour)
        axes.tick_params(axis="y", labelcolor=colour)
    left.set_xlabel("tokens seen (millions)")
    left.set_title("actlas-6m")
    left.grid(alpha=0.3)
    figure.savefig(picture)
    plt.close(figure)


def card(measured: dict[str, Any], progress: dict[str, Any], n_bytes: int, packages: str) -> str:
    """Fill `CARD` with what was measured and what the run's checkpoint says."""
    recipe = Recipe()
    blimp = measured["blimp"]
    n_tokens = progress["step"] * recipe.batch_tokens
    quoted = "\n".join("> " + s.replace("\n", "\n> ") + "\n" for s in measured["samples"])
    return CARD.format(
        n_parameters=measured["n_parameters"],
        n_bytes=n_bytes,
        n_tokens=n_tokens,
        n_steps=progress["step"],
        bits=measured["held_out_bits_per_byte"],
        blimp=blimp["mean"],
        verdict="reached" if blimp["mean"] >= 60 else "missed",
        packages=textwrap.indent(textwrap.fill(packages, 96), "  "),
        epochs=n_tokens * (1 - recipe.docs_share) / 1.66e6,
        muon_lr=recipe.muon_lr,
        adam_lr=recipe.adam_lr,
        batch=recipe.batch_tokens,
        warmup=recipe.n_warmup,
        decay=progress["n_decay"] or 0,
        dropout=recipe.dropout,
        seed=recipe.seed,
        n_pairs=measured["n_pairs"],
        fields="\n".join(f"| {name} | {share:.1f} |" for name, share in blimp["by_field"].items()),
        phenomena="\n".join(
            f"| {name} | {share:.1f} |" for name, share in sorted(blimp["by_phenomenon"].items())
        ),
        samples=quoted,
    )


def copy_weights(run: Path, out: Path) -> None:
    """Copy weights and tokenizer; name the tokenizer's class as every transformers knows it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in WEIGHTS:
        shutil.copyfile(run / "export" / name, out / name)
    config = json.loads((run / "export" / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy, draw, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the --out of actlas_6m.train")
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext2 and blimp")
    parser.add_argument("--out", type=Path, required=True, help="folder to ship")
    parser.add_argument("--max-pairs", type=int, help="BLiMP pairs per phenomenon")
    options = parser.parse_args(arguments)
    copy_weights(options.run, options.out)
    shutil.copyfile(options.run / "loss.csv", options.out / "loss.csv")
    draw_loss(options.run, options.out / "loss.png")
    measured = measure(options.out, options.data, options.max_pairs)
    progress = torch.load(options.run / "checkpoint.pt", weights_only=True)["progress"]
    n_bytes = (options.out / "model.safetensors").stat().st_size
    packages = (options.run / "packages.txt").read_text().strip()
    text = card(measured, progress, n_bytes, packages)
    (options.out / "MODEL_CARD.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
