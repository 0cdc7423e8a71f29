"""What a plan says of the store to come, against what then lies there; and what must not grow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections import Counter, deque
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stores import create
from tests.support.stores import fill, plan_for, words_columns

import actlas
from actlas.jobs.run.run import run_extraction
from actlas.pipeline.forward.cost import speed
from actlas.pipeline.forward.cost.lengths import Fit
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.pipeline.plan import borders
from actlas.pipeline.plan.borders import LOOK_AHEAD, NEAR, fit_borders
from actlas.pipeline.plan.dry_run import estimate
from actlas.pipeline.plan.estimate import Estimate
from actlas.pipeline.plan.make import make_plan
from actlas.pipeline.plan.store_size import sample_rates, store_size
from actlas.store.format.sealing import seal
from actlas.store.ledger.finished import note_finished
from actlas.store.objects.local import LocalObjects

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A speed that makes easy numbers, for nothing here is about how fast this machine is."""
    monkeypatch.setattr(
        "actlas.pipeline.plan.estimate.forward_speed",
        lambda *_, **__: speed.Speed((Fit(0.001, 0.0), Fit(0.001, 0.0)), "made up"),
    )


def document_by_document(
    lengths: list[int], shard_rows: int, content: int, look_ahead: int
) -> list[int]:
    """The order as it is defined: one document after the other, a queue, no shortcut."""
    near = min(NEAR * sum(lengths) // max(1, len(lengths)), shard_rows // 2)
    queue: deque[int] = deque()
    order: list[int] = []
    upcoming, room = 0, shard_rows
    while upcoming < len(lengths) or queue:
        while upcoming < len(lengths) and len(queue) < look_ahead:
            queue.append(upcoming)
            upcoming += 1
        if room <= near or lengths[queue[0]] >= room:
            chosen = [queue[k] for k in borders._fill([lengths[i] for i in queue], room, content)]
            queue = deque(i for i in queue if i not in set(chosen))
        else:
            chosen = [queue.popleft()]
        order += chosen
        taken = sum(lengths[i] for i in chosen)
        room = room - taken if taken < room else shard_rows - (taken - room) % shard_rows
    return order


@pytest.mark.parametrize("seed", range(6))
def test_borders_found_by_leaps_are_those_found_document_by_document(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(60):
        n = int(rng.integers(0, 300))
        lengths = rng.lognormal(3, 1.4, n).astype(np.int64) * (rng.random(n) > 0.1)
        shard_rows = int(rng.choice([16, 64, 256, 4096]))
        content, look_ahead = int(rng.integers(1, 60)), int(rng.choice([1, 3, 16, LOOK_AHEAD]))
        found = fit_borders(lengths, shard_rows, content, look_ahead).tolist()
        assert found == document_by_document(lengths.tolist(), shard_rows, content, look_ahead)


def test_fitting_borders_needs_some_numbers_for_each_document_and_no_objects() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 60_000).astype(np.int64)
    fit_borders(lengths[:1000], 65_536, 1023)
    tracemalloc.start()
    fit_borders(lengths, 65_536, 1023)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Edges, their sums and the order are 24 bytes; a list of Python's integers alone would be 40.
    assert peak / len(lengths) < 30


def lying_there(root: Path) -> tuple[Counter[str], Counter[str]]:
    """Bytes and files below each group, what a driver keeps for itself left out."""
    n_bytes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in (p for p in root.rglob("*") if p.is_file()):
        parts = path.relative_to(root).parts
        if parts[0] == "ledger" and parts[1] in ("lease", "logs", "staging"):
            continue
        part = "metadata" if parts[0] == "ledger" or parts[-1] == "zarr.json" else parts[0]
        if parts[:2] in (("ledger", "receipts"), ("ledger", "repairing")):
            part = "receipts"
        part = "activations/" + parts[1] if part == "activations" else part
        n_bytes[part] += path.stat().st_size
        files[part] += 1
    return n_bytes, files


def write_corpus(path: Path, n_documents: int) -> str:
    """Write pieces of Python's own documentation, most of them short, some long."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    lengths = np.random.default_rng(0).lognormal(5, 1.2, n_documents).astype(int) + 1
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    texts = [text[a:b] for a, b in pairwise(edges)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def planned_and_made(tmp_path: Path, **options: Any) -> tuple[Estimate, Estimate, Path]:
    """What a dry run and a plan say, and the store that was then extracted."""
    said: list[Estimate] = []
    corpus = write_corpus(tmp_path / "a.jsonl", 60)
    asked = PlanOptions(model="builtin:actlas-6m", corpus=corpus, **options)
    from actlas.pipeline.plan import make as planning

    whole = planning.summarize

    def kept(*args: Any, **more: Any) -> Estimate:
        said.append(whole(*args, **more))
        return said[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "summarize", kept)
        store = make_plan(tmp_path / "s.zarr", asked)
    guess = estimate(asked)
    run_extraction(store, RunOptions(device="cpu", threads=1))
    return guess, said[0], tmp_path / "s.zarr"


@pytest.mark.parametrize("compression", ["none", "dense"])
def test_bytes_on_disk_are_within_2_percent_of_what_plan_said(
    tmp_path: Path, compression: str
) -> None:
    guess, said, path = planned_and_made(tmp_path, compression=compression)
    n_bytes, files = lying_there(path)
    total = n_bytes.total()
    for found in (said, guess):
        assert found.stored.n_bytes == pytest.approx(total, rel=0.02)
        assert found.stored.n_objects == files.total()
    by_name = {part.name: part for part in said.stored.parts}
    assert {name: part.n_objects for name, part in by_name.items()} == dict(files)
    if compression == "none":
        exact = {name: part.n_bytes for name, part in by_name.items() if part.exact}
        assert set(exact) == {f"activations/resid_post.{i}" for i in range(6)}
        assert exact == {name: n_bytes[name] for name in exact}
    for name in ("rows", "documents"):
        assert by_name[name].n_bytes == pytest.approx(n_bytes[name], rel=0.03)
    for name in ("statistics", "receipts"):
        assert by_name[name].n_bytes == pytest.approx(n_bytes[name], rel=0.25)
    for folder, n in said.stored.folders.items():
        assert n == len(list((path / folder).iterdir()))
    store = actlas.open(path)
    first = sum(record.n_bytes for record in store.receipt(0).objects)
    assert said.stored.bytes_per_shard == pytest.approx(first, rel=0.05)
    assert said.stored.objects_per_shard == len(store.receipt(0).objects) + 1


def test_pooled_rows_of_unknown_ratio_are_counted_raw(tmp_path: Path) -> None:
    _, said, path = planned_and_made(tmp_path, pool=("mean", "last"), pooled_only=True)
    n_bytes, files = lying_there(path)
    assert said.stored.n_objects == files.total()
    assert said.stored.bytes_of("pooled") >= n_bytes["pooled"]
    assert "not known for dense float32" in str(said)


@pytest.mark.parametrize("changes", [{}, {"keep_special": True}, {"shard_rows": 1024}])
def test_raw_stores_of_every_shape_are_counted_to_the_byte(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    columns = words_columns(3, 90, 11)
    plan = plan_for(columns, compression="none", **changes)
    store = create(tmp_path / "s.zarr", plan, columns)
    fill(store)
    note_finished(store.objects, store.plan_sha256, "extract", store.n_shards())
    n_bytes, files = lying_there(tmp_path / "s.zarr")
    found = store_size(plan, sample_rates(plan, columns), labelled=False)
    for part in found.parts:
        assert part.n_objects == files[part.name]
        if part.exact:
            assert part.n_bytes == n_bytes[part.name]
        elif part.name in ("rows", "documents"):  # Eight shards of rows are looked at.
            assert part.n_bytes == pytest.approx(n_bytes[part.name], rel=0.05)


def test_the_lines_say_it_all(tmp_path: Path) -> None:
    asked = {"corpus": write_corpus(tmp_path / "a.jsonl", 60), "hookpoints": ("resid_post.2",)}
    found = estimate(PlanOptions(model="builtin:actlas-6m", **asked))
    lines = {line.split()[0]: line for line in found.lines()}
    assert list(lines) == [
        *("corpus", "pinned", "ignored", "rows", "store", "ratio", "objects", "shards"),
        *("compute", "time", "load", "memory"),
    ]
    assert all(len(line) < 200 for line in lines.values())
    assert "measured for dense bfloat16" in lines["ratio"] and "1.46 to 1.48" in lines["ratio"]
    # 1,000 tokens a second, in shards of 1,024 rows but for the last.
    assert found.seconds is not None
    seconds = found.seconds[0] / found.n_shards
    assert seconds == pytest.approx(found.plan.n_tokens / found.n_shards / 1000, rel=0.02)
    assert f"a shard in {seconds:,.3g} s" in lines["load"]
    assert f"{6 / seconds:,.3g} objects" in lines["load"]
    assert "of weights" in lines["memory"]
    spec = found.plan.model.model_copy(update={"causal": False})
    encoder = replace(found, plan=found.plan.model_copy(update={"model": spec}))
    [said] = [line for line in encoder.lines() if line.startswith("batches")]
    assert "tests on the loaded weights whether padding" in said and len(said) < 200


def test_opening_costs_the_same_however_many_receipts_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = words_columns(0, 60, 9)
    plan = plan_for(columns, shard_rows=1 << 3)
    store = create(tmp_path / "s.zarr", plan, columns)
    fill(store, range(2))
    first = store.receipt(0)
    for shard in range(2, plan.n_shards):
        objects = [
            r.model_copy(update={"key": r.key.replace("/c/0", f"/c/{shard}")})
            for r in first.objects
        ]
        like = first.model_copy(update={"shard": shard, "objects": tuple(objects)})
        (tmp_path / f"s.zarr/ledger/receipts/extract/{shard:08d}.json").write_bytes(seal(like))
    reads: list[str] = []
    read = LocalObjects.read

    def counted(self: LocalObjects, key: str, *args: Any) -> bytes:
        reads.append(key)
        return read(self, key, *args)

    monkeypatch.setattr(LocalObjects, "read", counted)
    opened = actlas.open(tmp_path / "s.zarr")
    assert f"{plan.n_shards:,} of {plan.n_shards:,} shards" in repr(opened)
    assert len(opened.done()) == plan.n_shards > 50
    row = opened.activations["resid_post.0"][0]
    assert np.array_equal(row, store.activations["resid_post.0"][0])
    assert len(reads) < 10, reads


def test_asking_for_the_plan_again_reads_its_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = words_columns(0, 20, 9)
    store = create(tmp_path / "s.zarr", plan_for(columns), columns)
    n_bytes = 0
    read = LocalObjects.read

    def counted(self: LocalObjects, key: str, *args: Any) -> bytes:
        nonlocal n_bytes
        data = read(self, key, *args)
        n_bytes += len(data)
        return data

    monkeypatch.setattr(LocalObjects, "read", counted)
    store.require_same_plan()
    assert n_bytes == 128
    (tmp_path / "s.zarr/ledger/plan.json").unlink()
    with pytest.raises(actlas.store.errors.ConflictError, match="got the plan none"):
        store.require_same_plan()


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@pytest.mark.slow
def test_the_page_holds_the_figures_that_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--workout"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    page = (ROOT / "docs/scale.md").read_text().splitlines()
    at = 0
    rows = [line for line in done.stdout.splitlines() if line.startswith(("|", "###"))]
    assert len(rows) > 40
    for line in rows:
        words = NUMBER.sub("#", line).replace(" ", "").replace("-", "")
        found = [
            i
            for i in range(at, len(page))
            if NUMBER.sub("#", page[i]).replace(" ", "").replace("-", "") == words
        ]
        assert found, f"docs/scale.md lacks: {line}"
        at = found[0]
        numbers = [float(n.replace(",", "")) for n in NUMBER.findall(line)]
        held = [float(n.replace(",", "")) for n in NUMBER.findall(page[at])]
        assert held == pytest.approx(numbers, rel=0.01), f"{page[at]}\nis now\n{line}"
        at += 1
