"""The cases of the extraction benchmark: models, hookpoints, amount of text, and plans."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actlas.pipeline.builtin import builtin_model_path
from actlas.pipeline.model.compute_dtype import CLEARLY_SLOWER, product_slowdown
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.pipeline.plan.make import make_plan
from benchmarks import corpus
from benchmarks.harness import ROOT

THREADS = int(os.environ.get("BENCH_THREADS", "0")) or None
"""Threads of torch; default: all cores. On a busy machine, where threads wait for each other: 1."""


@dataclass(frozen=True)
class Case:
    """A model, its hookpoints, and its amount of text."""

    name: str
    model: str
    hookpoints: str
    shard_rows: int | None
    """None: what a user gets, without an option, for the first n_tokens of builtin:python-docs."""
    n_shards: int = 8
    n_timed: int = 4
    max_length: int = 512
    rounds: int = 3
    threads: int | None = THREADS
    n_tokens: int = 0
    model_dtype: str = "auto"
    memory: bool = True
    """Whether to measure peak memory, with one shard and with all."""

    def options(self) -> RunOptions:
        return RunOptions(device="cpu", threads=self.threads)


def default_cases() -> list[Case]:
    """Return what a user gets without options: in float32, and in the dtype that is chosen here."""
    more: dict[str, Any] = {"n_tokens": 100_000, "n_shards": 100, "n_timed": 100, "rounds": 2}
    more |= {"shard_rows": None, "memory": False}
    name, every = "builtin:actlas-6m", "resid_post.*"
    found = [
        Case("defaults, float32", name, every, model_dtype="float32", **more),
        Case("defaults, bfloat16", name, every, **more),
    ]
    return found[:1] if product_slowdown("bfloat16") > CLEARLY_SLOWER else found


def cases(folder: Path, quick: bool) -> list[Case]:
    """Return the cases; models that are not available are left out."""
    embedded = str(builtin_model_path("actlas-6m"))
    less: dict[str, Any] = {"memory": False, "n_shards": 4}
    if quick:
        small = _gpt2(folder / "gpt2", n_layer=2, n_embd=64, n_head=2)
        few: dict[str, Any] = {
            "shard_rows": 256,
            "n_shards": 2,
            "n_timed": 2,
            "rounds": 1,
            "max_length": 256,
        }
        few["threads"] = 1  # On a busy machine more threads wait for each other.
        return [
            Case("embedded, all", embedded, "resid_post.*", **few),
            Case("gpt2 shape, middle", small, "resid_post.middle", memory=False, **few),
        ]
    found = [
        Case("embedded, one", embedded, "resid_post.middle", 16_384, **less),
        Case("embedded, three", embedded, "resid_post.1,resid_post.3,resid_post.5", 16_384, **less),
        Case("embedded, all", embedded, "resid_post.*", 16_384, n_shards=16),
    ]
    for shared in (os.environ.get("ACTLAS_SHARED", ""), ROOT / "shared", ROOT.parent / "shared"):
        stories = Path(shared) / "models" / "stories260K"
        if stories.is_dir():
            found.append(Case("stories260K, all", str(stories), "resid_post.*", 16_384, **less))
            break
    gpt2 = _gpt2(folder / "gpt2")
    more: dict[str, Any] = {"n_timed": 3, "max_length": 1024, **less}
    three = "resid_post.3,resid_post.7,resid_post.11"
    found.append(Case("gpt2 shape, one", gpt2, "resid_post.middle", 2048, **more))
    found.append(Case("gpt2 shape, three", gpt2, three, 2048, **more))
    found.append(Case("gpt2 shape, all", gpt2, "resid_post.*", 2048, **more))
    return found


def _gpt2(folder: Path, **sizes: Any) -> str:
    """Save a GPT-2 with random weights, by default of the shape of GPT-2 small, and a tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(str(builtin_model_path("actlas-6m")))
    torch.manual_seed(0)
    sizes |= {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(**sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plan_case(case: Case, folder: Path, **changes: Any) -> Path:
    """Plan a store of the case's shards over text written for it."""
    from transformers import AutoTokenizer

    path = folder / "planned.zarr"
    if case.shard_rows is None:
        options = PlanOptions(
            model=case.model,
            corpus="builtin:python-docs",
            hookpoints=tuple(case.hookpoints.split(",")),
            max_tokens=case.n_tokens,
            model_dtype=case.model_dtype,
        )
        make_plan(path, options, lambda _text: None)
        return path
    n_tokens = case.shard_rows * case.n_shards
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    text = corpus.write_jsonl(folder / "corpus.jsonl", tokenizer, n_tokens)
    options = PlanOptions(
        model=case.model,
        corpus=str(text),
        hookpoints=tuple(case.hookpoints.split(",")),
        max_length=case.max_length,
        shard_rows=case.shard_rows,
        sample="uniform",
        **changes,
    )
    make_plan(path, options, lambda _text: None)
    return path
