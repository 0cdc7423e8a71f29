"""Cost and ratio of each compression profile, and reading scattered rows."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from actlas.analysis.features.extremes import gather_extremes
from actlas.store.format import layout
from actlas.store.format.array_spec import ArraySpec
from actlas.store.shards.chunks import decode_chunk, encode_chunk
from actlas.store.store import Store, open_store
from benchmarks import corpus, harness
from benchmarks.cases import cases
from benchmarks.contenders import PROFILES
from benchmarks.harness import Contender, Report, Table, alternate, figure_name
from benchmarks.stores import HOOKPOINT, store_of

WINDOW = 256
DOCUMENT_ROWS = 500
K = 20


def residual_streams(model_path: str, n_tokens: int, seed: int = 0) -> list[NDArray[Any]]:
    """Return the residual stream after the first, middle and last block, bfloat16 [token, unit].

    Tokens are in random order, like the rows of a shard.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from actlas.pipeline.forward.capture import Capture
    from actlas.pipeline.hookpoints.names import resolve

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model: Any = AutoModelForCausalLM.from_pretrained(model_path)
    model.eval()
    every = resolve(model, ["resid_post.*"])
    kept = [every[0], every[len(every) // 2], every[-1]]
    windows = torch.from_numpy(corpus.token_windows(tokenizer, -(-n_tokens // WINDOW), WINDOW))
    parts: dict[str, list[NDArray[Any]]] = {hookpoint.name: [] for hookpoint in kept}
    with torch.inference_mode(), Capture(model, kept) as capture:
        for batch in torch.split(windows, 8):
            for name, found in capture(batch).items():
                rows = found.to(torch.bfloat16).reshape(-1, found.shape[-1])
                parts[name].append(rows.view(torch.int16).numpy().copy())
    order = np.random.default_rng(seed).permutation(windows.numel())[:n_tokens]
    return [np.concatenate(part)[order].view(ml_dtypes.bfloat16) for part in parts.values()]


def _spec(rows: NDArray[Any], profile: str) -> ArraySpec:
    n, width = rows.shape
    return ArraySpec(
        path="activations/x",
        shape=(n, width),
        dtype="bfloat16",
        shard_rows=n,
        chunk_rows=layout.chunk_rows(2 * width, n),
        compression=profile,
        dimensions=("row", "unit"),
    )


def codec(arrays: list[NDArray[Any]], profile: str, rounds: int) -> tuple[float, float, float]:
    """Return the ratio, and the speeds of encoding and of decoding in raw GB/s per core."""
    stored = raw = 0
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        stored = raw = 0
        encoding = decoding = 0.0
        for rows in arrays:
            spec = _spec(rows, profile)
            out = np.empty((spec.chunk_rows, rows.shape[1]), dtype=rows.dtype)
            for start in range(0, len(rows), spec.chunk_rows):
                chunk = rows[start : start + spec.chunk_rows]
                began = time.process_time()
                data = bytes(encode_chunk(spec, chunk))
                between = time.process_time()
                decode_chunk(spec, data, "chunk", out)
                decoding += time.process_time() - between
                encoding += between - began
                if out[: len(chunk)].tobytes() != chunk.tobytes():
                    raise AssertionError(f"{profile}: decoded rows are not the encoded ones")
                stored, raw = stored + len(data), raw + out.nbytes
        seconds.append((encoding, decoding))
    encoding, decoding = (statistics.median(part) for part in zip(*seconds, strict=True))
    return raw / stored, raw / encoding / 1e9, raw / decoding / 1e9


def codec_table(report: Report, folder: Path, quick: bool) -> NDArray[Any]:
    """Compress real activations; return some rows of the embedded model, for a store."""
    table = Table(
        "Ratio and speed of one core",
        ("activations", "profile", "ratio", "in GB/s", "out GB/s"),
        notes=(
            "bfloat16, residual stream after the first, middle and last block, tokens in random "
            "order, in chunks as stored (about 1 MiB). GB of raw bytes per second of processor "
            "time, chunks' crc32c included; decoded into an array that is there already, and "
            "compared. `none` copies, and checks no crc32c here. GPT-2's shape has random weights.",
        ),
    )
    first: NDArray[Any] | None = None
    for case in cases(folder, quick):
        model, _, hookpoints = case.name.partition(", ")
        if hookpoints != "all" and not (quick and "gpt2" in model):
            continue
        width_rows = 1024 if quick else 16_384 if "gpt2" in model else 32_768
        arrays = residual_streams(case.model, width_rows)
        first = arrays[1] if first is None else first
        for profile in PROFILES:
            ratio, encoding, decoding = codec(arrays, profile, 1 if quick else 3)
            cells = (f"{ratio:.3f}", f"{encoding:.2f}", f"{decoding:.2f}")
            table.rows.append((f"{model}, {arrays[0].shape[1]} units", profile, *cells))
            for name, value in (("ratio", ratio), ("in_gbps", encoding), ("out_gbps", decoding)):
                report.figures[figure_name(model, profile, name)] = value
    report.tables.append(table)
    assert first is not None
    return first


def lookup_table(report: Report, folder: Path, source: NDArray[Any], quick: bool) -> None:
    """Measure reading one document from one shard, cold and warm, and the contexts of a unit."""
    n_rows, width = (2048, 256) if quick else (65_536, 3072)
    n_bytes = 2 * n_rows * width
    flat = source.reshape(-1)
    per_copy = len(flat) // width
    rows = flat[: per_copy * width].reshape(per_copy, width)
    rng = np.random.default_rng(0)
    copies = [rng.permutation(per_copy) for _ in range(-(-n_rows // per_copy))]
    rows = np.take(rows, np.concatenate(copies)[:n_rows], axis=0)
    document = min(DOCUMENT_ROWS, n_rows)
    table = Table(
        f"Out of a shard of {n_bytes / 1e6:,.0f} MB",
        ("what", "profile", "stored MB", "cold ms", "warm ms"),
        notes=(
            f"One shard of {n_rows:,} x {width} bfloat16, rows in random order: a document's "
            f"{document} rows lie in nearly all of its chunks. Rows of the embedded model, "
            f"repeated. Windows: the {K} largest tokens of one unit, each among its words, every "
            "token shaded; the extremes of all units were gathered before. `check=False`: rows are "
            "read alone, not with the whole chunk whose checksum there is. Median of "
            f"{1 if quick else 5}.",
            harness.COLD,
        ),
    )
    for profile in PROFILES:
        path = folder / f"{profile}.zarr"
        store = store_of(path, rows, profile, n_rows)
        gather_extremes(store, HOOKPOINT, attempt="benchmark")
        size = sum(p.stat().st_size for p in (path / "activations").rglob("*") if p.is_file())
        where = store.row_of(np.arange(document, dtype=np.int64))
        expected = np.array(store.activations[HOOKPOINT][:])[where]
        works: dict[str, Callable[[], Any]] = {
            "document": lambda store=store, where=where: store.activations[HOOKPOINT].take(where),
            "windows": lambda store=store: _windows(store),
        }
        if profile == "none":
            raw = open_store(path, check=False).activations[HOOKPOINT]
            works["unchecked"] = lambda raw=raw, where=where: raw.take(where)
        for what, work in works.items():
            found = {}
            for kind in ("cold", "warm"):
                before = (lambda path=path: harness.evict(path)) if kind == "cold" else None
                found[kind] = _median_s(work, before, 1 if quick else 5)
                report.figures[figure_name(what, profile, kind, "ms")] = 1e3 * found[kind]
            cells = (f"{size / 1e6:,.0f}", *(f"{1e3 * s:,.1f}" for s in found.values()))
            names = {"document": f"{document} rows", "unchecked": f"{document} rows, check=False"}
            table.rows.append((names.get(what, what), profile, *cells))
        got = store.activations[HOOKPOINT].take(where)
        if got.tobytes() != expected.tobytes():
            raise AssertionError(f"{profile}: the document's rows are not the stored ones")
    report.tables.append(table)


def _windows(store: Store) -> str:
    return store.units(HOOKPOINT).contexts(7, K)._repr_html_()


def _median_s(work: Callable[[], Any], before: Callable[[], None] | None, rounds: int) -> float:
    contender = Contender("it", work, before or (lambda: None))
    return alternate([contender], rounds, "it")[0].median_s


def run(quick: bool) -> Report:
    """Compress real activations in each profile, and read scattered rows."""
    report = Report("Compression")
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as name:
        folder = Path(name)
        rows = codec_table(report, folder, quick)
        lookup_table(report, folder, rows, quick)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.compression", run))
