"""From a feature to its tokens: the index against a scan of activations and against split files."""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actlas.analysis.features.encode import Encoder, create_features, finish
from actlas.analysis.features.extremes import gather_extremes
from actlas.analysis.features.index import index_features
from actlas.pipeline.extract.extract import Extractor
from actlas.store.features.features import Features
from actlas.store.store import Store, open_store
from benchmarks import harness
from benchmarks.cases import Case, plan_case
from benchmarks.harness import Report, Table, figure_name

HOOKPOINT = "resid_post.middle"
N_SPLITS = 8
K = 20


class RandomTopK:
    """A TopK encoder with random directions, at the cost of a trained one."""

    architecture = "topk"

    def __init__(self, d_in: int, d_sae: int, k: int, hookpoint: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(d_in, d_sae, generator=generator) / d_in**0.5
        # Some directions have a bias, so that densities differ as among trained features.
        self.weights *= torch.exp(0.7 * torch.randn(d_sae, generator=generator))
        self.d_in, self.d_sae, self.k, self.hookpoint = d_in, d_sae, k, hookpoint
        self.sha256 = hashlib.sha256(self.weights.numpy().tobytes()).hexdigest()

    def to(self, _device: Any) -> RandomTopK:
        return self

    def eval(self) -> RandomTopK:
        return self

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        top = torch.topk(x @ self.weights, self.k, dim=-1)
        codes = torch.zeros(len(x), self.d_sae)
        return codes.scatter_(-1, top.indices, top.values.clamp_min(0))


@dataclass
class Made:
    """A store with feature activations, and the same activations in split files."""

    store: Store
    features: Features
    splits: Path
    shown: list[int]


def _splits(store: Store, features: Features, folder: Path) -> None:
    """Write feature activations in the layout of delphi's cache: a file per range of features.

    Locations [activation, (token, feature)] and activations in float16, in no particular order.
    """
    folder.mkdir()
    codes = features.codes(0, store.plan.n_tokens)
    token = np.repeat(np.arange(store.plan.n_tokens), np.diff(codes.indptr)).astype(np.uint32)
    width = -(-features.n_features // N_SPLITS)
    for split in range(N_SPLITS):
        mine = codes.indices // width == split
        locations = np.stack([token[mine], codes.indices[mine].astype(np.uint32)], axis=1)
        np.save(folder / f"{split}.locations.npy", locations)
        np.save(folder / f"{split}.activations.npy", codes.data[mine].astype(np.float16))


def _from_split(made: Made, feature: int) -> np.ndarray:
    width = -(-made.features.n_features // N_SPLITS)
    split = feature // width
    locations = np.load(made.splits / f"{split}.locations.npy")
    values = np.load(made.splits / f"{split}.activations.npy")
    mine = locations[:, 1] == feature
    token, value = locations[mine, 0], values[mine]
    return token[np.lexsort((token, -value.astype(np.float32)))[:K]]


def _from_scan(made: Made, feature: int) -> np.ndarray:
    """Read all activations by token and keep those of one feature: the way without an index."""
    store, tokens, values = made.store, [], []
    for shard in range(store.plan.n_shards):
        start, stop = store.shard_range(shard)
        column = made.features.activations(feature, start, stop)
        fired = np.flatnonzero(column)
        tokens.append(start + fired)
        values.append(column[fired])
    token, value = np.concatenate(tokens), np.concatenate(values)
    return token[np.lexsort((token, -value))[:K]]


def _milliseconds(made: Made, look: Callable[[int], Any], cold: bool, fresh: bool) -> list[float]:
    """Time one lookup of each feature; a fresh handle is the first lookup of a new process."""
    taken = []
    for feature in made.shown:
        if fresh:
            made.features = open_store(made.store.path).features("bench")
        if cold:
            harness.evict(Path(made.store.path) / "features")
            harness.evict(Path(made.store.path) / "documents")
            harness.evict(made.splits)
        began = time.perf_counter()
        look(feature)
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def build(folder: Path, quick: bool, report: Report) -> Made:
    """Extract, encode, index and gather extremes, and report the speeds."""
    case = Case(
        "embedded", "builtin:actlas-6m", HOOKPOINT, 512 if quick else 16_384, 2 if quick else 16
    )
    from actlas.pipeline.builtin import builtin_model_path

    case = Case(**{**vars(case), "model": str(builtin_model_path("actlas-6m"))})
    store = open_store(plan_case(case, folder))
    extractor = Extractor(store, case.options())
    for _receipt in extractor.extract_many(range(store.plan.n_shards), attempt="benchmark"):
        pass
    hookpoint = store.plan.hookpoints[0].name
    sae = RandomTopK(256, 256 if quick else 2048, 32, hookpoint)
    features = create_features(store, sae, "bench", "-", hookpoint)  # type: ignore[arg-type]
    encoder = Encoder(store, features, sae)  # type: ignore[arg-type]
    began = time.perf_counter()
    for shard in range(store.plan.n_shards):
        encoder.extract(shard, attempt="benchmark")
    finish(store, features, "benchmark")
    encode_s = time.perf_counter() - began
    began = time.perf_counter()
    indexed = index_features(store, features, attempt="benchmark")
    index_s = time.perf_counter() - began
    began = time.perf_counter()
    gather_extremes(store, hookpoint, attempt="benchmark")
    extremes_s = time.perf_counter() - began
    began = time.perf_counter()
    for shard in range(store.plan.n_shards):
        store.activations[hookpoint].read(*store.shard_range(shard)).astype(np.float32)
    read_s = time.perf_counter() - began
    n_tokens, n = store.plan.n_tokens, indexed.n_codes
    peak = harness.in_fresh_process("benchmarks.lookup:index_memory", path=store.path)
    table = Table(
        "What is built once",
        ("what", "rows/s", "M codes/s", "bytes/code", "extra MB"),
        notes=(
            f"{n_tokens:,} tokens, {features.n_features:,} features, {n:,} codes above zero. "
            "Encoding reads rows, multiplies, writes durably; indexing reads codes, sorts, writes. "
            "Extra MB: peak of indexing above the imports, in a process of its own (1 GiB allowed)."
            f" Extremes: 64 top and 64 bottom tokens of all 256 units, at {read_s / extremes_s:.2f}"
            " of the speed of only reading and widening the same rows, in the same run.",
        ),
    )
    rows = (
        ("encode, by token", encode_s, indexed.n_bytes_by_token / n, "-"),
        ("index, by feature", index_s, indexed.n_bytes / n, f"{peak / 1e6:,.0f}"),
    )
    for name, seconds, size, memory in rows:
        cells = f"{n_tokens / seconds:,.0f}", f"{n / seconds / 1e6:.2f}", f"{size:.2f}", memory
        table.rows.append((name, *cells))
        report.figures[figure_name("build", name, "codes_per_s")] = n / seconds
        report.figures[figure_name("build", name, "bytes_per_code")] = size
    table.rows.append(("extremes", f"{n_tokens / extremes_s:,.0f}", "-", "-", "-"))
    report.figures["build.extremes.of_reading"] = read_s / extremes_s
    report.figures["build.index.extra_mb"] = peak / 1e6
    report.tables.append(table)
    store = open_store(store.path)
    features = store.features("bench")
    _splits(store, features, folder / "splits")
    alive = np.flatnonzero(features.count >= K)
    shown = np.random.default_rng(0).choice(alive, min(len(alive), 3 if quick else 30), False)
    return Made(store, features, folder / "splits", shown.tolist())


def index_memory(path: str) -> int:
    """Return the peak memory of indexing under another name, for a new process."""
    store = open_store(path)
    features = store.features("bench")
    from actlas.analysis.features import index, index_plan

    features.codes(0, 1)

    def work() -> None:
        counts = index_plan.totals_of(store, features).count
        edges = index_plan.cut_blocks(counts, index_plan.BLOCK_CODES)
        room = index_plan.codes_that_fit(store, features, counts, edges, index_plan.MEMORY_BYTES)
        for first, last in index_plan._passes(counts, edges, frozenset(), room):
            lo, hi = int(edges[first]), int(edges[last])
            t, value = index._transpose(store, features, counts, lo, hi, "", lambda *_: None)
            starts = np.concatenate([[0], np.cumsum(counts[lo:hi])]).astype(np.int64)
            index.sort_falling(starts, t, value)

    return harness.peak_of(work)


def run(quick: bool) -> Report:
    """Look up the top tokens of features by the index, split files and a scan."""
    report = Report("Lookup")
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as name:
        made = build(Path(name), quick, report)
        ways: dict[str, Callable[[int], Any]] = {
            "actlas, top 20": lambda f: made.features.top(f, K).t,
            "actlas, 20 contexts shaded": lambda f: made.features.contexts(f, K),
            f"1 of {N_SPLITS} split files": lambda f: _from_split(made, f),
            "scan of the codes": lambda f: _from_scan(made, f),
        }
        for feature in made.shown:
            truth = _from_scan(made, feature)
            assert (ways["actlas, top 20"](feature) == truth).all(), feature
            assert len(ways[f"1 of {N_SPLITS} split files"](feature)) == len(truth)
        table = Table(
            "Top 20 tokens of a feature, milliseconds",
            ("way", "warm", "first look", "first look, cold", "of the scan, warm"),
            notes=(
                f"Medians over {len(made.shown)} features. First look: a new handle, as a new "
                "process has, which opens the store and the tables too (for the ways of actlas and "
                "the scan). Split files: locations and float16 activations of an eighth of the "
                "features, as delphi's cache has them, loaded and sorted at each look. The index "
                "and the scan were compared token by token before. " + harness.COLD,
            ),
        )
        found: dict[str, list[float]] = {}
        for way, look in ways.items():
            look(made.shown[0])
            for cold, fresh in ((False, False), (False, True), (True, True)):
                taken = _milliseconds(made, look, cold, fresh)
                found.setdefault(way, []).append(statistics.median(taken))
        scan = found["scan of the codes"][0]
        for way, cells in found.items():
            shown = [f"{ms:,.2f}" for ms in cells]
            table.rows.append((way, *shown, f"{cells[0] / scan:.4f}"))
            for kind, ms in zip(("warm", "first", "first_cold"), cells, strict=True):
                report.figures[figure_name("top", way, kind, "ms")] = ms
        report.tables.append(table)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.lookup", run))
