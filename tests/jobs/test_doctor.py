from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from actlas.jobs import checks_machine, checks_place
from actlas.jobs.cli import cli
from actlas.store.objects import LocalObjects
from actlas.store.store import Store


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_place, "PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(checks_place, "SLOW_BYTES_PER_S", 0.0)


def test_it_leaves_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["doctor", str(tmp_path / "new" / "run.zarr"), "--json"])
    assert result.exit_code == 0, result.output
    names = {check["name"] for check in json.loads(result.stdout)["checks"]}
    assert {"python", "space", "create once", "disk speed", "clock", "store"} <= names
    assert not list(tmp_path.iterdir())


def test_a_store_is_looked_at_and_left_as_it_is(store: Store) -> None:
    before = {*store.objects.walk()}
    result = CliRunner().invoke(cli, ["doctor", store.path])
    assert result.exit_code == 0, result.output
    assert "0 of 12 shards done" in result.stdout
    assert "to write at most" in result.stdout
    assert {*store.objects.walk()} == before


def test_a_disk_that_writes_over_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(self: LocalObjects, key: str, parts: list[bytes]) -> bool:
        self.replace(key, b"".join(parts))
        return True

    monkeypatch.setattr(LocalObjects, "create", create)
    result = CliRunner().invoke(cli, ["doctor", str(tmp_path)])
    assert result.exit_code == 1
    assert "PROBLEM  create once" in result.stdout


@pytest.mark.parametrize(
    ("files", "n_bytes", "cpus"),
    [
        ({"memory.max": "1000", "cpu.max": "150000 100000"}, 1000, 1.5),
        ({"memory.max": "max", "cpu.max": "max 100000"}, None, None),
        (
            {
                "memory/memory.limit_in_bytes": "2000",
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            2000,
            0.5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
    ],
)
def test_limits_of_a_container(
    tmp_path: Path, files: dict[str, str], n_bytes: int | None, cpus: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert checks_machine.memory_limit(tmp_path) == n_bytes
    assert checks_machine.cpu_limit(tmp_path) == cpus
