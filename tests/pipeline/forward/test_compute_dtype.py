"""The dtype that a model computes in, chosen on machines with and without fast bfloat16."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.masks import mask_for

import actlas
from actlas.jobs.cli.app import cli
from actlas.pipeline.builtin import builtin_model_path
from actlas.pipeline.forward.load import load_model
from actlas.pipeline.model import compute_dtype
from actlas.pipeline.model.compute_dtype import CLEARLY_SLOWER, product_slowdown
from actlas.pipeline.model.describe import describe_model
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import EXIT_DONE

FAST, SLOW = 0.5, 60.0


def machine(patch: pytest.MonkeyPatch, slowdown: float) -> list[str]:
    """Make this a machine on which products take so many times longer; return what is measured."""
    measured: list[str] = []

    def measure(dtype: str) -> float:
        measured.append(dtype)
        return slowdown

    patch.setattr(compute_dtype, "product_slowdown", measure)
    return measured


def chosen(device: str | None = "cpu", **options: Any) -> compute_dtype.ComputeDtype:
    options = {"model": "builtin:actlas-6m", "corpus": "none", **options}
    found = describe_model(PlanOptions(**options), device=device)
    assert found.spec.compute_dtype == found.compute_dtype.name
    return found.compute_dtype


@pytest.mark.parametrize(
    ("slowdown", "name"),
    [(FAST, "bfloat16"), (1.0, "bfloat16"), (CLEARLY_SLOWER + 0.01, "float32"), (SLOW, "float32")],
)
def test_float32_computes_where_bfloat16_is_clearly_slower(
    monkeypatch: pytest.MonkeyPatch, slowdown: float, name: str
) -> None:
    measured = machine(monkeypatch, slowdown)
    found = chosen()
    assert found.name == name and measured == ["bfloat16"]
    assert f"{slowdown:.2g} times the seconds of float32" in found.reason
    assert ("--model-dtype bfloat16" in found.reason) is (name == "float32")
    assert len(f"compute  {found.name}: {found.reason}") < 200


@pytest.mark.parametrize("asked", ["bfloat16", "float16", "float32"])
def test_a_requested_dtype_is_not_measured(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    measured = machine(monkeypatch, SLOW)
    assert chosen(model_dtype=asked) == (asked, "requested") and not measured


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", None])
def test_the_checkpoints_dtype_computes_away_from_this_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    measured = machine(monkeypatch, SLOW)
    assert chosen(device).name == "bfloat16" and not measured


def test_float32_weights_must_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, SLOW)
    monkeypatch.setattr(compute_dtype, "total_host_bytes", lambda: 30 << 20)
    found = chosen()
    assert found.name == "bfloat16" and "would not fit" in found.reason


def test_the_measurement_is_a_ratio_and_leaves_torch_as_it_was() -> None:
    threads = torch.get_num_threads()
    product_slowdown.cache_clear()
    for dtype in ("bfloat16", "float16"):
        found = product_slowdown(dtype)
        assert math.isfinite(found) and found > 0 and product_slowdown(dtype) == found
    assert torch.get_num_threads() == threads


def call(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == EXIT_DONE, result.output
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    texts = ["The assert statement is a way to insert assertions.", "A list of words.", "One."]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts * 4))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("planner", "name"), [(FAST, "bfloat16"), (SLOW, "float32")])
def test_a_plan_records_the_dtype_and_every_run_keeps_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path, planner: float, name: str
) -> None:
    path = tmp_path / "s.zarr"
    given = ("--model", "builtin:actlas-6m", "--corpus", corpus, "--hookpoints", "resid_post.2")
    machine(monkeypatch, planner)
    shown = call("plan", path, *given, "--shard-rows", 16, "--with-loss")
    assert f" in {name} (" in shown
    before = (path / "ledger/plan.json").read_bytes()
    # A machine of the other kind extracts.
    measured = machine(monkeypatch, SLOW + FAST - planner)
    store = actlas.open(path)
    assert store.plan.model.compute_dtype == name
    assert load_model(store.plan.model).dtype == getattr(torch, name)
    run = ("--device", "cpu", "--threads", 1)
    call("extract", path, *run)
    call("extract", path, *given, *run)
    call("verify", path, "--full")
    assert not measured
    assert (path / "ledger/plan.json").read_bytes() == before
    # Another store, of that dtype by request, holds the same rows.
    machine(monkeypatch, FAST)
    other = tmp_path / "other.zarr"
    forced = ("--shard-rows", 16, "--with-loss", "--model-dtype", name, *run)
    assert f" in {name} (" in call("extract", other, *given, *forced)
    for column in (lambda s: s.activations["resid_post.2"], lambda s: s.rows.columns["loss"]):
        found, same = (column(actlas.open(at))[:].astype(np.float32) for at in (path, other))
        assert np.array_equal(found, same, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize(("slowdown", "name"), [(FAST, "bfloat16"), (SLOW, "float32")])
def test_ablation_and_generation_compute_in_the_chosen_dtype(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, slowdown: float, name: str
) -> None:
    machine(monkeypatch, slowdown)
    folder = builtin_model_path("actlas-6m")
    mask = mask_for(folder, {"resid_post.1": (3, 77)})
    asked = {"random": 1, "new_tokens": 2, "device": "cpu", "threads": 1}
    found = actlas.ablate(str(folder), mask, str(corpus), **asked)
    assert found.about["compute_dtype"] == name
    forced = actlas.ablate(str(folder), mask, str(corpus), **asked, model_dtype=name)
    assert [c.loss for c in found.conditions] == [c.loss for c in forced.conditions]
