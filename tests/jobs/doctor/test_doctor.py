from __future__ import annotations

import os
import socket
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner
from support.reports import parsed
from support.s3 import KEY, S3, SECRET

from actlas.jobs.cli.app import cli
from actlas.jobs.doctor import clock as checks_clock
from actlas.jobs.doctor import location as checks_place
from actlas.jobs.doctor import machine as checks_machine
from actlas.jobs.doctor import ray as checks_cluster
from actlas.store.objects.local import LocalObjects
from actlas.store.store import Store


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_place, "PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(checks_place, "SLOW_BYTES_PER_S", 0.0)


def test_it_leaves_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["doctor", str(tmp_path / "new" / "run.zarr"), "--json"])
    assert result.exit_code == 0, result.output
    names = {check["name"] for check in parsed("doctor", result.stdout)["checks"]}
    assert {"python", "space", "create once", "disk speed", "disk sync", "clock", "store"} <= names
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


def test_a_disk_that_does_not_sync_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only noted. One that takes its time is not, however fast the folder of the tests is."""

    def doctor() -> str:
        result = CliRunner().invoke(cli, ["doctor", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    monkeypatch.setattr(os, "fsync", lambda _: None)
    assert "warning  disk sync" in (told := doctor())
    assert "faster than any device" in told
    n_synced: list[int] = []

    def takes_its_time(fd: int) -> None:
        n_synced.append(os.fstat(fd).st_size)
        time.sleep(50e-6)

    monkeypatch.setattr(os, "fsync", takes_its_time)
    assert "ok       disk sync" in doctor()
    assert set(range(4096, 20 * 4096 + 1, 4096)) <= set(n_synced), "each write is synced by itself"


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


def test_a_bucket(s3: S3) -> None:
    def doctor(url: str) -> tuple[int, dict[str, dict[str, str]]]:
        result = CliRunner().invoke(cli, ["doctor", url, "--json"])
        assert KEY not in result.output and SECRET not in result.output
        return result.exit_code, {c["name"]: c for c in parsed("doctor", result.stdout)["checks"]}

    code, found = doctor(s3.url("doctor.zarr"))
    assert code == 0
    assert found["create once"]["found"].startswith("a second writer is refused")
    assert found["clock"]["found"] == "agrees with the server's"
    assert found["credentials"]["result"] == found["store"]["result"] == "ok"
    assert s3.keys("doctor.zarr") == []

    s3.plan = lambda request: "ignore" if request.method == "PUT" else None
    code, found = doctor(s3.url("doctor.zarr"))
    assert (code, found["create once"]["result"]) == (1, "problem")
    s3.plan = lambda _: None

    code, found = doctor("s3://not-there/doctor.zarr")
    assert (code, found["bucket"]["result"]) == (1, "problem")
    assert "store" not in found  # told once


@pytest.mark.parametrize(("late_s", "result"), [(0, "ok"), (60, "warning"), (-4000, "warning")])
def test_the_clock_of_a_server(late_s: int, result: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(dict(self.headers))
            self.send_response_only(403)
            self.send_header("Date", formatdate(time.time() - late_s, usegmt=True))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        check = checks_clock.server_clock()
        thread.join()
    assert check.result == result
    assert ("signatures" in check.found) == (result == "warning")
    assert [name.lower() for name in asked[0]].count("authorization") == 0


def test_no_server_no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{address}")
        assert checks_clock.server_clock().found.startswith("not compared")
        result = CliRunner().invoke(cli, ["doctor", "--address", address])
    assert result.exit_code == 1
    assert f"PROBLEM  ray            nothing answers at {address}" in result.stdout


def test_nodes_are_compared() -> None:
    def node(store_bytes: float = 2e8, **versions: str) -> dict[str, Any]:
        return {
            "versions": here["versions"] | versions,
            "shm_bytes": 10**9,
            "store_bytes": store_bytes,
        }

    here = checks_cluster.about()
    same = [*checks_cluster.compare(here, {"a": node(), "b": node()}, {})]
    assert {check.result for check in same} == {"ok"}
    assert "2 nodes with the versions of this machine" in same[0].found

    told = {"a": node(), "b": node(torch="1.0", python="3.9.1"), "c": node(5e9, torch="1.0")}
    silent = {"d": "ModuleNotFoundError: No module named 'actlas'"}
    found = [*checks_cluster.compare(here, told, silent)]
    assert [check.result for check in found] == ["problem", "warning", "warning"]
    assert found[0].found.startswith("d: ModuleNotFoundError")
    assert "torch " in found[1].found and "1.0 on 2" in found[1].found
    assert "3.9.1 on 1" in found[1].found
    assert "zarr" not in found[1].found
    assert found[2].found.endswith("on c")
