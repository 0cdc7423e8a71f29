"""The localizer over a store, against a sequential read of it and against scipy in memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.localize import localize
from actlas.store.format import layout
from actlas.store.store import Store, open_store
from actlas.store.write.commit import commit_shard
from actlas.store.write.create import create
from benchmarks import harness, stores
from benchmarks.harness import Contender, Report, Table, alternate, figure_name

READ, OURS, SCIPY = "sequential read", "actlas localize", "numpy and scipy"
DOCUMENTS = {
    "stimuli": "12 tokens each, as the published stimuli",
    "long-tailed": "log-normal (median 500 tokens, sigma 1.6, cut at 131,072), as The Pile's",
}


@dataclass(frozen=True)
class Case:
    """The size of a store, and the number of rounds."""

    folder: Path
    n_rows: int = 262_144
    width: int = 768
    shard_rows: int = 65_536
    rounds: int = 3
    memory: bool = True

    @property
    def n_bytes(self) -> int:
        return 2 * self.n_rows * self.width


def lengths_of(kind: str, n_rows: int) -> NDArray[np.int64]:
    """Return lengths of documents with ``n_rows`` tokens in total."""
    rng = np.random.default_rng(0)
    if kind == "stimuli":
        lengths = np.full(n_rows // 12 + 1, 12)
    else:
        lengths = np.clip(rng.lognormal(np.log(500), 1.6, n_rows // 50), 1, 131_072).astype(int)
    edges = np.minimum(np.cumsum([0, *lengths]), n_rows)
    found = np.diff(edges)
    return found[found > 0]


def make(case: Case, kind: str, rows: NDArray[Any]) -> str:
    """Write a store of rows, half of its documents S and half N, and return its path."""
    columns = stores.SyntheticDocuments(lengths_of(kind, case.n_rows))
    columns.label = (np.arange(columns.n_documents) % 2).astype(np.int32)
    columns.label_names = ("S", "N")
    plan = stores.plan_of(columns, case.width, "fast", case.shard_rows)
    path = case.folder / f"{kind}.zarr"
    create(path, plan, columns)
    store = open_store(path)
    for shard in range(plan.n_shards):
        start, stop = store.shard_range(shard)
        part = {stores.HOOKPOINT: np.array(rows[start:stop])}
        commit_shard(store, shard, part, attempt="benchmark")
    return store.path


def read_all(path: str) -> int:
    """Read and verify every chunk of every shard in order, and keep nothing."""
    array = open_store(path).activations[stores.HOOKPOINT]
    n_chunks = 0
    for shard in range(array.spec.n_shards):
        chunks = range(array.spec.n_chunks(shard))
        n_chunks += sum(1 for _ in array.reader(shard).read_chunks(chunks))
    return n_chunks


def ours(path: str, pool: Any) -> NDArray[np.float64]:
    """Localize out of core: pooling, moments, t, p, q, selection."""
    return localize(path, "S:N", pool=pool).test.t


def by_scipy(path: str, pool: str) -> NDArray[np.float64]:
    """Read the whole array, sort its rows, pool with numpy, test with scipy: all in memory."""
    from scipy import stats

    store = open_store(path)
    codes, start = store.documents.label_codes, store.documents.start
    rows = store.activations[stores.HOOKPOINT][:]
    row_of = np.empty(store.plan.n_tokens, dtype=np.int64)
    for shard in range(store.plan.n_shards):
        at, stop = store.shard_range(shard)
        row_of[layout.shard_tokens(store.plan.order, store.plan.seed, at, stop)] = range(at, stop)
    if pool == "last":
        samples = rows[row_of[start[1:] - 1]].astype(np.float64)
    else:
        samples = np.stack(
            [rows[row_of[a:b]].astype(np.float64).mean(axis=0) for a, b in pairwise(start)]
        )
    samples = np.abs(samples)
    found = stats.ttest_ind(samples[codes == 0], samples[codes == 1], equal_var=False)
    stats.false_discovery_control(found.pvalue)
    return np.asarray(found.statistic)


WORK: dict[str, Callable[..., Any]] = {OURS: ours, SCIPY: by_scipy}


def memory(path: str, name: str, pool: str) -> int:
    """Return the peak memory in bytes, for a new process."""
    import scipy.sparse
    import scipy.stats  # noqa: F401 - libraries are not what is measured

    open_store(path)
    if name == READ:
        return harness.peak_of(lambda: read_all(path))
    return harness.peak_of(lambda: WORK[name](path, pool))


def _check(store: Store, pool: str) -> Callable[[Any], None]:
    expected = by_scipy(store.path, pool)

    def check(t: NDArray[np.float64]) -> None:
        np.testing.assert_allclose(t, expected, rtol=1e-9, atol=1e-9)

    return check


def table_of(case: Case, kind: str, path: str, report: Report, *, cold: bool) -> Table:
    """Time the contenders over one store, for both ways of pooling."""
    store = open_store(path)
    columns = ("contender", "pool", "seconds", "GB/s", "of the read", "extra MB")
    n_documents = len(store.documents)
    temperature = "cold" if cold else "warm"
    notes = (
        f"{n_documents:,} documents, {DOCUMENTS[kind]}; {case.n_rows:,} x {case.width} bfloat16 "
        f"(compression fast), shuffled in {store.plan.n_shards} shards; seconds are the median of "
        f"{case.rounds}. The read opens the store and reads, checks and decodes every chunk in "
        "order. numpy and scipy hold the whole array. Extra MB: peak of a process of its own.",
        *([harness.COLD] if cold else []),
    )
    table = Table(f"Welch, {kind} documents, {temperature}", columns, notes=notes)

    def before() -> None:
        if cold:
            harness.evict(Path(path))

    for pool in ("last", "mean"):
        check = _check(store, pool)
        contenders = [Contender(READ, lambda: read_all(path), before)]
        contenders += [
            Contender(name, lambda work=work, pool=pool: work(path, pool), before, check)
            for name, work in WORK.items()
        ]
        for m in alternate(contenders, case.rounds, READ):
            speed = case.n_bytes / m.median_s / 1e9
            name = figure_name(kind, temperature, pool, m.name)
            report.figures |= {f"{name}.gbps": speed, f"{name}.ratio": m.ratio}
            shown = "-"
            if case.memory and not cold:
                asked = {"path": path, "name": m.name, "pool": pool}
                extra = harness.in_fresh_process("benchmarks.welch:memory", **asked)
                report.figures[f"{name}.extra_mb"] = max(1, extra) / 1e6
                shown = f"{extra / 1e6:,.0f}"
            cells = (f"{m.median_s:.3f}", f"{speed:.2f}", f"{m.ratio:.2f}", shown)
            table.rows.append((m.name, pool, *cells))
    return table


def run(quick: bool) -> Report:
    """Localize over a store: actlas against a bare read of it, and against scipy in memory."""
    report = Report("Welch")
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as folder:
        small = {"n_rows": 4096, "width": 64, "shard_rows": 1024, "rounds": 1, "memory": False}
        case = Case(Path(folder), **(small if quick else {}))
        raw = Path(folder) / "rows.raw"
        origin = harness.in_fresh_process(
            "benchmarks.activations:write_rows",
            path=str(raw),
            n_rows=case.n_rows,
            width=case.width,
        )
        report.notes.append(f"Rows: {origin}.")
        import ml_dtypes

        rows = np.memmap(raw, dtype=ml_dtypes.bfloat16, mode="r", shape=(case.n_rows, case.width))
        for kind in DOCUMENTS:
            path = make(case, kind, rows)
            for cold in (False,) if quick else (False, True):
                report.tables.append(table_of(case, kind, path, report, cold=cold))
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.welch", run))
