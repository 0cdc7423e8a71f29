"""Extraction to a committed store, against the bare forward pass on the same tokens."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.extract.inputs import batch_inputs, range_batches
from actlas.pipeline.forward.batching import Batch
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.model.config import quiet
from actlas.pipeline.model.device import to_device
from actlas.pipeline.options import RunOptions
from actlas.store.format.schema import Receipt
from actlas.store.store import open_store
from benchmarks import corpus, harness
from benchmarks.cases import THREADS, Case, cases, default_cases, plan_case
from benchmarks.harness import Contender, Report, Table, alternate, figure_name

BUDGETS = (512, 1024, 2048, 4096, 8192)
"""Token budgets of a batch among which the bare pass takes its best."""

BARE, OURS, DURABLE = "bare forward", "actlas", "durable write"


class Timed:
    """The contenders over the first shards of a case: bare pass, durable write, extraction."""

    def __init__(self, case: Case, planned: Path) -> None:
        self.planned = planned
        self.copy = planned.with_name("run.zarr")
        self.receipts: list[list[Receipt]] = []
        self.extractor = Extractor(open_store(planned), case.options())
        plan = self.extractor.plan
        self.shards = range(min(case.n_timed, plan.n_shards))
        self.n_rows = min(len(self.shards) * plan.shard_rows, plan.n_tokens)
        self.shapes = self._shapes()
        self.best_tokens = min(self.shapes, key=self.shapes.__getitem__)
        self.best = self._batches(self.n_rows, self.best_tokens)
        self.noise = np.random.default_rng(0).bytes(8 << 20)
        self.n_stored = self.n_rows * 2 * sum(h.width for h in plan.hookpoints)

    def _batches(self, n_rows: int, n_tokens: int) -> list[Batch]:
        own = self.extractor
        strategy = own.strategy._replace(chunked_prefill=False)
        return range_batches(own.store, 0, n_rows, n_tokens, strategy)

    def _shapes(self) -> dict[int, float]:
        """Return processor seconds by the token budget of a batch, over a part of the rows."""
        seconds: dict[int, float] = {}
        self.best = self._batches(max(1, self.n_rows // 16), BUDGETS[1])
        self.bare()
        for n_tokens in BUDGETS:
            self.best = self._batches(max(1, self.n_rows // 5), n_tokens)
            began = time.process_time()
            self.bare()
            seconds[n_tokens] = time.process_time() - began
        return seconds

    def fresh(self) -> None:
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.planned, self.copy)
        self.extractor.store = open_store(self.copy)

    def bare(self) -> None:
        """Run the tokens of all shards as deep as the deepest hookpoint; nothing is kept.

        The batches are the best that were found: of all shards together, sorted by length, with
        the token budget that took the least time.
        """
        own = self.extractor
        with quiet(), torch.inference_mode(), Capture(own.model, own.plan.hookpoints) as capture:
            for _batch, inputs in batch_inputs(own.store, self.best, pad_id=own.pad_id):
                given = to_device(inputs.arrays, own.device)
                capture(**given, shape=inputs.shape, read=lambda _name, _tensor: None)

    def durable(self) -> None:
        """Write as many bytes as the shards have on disk, and sync them."""
        path = self.copy.with_name("raw")
        with path.open("wb", buffering=0) as file:
            left = self.n_stored
            while left > 0:
                left -= file.write(self.noise[: min(left, len(self.noise))])
            os.fsync(file.fileno())
        path.unlink()

    def extracted(self) -> None:
        self.receipts.append(list(self.extractor.extract_many(self.shards, attempt="benchmark")))

    def contenders(self) -> list[Contender]:
        return [
            Contender(BARE, self.bare),
            Contender(OURS, self.extracted, self.fresh),
            Contender(DURABLE, self.durable),
        ]


def peak_memory(path: str, n_shards: int, threads: int | None) -> int:
    """Return the peak memory of extracting ``n_shards`` shards, for a new process.

    The model and its libraries are in memory before; the store is a copy of the planned one.
    """
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as folder:
        copy = Path(folder) / "run.zarr"
        shutil.copytree(path, copy)
        extractor = Extractor(open_store(copy), RunOptions(device="cpu", threads=threads))
        shards = range(min(n_shards, extractor.plan.n_shards))

        def work() -> list[Receipt]:
            return list(extractor.extract_many(shards, attempt="benchmark"))

        return harness.peak_of(work)


def _add_case(case: Case, report: Report, tables: list[Table], folder: Path) -> None:
    folder.mkdir()
    planned = plan_case(case, folder)
    timed = Timed(case, planned)
    measured = {m.name: m for m in alternate(timed.contenders(), case.rounds, BARE)}
    receipts = timed.receipts[-len(measured[OURS].seconds) :]
    stages = _stages(receipts, measured[OURS].seconds)
    stored = sum(o.n_bytes for r in receipts[-1] for o in r.objects)
    plan = timed.extractor.plan
    pairs = zip(measured[BARE].seconds, measured[DURABLE].seconds, strict=True)
    limit = [max(pair) for pair in pairs]
    ratio = statistics.median(
        most / own for most, own in zip(limit, measured[OURS].seconds, strict=True)
    )
    values = {
        "bare.rows_per_s": timed.n_rows / measured[BARE].median_s,
        "durable.rows_per_s": timed.n_rows / measured[DURABLE].median_s,
        "rows_per_s": timed.n_rows / measured[OURS].median_s,
        "ratio": ratio,
        "cpu_ratio": measured[OURS].cpu_ratio,
        **{f"share.{name}": share for name, share in stages.items()},
        "padding": max(1e-9, statistics.mean(float(r.run["padding_share"]) for r in receipts[-1])),
        "bytes_per_token": stored / timed.n_rows,
        "best_batch_tokens": float(timed.best_tokens),
        "raw_bytes_per_token": sum(h.width for h in plan.hookpoints) * 2.0,
    }
    del timed
    for n in (1, case.n_shards) if case.memory else ():
        peak = harness.in_fresh_process(
            "benchmarks.extraction:peak_memory", path=str(planned), n_shards=n, threads=case.threads
        )
        values[f"extra_mb.{'one' if n == 1 else 'all'}_shards"] = peak / 1e6
    for name, value in values.items():
        report.figures[figure_name(case.name, name)] = float(value)
    cells = {k: f"{v:,.0f}" if v >= 100 else f"{v:.2f}" for k, v in values.items()}
    speed, shares = tables
    rate = (
        "best_batch_tokens",
        "bare.rows_per_s",
        "durable.rows_per_s",
        "rows_per_s",
        "ratio",
        "cpu_ratio",
    )
    size = ("raw_bytes_per_token", "bytes_per_token", "extra_mb.one_shards", "extra_mb.all_shards")
    what = f"{plan.n_shards} x {plan.shard_rows:,}"
    speed.rows.append((case.name, *(cells[key] for key in rate)))
    shares.rows.append(
        (
            case.name,
            *(f"{100 * share:.1f} %" for share in stages.values()),
            f"{100 * values['padding']:.1f} %",
            what,
            *(cells.get(key, "-") for key in size),
        )
    )


def _stages(receipts: list[list[Receipt]], seconds: tuple[float, ...]) -> dict[str, float]:
    """Return the median share of time of each stage, from the receipts."""
    shares: dict[str, list[float]] = {"forward": [], "gather": [], "other": [], "waiting": []}
    for made, total in zip(receipts, seconds, strict=True):
        spent = {
            key: sum(float(r.run[f"{key}_s"]) for r in made)
            for key in ("forward", "gather", "compute")
        }
        shares["forward"].append(spent["forward"] / total)
        shares["gather"].append(spent["gather"] / total)
        shares["other"].append((spent["compute"] - spent["forward"] - spent["gather"]) / total)
        shares["waiting"].append((total - spent["compute"]) / total)
    return {name: max(1e-9, statistics.median(values)) for name, values in shares.items()}


def run(quick: bool, long: bool = False) -> Report:
    """Extract activations, committed durably, against the bare forward pass.

    By default the defaults of `actlas extract` over 100,000 tokens, in about two minutes; ``long``
    adds hookpoints, models and memory.
    """
    report = Report("Extraction", notes=[f"Threads of torch: {THREADS or 'as many as cores'}."])
    speed = Table(
        "Rows per second, and as a share of the limit",
        ("model, resid_post", "batch", BARE, DURABLE, OURS, "of the limit", "of CPU"),
        notes=(
            f"`{BARE}`: the tokens of all the shards, sorted by length over all of them, in "
            f"batches of the best of {', '.join(f'{n:,}' for n in BUDGETS)} tokens (column "
            "`batch`), to the deepest hookpoint, in the same process; nothing is kept. "
            f"`{DURABLE}`: as many bytes as the rows have before compression, written and synced. "
            f"The limit is the slower of the two. `{OURS}`: a shard is committed while the next is "
            "computed, as every executor does; the last one has nothing to be beside. Committed: "
            "statistics, compression `dense` (the default), fsync, read back, receipt. Rows are "
            "kept tokens; padding and tokens computed again do not count. `of CPU`: the share of "
            "the bare pass in seconds of the processors; other work disturbs it less.",
        ),
    )
    shares = Table(
        f"Where the time goes in `{OURS}`, bytes, memory",
        ("model, resid_post", "forward", "gather", "other", "waiting", "padding", "shards"),
        notes=(
            "Gather: picking the kept rows out of each batch, rounding them to bfloat16, putting "
            "them in stored order. Waiting: for a shard to be written, the last one's whole commit "
            "included. Extra MB: peak above the loaded model, in fresh processes, with one shard "
            "and with all. Documents: pieces of Python's own documentation, log-normal lengths "
            f"(median {corpus.MEDIAN_TOKENS} tokens, sigma {corpus.SIGMA}), windows of 512 tokens "
            "(1,024 for the GPT-2 shape: 12 blocks of 768, random weights, float32).",
        ),
    )
    shares.columns += ("raw B/token", "stored B/token", "extra MB, 1 shard", "all shards")
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as name:
        folder = Path(name)
        chosen = [] if quick else default_cases()
        chosen += cases(folder, quick) if quick or long else []
        for i, case in enumerate(chosen):
            _add_case(case, report, [speed, shares], folder / str(i))
    report.tables += [speed, shares]
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.extraction", run))
