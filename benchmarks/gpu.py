"""Extraction on an accelerator: models of 3 and 8 billion parameters, random weights, bfloat16.

``python -m benchmarks.gpu [--quick] [--json] [--out FILE]``. Models are initialized on the device
and saved in ``TMPDIR`` (6 and 16 GB), so that they are loaded as by a user. Without an accelerator
only ``--quick`` runs: a tiny model on the CPU, to test the script.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actlas.pipeline.builtin import builtin_model_path
from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.extract.inputs import batch_inputs, range_batches
from actlas.pipeline.forward.run import Clock, run_batches
from actlas.pipeline.model.config import quiet
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.pipeline.plan.make import make_plan
from actlas.store.format.schema import Receipt
from actlas.store.store import open_store
from benchmarks import corpus, harness
from benchmarks.harness import Report, Table, figure_name

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40": 181.0, "4090": 165.0}
"""Peak FLOP/s in dense bfloat16, from the data sheets."""
LLAMA: dict[str, Any] = {"num_key_value_heads": 8, "vocab_size": 128_256, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "3B": LLAMA
    | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "head_dim": 128, "tie_word_embeddings": True},
    "8B": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "head_dim": 128},
}
TINY = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
}


@dataclass(frozen=True)
class Case:
    """The hookpoints and the amount of text of an extraction."""

    hookpoints: str
    n_tokens: int
    compression: str


def cases(n_layers: int, n_tokens: int) -> Iterator[Case]:
    """Yield cases with one hookpoint, three and all, with and without compression."""
    three = ",".join(f"resid_post.{n_layers * i // 4}" for i in (1, 2, 3))
    for name, share in (("resid_post.middle", 1.0), (three, 0.6), ("resid_post.*", 0.25)):
        for compression in ("none", "fast"):
            yield Case(name, int(n_tokens * share), compression)


def save_model(folder: Path, shape: dict[str, Any], context: int, device: str) -> Path:
    """Save a Llama of a shape with random weights, with a tokenizer of its vocabulary."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(builtin_model_path("actlas-6m")))
    config = LlamaConfig(
        max_position_embeddings=context, bos_token_id=1, eos_token_id=2, dtype="bfloat16", **shape
    )
    with quiet(), torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return folder


def bare(extractor: Extractor) -> float:
    """Return the tokens per second of the forward pass alone, without padding, on the best batches.

    The batches of all rows together have the least padding.
    """
    store = extractor.store
    batches = range_batches(
        store,
        0,
        extractor.plan.n_tokens,
        extractor.tokens_per_batch,
        extractor.strategy._replace(chunked_prefill=False),
    )
    for _ in range(2):  # The first batch also compiles and allocates.
        clock = Clock()
        inputs = batch_inputs(store, batches, pad_id=extractor.pad_id)
        run_batches(
            extractor.model,
            extractor.plan.hookpoints,
            inputs,
            lambda _name, _rows, _inputs: None,
            device=extractor.device,
            clock=clock,
        )
    return sum(batch.n_input_tokens for batch in batches) / clock.total_s


def flops_per_token(extractor: Extractor, mean_context: float) -> float:
    """Return the FLOPs of one token in the blocks that run."""
    reached = [p for p in extractor.model.parameters() if not p.is_meta]
    embedding = extractor.model.get_input_embeddings().weight.numel()  # type: ignore[union-attr, operator]
    n = sum(p.numel() for p in reached) - embedding
    config: Any = extractor.model.config
    blocks = {h.module for h in extractor.plan.hookpoints}
    deepest = max(int(path.rpartition(".")[2]) for path in blocks) + 1
    attention = 4 * deepest * config.num_attention_heads * config.head_dim * mean_context
    return 2.0 * n + attention


def disk_gbps(folder: Path, n_bytes: int = 4 << 30) -> float:
    """Return the durable write bandwidth of the disk in GB/s, in four streams like a commit."""
    block = os.urandom(64 << 20)
    began = time.perf_counter()
    files = [folder / f"raw{i}" for i in range(4)]
    for path in files:
        with path.open("wb", buffering=0) as file:
            for _ in range(n_bytes // 4 // len(block)):
                file.write(block)
            os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    for path in files:
        path.unlink()
    return n_bytes / seconds / 1e9


def measure(
    model: Path, case: Case, folder: Path, device: str, tokens_per_batch: int, context: int
) -> dict[str, float]:
    """Plan, measure the bare forward pass, extract, and report the time of each stage."""
    from transformers import AutoTokenizer

    folder.mkdir()
    text = corpus.write_jsonl(
        folder / "text.jsonl", AutoTokenizer.from_pretrained(str(model)), case.n_tokens
    )
    options = PlanOptions(
        model=str(model),
        corpus=str(text),
        hookpoints=tuple(case.hookpoints.split(",")),
        max_length=min(context, corpus.LONGEST_TOKENS),
        compression=case.compression,  # type: ignore[arg-type]
        sample="uniform",
    )
    make_plan(folder / "run.zarr", options, lambda _text: None)
    run = RunOptions(device=device, tokens_per_batch=tokens_per_batch)
    extractor = Extractor(open_store(folder / "run.zarr"), run)
    limit = bare(extractor)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    shards = range(extractor.plan.n_shards)
    receipts = list(extractor.extract_many(shards, attempt="benchmark"))
    seconds = time.perf_counter() - began
    return figures(extractor, receipts, seconds, limit)


def figures(
    extractor: Extractor, receipts: list[Receipt], seconds: float, limit: float
) -> dict[str, float]:
    """Return the figures of one extraction."""
    fed = sum(float(r.run["n_tokens_fed"]) for r in receipts)
    stored = sum(o.n_bytes for r in receipts for o in r.objects)
    compute = sum(float(r.run["compute_s"]) for r in receipts)
    copies = sum(float(r.run["copy_wait_s"]) for r in receipts)
    plan = extractor.plan
    lengths = extractor.store.documents.start
    mean_context = float((lengths[1:] - lengths[:-1]).mean()) / 2
    name = torch.cuda.get_device_name() if extractor.device == "cuda" else ""
    peak = next((t for key, t in PEAK_TFLOPS.items() if key in name), 0.0)
    flops = flops_per_token(extractor, mean_context) * plan.n_tokens / seconds
    peak_bytes = torch.cuda.max_memory_allocated() if extractor.device == "cuda" else 0
    return {
        "tokens_per_s": plan.n_tokens / seconds,
        "bare_tokens_per_s": limit,
        "ratio": fed / seconds / limit,
        "mfu": flops / (peak * 1e12) if peak else 0.0,
        "written_gbps": stored / seconds / 1e9,
        "raw_gbps": plan.n_tokens * 2 * sum(h.width for h in plan.hookpoints) / seconds / 1e9,
        "waits_for_writes": max(0.0, 1 - compute / seconds),
        "waits_for_copies": copies / seconds,
        "padding": statistics.mean(float(r.run["padding_share"]) for r in receipts),
        "device_gb": peak_bytes / 1e9,
    }


def run(quick: bool) -> Report:
    """Extract one hookpoint, three and all of each model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not quick:
        raise SystemExit("There is no CUDA device here. --quick runs a tiny model on the CPU.")
    shapes = {"tiny": TINY} if quick else SHAPES
    context, budget, n_tokens = (512, 1024, 2048) if quick else (8192, 16_384, 400_000)
    columns = ("tokens_per_s", "bare_tokens_per_s", "ratio", "mfu", "raw_gbps", "written_gbps")
    columns += ("waits_for_writes", "waits_for_copies", "padding", "device_gb")
    table = Table("Extraction on an accelerator", ("model", "hookpoints", "profile", *columns))
    table.notes = (
        "`ratio`: tokens fed per second over those of the bare forward pass to the same depth, "
        "nothing captured, in the best batches there are. `mfu`: of the dense bfloat16 peak, the "
        "blocks that are run and attention, by useful tokens. `raw_gbps`: before compression.",
    )
    report = Report("Extraction on an accelerator", [table])
    with tempfile.TemporaryDirectory(prefix="actlas-gpu-") as name:
        folder = Path(name)
        if not quick:
            gbps = disk_gbps(folder)
            report.figures["disk.gbps"] = gbps
            report.notes.append(f"Durable writes in four streams: {gbps:.2f} GB/s.")
        for shape_name, shape in shapes.items():
            model = save_model(folder / shape_name, shape, context, device)
            for i, case in enumerate(cases(shape["num_hidden_layers"], n_tokens)):
                here = folder / f"{shape_name}{i}"
                found = measure(model, case, here, device, budget, context)
                shutil.rmtree(here)
                gc.collect()
                names = case.hookpoints.replace(",", " ")
                cells = [
                    f"{found[c]:,.0f}" if found[c] > 99 else f"{found[c]:.3f}" for c in columns
                ]
                table.rows.append((shape_name, names, case.compression, *cells))
                for key, value in found.items():
                    report.figures[figure_name(shape_name, i, case.compression, key)] = value
            shutil.rmtree(model)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.gpu", run))
