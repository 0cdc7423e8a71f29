"""Measure a small causal model: bits per byte, BLiMP, samples.

Run ``python -m actlas_6m.evaluate --model FOLDER --data DATA``; it prints
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from actlas_6m.data import MISSING, load_wikitext

PROMPTS = (
    "The", "In the summer of", "The president said that", "She was born in", "Although the",
    "Return the", "The city is", "My fellow citizens,", "When the children", "Many people",
)  # fmt: skip
"""Openings of the ten samples."""


class MinimalPairs(NamedTuple):
    """BLiMP accuracies in percent; chance is 50."""

    mean: float
    by_phenomenon: dict[str, float]
    by_field: dict[str, float]


@torch.inference_mode()
def token_log_probabilities(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Log-probability in nats of each token after the first: (sequences, positions - 1)."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    targets = tokens[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return -losses.view(targets.shape)


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    window: int = 256,
) -> float:
    """Mean bits per UTF-8 byte of ``texts``, read in windows that each begin with BOS.

    ``<|missing|>`` is read but neither scored nor counted as bytes.
    """
    missing_id = tokenizer.convert_tokens_to_ids(MISSING)
    rows, n_bytes = [], 0
    for text in texts:
        n_bytes += len(text.replace(MISSING, "").encode())
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        rows += [ids[i : i + window - 1] for i in range(0, len(ids), window - 1)]
    bits = 0.0
    for start in range(0, len(rows), 16):
        tokens, scored = _padded(rows[start : start + 16], tokenizer)
        scored &= tokens[:, 1:] != missing_id
        bits -= token_log_probabilities(model, tokens)[scored].double().sum().item()
    return bits / math.log(2) / n_bytes


def _padded(
    rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor]:
    """Put BOS before each row and pads behind it; the mask is of the tokens after BOS."""
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest + 1), int(tokenizer.pad_token_id))
    tokens[:, 0] = int(tokenizer.bos_token_id)
    scored = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, 1 : len(row) + 1] = torch.tensor(row)
        scored[i, : len(row)] = True
    return tokens, scored


def sentence_log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]
) -> list[float]:
    """Sum of the tokens' log-probabilities in nats of each sentence, given BOS."""
    rows = tokenizer(list(sentences), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    sums = [0.0] * len(rows)
    for start in range(0, len(rows), 250):
        batch = order[start : start + 250]
        tokens, scored = _padded([rows[i] for i in batch], tokenizer)
        totals = (token_log_probabilities(model, tokens) * scored).double().sum(-1).tolist()
        for i, total in zip(batch, totals, strict=True):
            sums[i] = total
    return sums


def blimp(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_pairs: int | None = None,
) -> MinimalPairs:
    """Share of minimal pairs whose good sentence is the likelier (Warstadt et al., 2020).

    Raises
    ------
    FileNotFoundError
        Where ``folder`` holds no ``*.jsonl``.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"no BLiMP phenomena (*.jsonl) in {folder}")
    by_phenomenon: dict[str, float] = {}
    fields: dict[str, list[float]] = defaultdict(list)
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()[:max_pairs]
        pairs = [json.loads(line) for line in lines]
        sentences = [pair[f"sentence_{kind}"] for kind in ("good", "bad") for pair in pairs]
        sums = sentence_log_probabilities(model, tokenizer, sentences)
        wins = [g > b for g, b in zip(sums[: len(pairs)], sums[len(pairs) :], strict=True)]
        by_phenomenon[path.stem] = 100.0 * sum(wins) / len(wins)
        fields[pairs[0]["field"].replace("/", "_")].append(by_phenomenon[path.stem])
    mean = sum(by_phenomenon.values()) / len(by_phenomenon)
    by_field = {field: sum(shares) / len(shares) for field, shares in sorted(fields.items())}
    return MinimalPairs(mean, by_phenomenon, by_field)


@torch.inference_mode()
def samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    n_new: int = 48,
    seed: int = 0,
    temperature: float = 0.7,
) -> list[str]:
    """Continue each of `PROMPTS`, drawn from the 40 likeliest tokens by a seeded generator."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(n_new):
            logits = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
            top = logits.topk(40)
            drawn = torch.multinomial(
                F.softmax(top.values / temperature, -1), 1, generator=generator
            )
            if int(top.indices[drawn]) == tokenizer.eos_token_id:
                break
            tokens = torch.cat((tokens, top.indices[drawn][None]), dim=1)
        texts.append(str(tokenizer.decode(tokens[0], skip_special_tokens=True)))
    return texts


def measure(folder: Path, data: Path, max_pairs: int | None = None) -> dict[str, Any]:
    """Measure the model in ``folder``, in float32; the result is ready for JSON."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    model.train(False)
    held_out = load_wikitext(data).held_out
    return {
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out_bits_per_byte": bits_per_byte(model, tokenizer, held_out),
        "held_out_bytes": sum(len(text.replace(MISSING, "").encode()) for text in held_out),
        "blimp": blimp(model, tokenizer, data / "blimp", max_pairs)._asdict(),
        "n_pairs": max_pairs or 1_000,
        "samples": samples(model, tokenizer),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in transformers' format")
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext2 and blimp")
    parser.add_argument("--max-pairs", type=int, help="pairs per phenomenon, all unless given")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.model, options.data, options.max_pairs), indent=2))


if __name__ == "__main__":
    main()
