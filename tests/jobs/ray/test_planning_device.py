"""The device that a plan's compute dtype is chosen on: none where the workers are elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from actlas.jobs.cli.app import cli
from actlas.jobs.config import resolve
from actlas.jobs.ray.cluster import planning_device
from actlas.jobs.run.extract import make
from actlas.pipeline.options import RunOptions
from actlas.pipeline.plan import dry_run
from actlas.pipeline.plan import make as planning

ADDRESS = "there:6379"


@pytest.mark.parametrize(
    ("options", "environment", "device"),
    [
        ({}, None, "auto"),
        ({}, ADDRESS, "auto"),
        ({"device": "cpu", "executor": "ray"}, None, "cpu"),
        ({"device": "cpu", "executor": "ray"}, ADDRESS, None),
        ({"executor": "ray", "address": "auto"}, None, None),
        ({"executor": "ray", "gpus_per_worker": 1}, None, None),
        ({"device": "cuda:1"}, None, "cuda:1"),
    ],
)
def test_workers_on_other_machines_know_their_own_device(
    options: dict[str, Any],
    environment: str | None,
    device: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert planning_device(RunOptions(**options)) == device


def test_plans_are_made_for_the_workers_of_the_clusters_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned_on: list[str | None] = []

    def note(*arguments: Any, **_more: Any) -> Any:
        planned_on.append(arguments[-1])
        return SimpleNamespace(lines=lambda **_: ["noted"])

    monkeypatch.setattr(planning, "make_plan", note)
    monkeypatch.setattr(dry_run, "estimate", note)
    asked = resolve({"plan": {"model": "m", "corpus": "c"}, "run": {"executor": "ray"}})
    plan = ["plan", "never.zarr", "--model", "m", "--corpus", "c", "--dry-run", "run.executor=ray"]
    for environment in (None, ADDRESS):
        if environment is None:
            monkeypatch.delenv("RAY_ADDRESS", raising=False)
        else:
            monkeypatch.setenv("RAY_ADDRESS", environment)
        make("never.zarr", asked)
        result = CliRunner().invoke(cli, plan)
        assert result.exit_code == 0, result.output
    assert planned_on == ["auto", "auto", None, None]
