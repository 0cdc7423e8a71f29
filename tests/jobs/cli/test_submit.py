"""``actlas submit``: what is asked arrives as it was, and the job's own exit code comes back.

One head with a job server, token and all; a stand-in for ``actlas`` there says what it was called
with and ends as its store is called.
"""

from __future__ import annotations

import doctest
import http.server
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.jobs import ROOT, wait_until
from support.ports import free_ports

from actlas.jobs.cli import submit
from actlas.jobs.cli.app import cli
from actlas.jobs.cli.submit import entrypoint, where
from actlas.jobs.config import resolve
from actlas.jobs.ray import jobs_api as ray_jobs
from actlas.jobs.ray.jobs_api import exit_code_of
from actlas.store.errors import (
    EXIT_DAMAGE,
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_QUARANTINE,
    EXIT_RESUME,
    EXIT_USAGE,
    ConfigError,
)

ACTLAS = """#!/bin/sh
exec {python} - "$@" <<'END'
import json, os, signal, sys, time
print("called with", json.dumps(sys.argv[1:]), flush=True)
name = sys.argv[2].rpartition("/")[2]
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "waits":
    def drain(*_):
        time.sleep(4)
        print("drained", flush=True)
        sys.exit(75)
    signal.signal(signal.SIGTERM, drain)
    time.sleep(60)
sys.exit(int(name))
END
"""
CONFIG = "plan: {model: builtin:m, corpus: /data/it's}\nrun: {workers: 3, executor: inline}\n"


def run_verb(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["submit", *arguments])


def test_examples() -> None:
    assert doctest.testmod(submit).failed == 0


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@pytest.mark.slow
@given(text, text, st.lists(text.filter(lambda t: t == t.strip() and "," not in t), min_size=1))
def test_what_is_given_arrives(model: str, field: str, hookpoints: list[str]) -> None:
    """Through a shell's words and YAML, whatever characters there are."""
    plan = {"model": f"m{model}", "corpus": "hf:c", "text_field": field, "hookpoints": hookpoints}
    run = {"workers": 7, "device": "cpu", "retry_quarantined": True, "max_memory_bytes": 1 << 40}
    asked = resolve({"plan": plan, "run": {**run, "executor": "ray", "address": "x:1"}})
    try:
        words = shlex.split(entrypoint("/a b/run.zarr", asked))
    except ConfigError as error:
        assert "credentials" in str(error)
        return
    assert words[:3] == ["actlas", "extract", "/a b/run.zarr"]
    assert words[3:7] == ["--executor", "ray", "--address", "auto"]
    again = resolve({}, words[7:])
    assert again.plan == asked.plan
    assert again.run.model_dump(include=set(run)) == run
    assert {name.split(".")[1] for name in again.origin} == set(plan) | set(run)


@pytest.mark.parametrize(
    ("overrides", "store", "words"),
    [
        (["plan.model=s3://key:secret@bucket/m"], "s3://b/run.zarr", "plan.model contains cred"),
        (["plan.corpus=https://h/a?token=abc"], "s3://b/run.zarr", "plan.corpus contains cred"),
        ([], "s3://key:secret@b/run.zarr", "the store contains credentials"),
        (
            [f"plan.hookpoints={['x' * 90] * 2000}"],
            "/run.zarr",
            "as a command line, at most 100,000",
        ),
    ],
)
def test_what_is_not_submitted(overrides: list[str], store: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        entrypoint(store, resolve({}, overrides))


def test_where_the_rows_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.yaml"
    file.write_text("store: s3://b/run.zarr\n" + CONFIG)
    assert where(str(file), [])[0] == "s3://b/run.zarr"
    assert where(str(file), ["run.workers=5"])[0] == "s3://b/run.zarr"
    store, asked = where(str(file), ["other.zarr", "run.workers=5"])
    assert (store, asked.run.workers) == (str(tmp_path / "other.zarr"), 5)
    assert (
        resolve({}, ["run.workers=1"], file).store == "s3://b/run.zarr"
    )  # and `extract STORE` does not ask
    file.write_text(CONFIG)
    with pytest.raises(ConfigError, match="no store to extract into"):
        where(str(file), ["run.workers=5"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("store: [a]", "store: got ['a'], expected a path or URL"),
        ("store: ''", "store: got '', expected a path or URL"),
        ("stores: a", "unknown section: 'stores'. Did you mean store?"),
    ],
)
def test_a_store_that_is_none(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(line)
    result = run_verb(str(file), "s")
    assert result.exit_code == EXIT_USAGE
    assert words in result.stderr


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers everything with one status."""

    status = 404

    def do_GET(self) -> None:
        self.send_error(self.status)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A file to submit, in a world without tokens."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("store: s3://b/run.zarr\n" + CONFIG)
    return str(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("head:6379", "got 'head:6379', expected the address of the head's dashboard"),
        ("ray://head:10001", "expected the address of the head's dashboard"),
        ("os://head", "expected the address of the head's dashboard"),
        ("http://me:secret@head:8265", "expected the address of the head's dashboard"),
        ("http://127.0.0.1:1", "nothing answers at http://127.0.0.1:1 ("),
    ],
)
def test_addresses(address: str, words: str, plain: str) -> None:
    result = run_verb(plain, "--address", address)
    assert result.exit_code == EXIT_USAGE
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "the server is not a Ray job server (Version check returned 404"),
        (401, "the cluster requires a token, and none was sent"),
        (403, "the cluster requires a token, and the one that was sent is wrong"),
        (500, "the server is not a Ray job server (500 Server Error"),
    ],
)
def test_a_server_that_does_not_let_us_in(status: int, words: str, plain: str) -> None:
    handler = type("Handler", (Answers,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = run_verb(plain, "--address", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert result.exit_code == EXIT_USAGE
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "code", "kind", "ends"),
    [
        ("SUCCEEDED", 0, None, EXIT_DONE),
        ("FAILED", 1, None, EXIT_ERROR),
        ("FAILED", 3, None, EXIT_QUARANTINE),
        ("FAILED", 4, None, EXIT_DAMAGE),
        ("FAILED", 75, None, EXIT_RESUME),
        ("FAILED", 127, None, EXIT_ERROR),
        ("FAILED", -9, None, EXIT_RESUME),
        ("FAILED", 143, None, EXIT_RESUME),
        ("FAILED", -11, None, EXIT_ERROR),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", EXIT_ERROR),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", EXIT_RESUME),
        ("STOPPED", None, None, EXIT_RESUME),
    ],
)
def test_what_a_job_ends_with(status: str, code: int | None, kind: str | None, ends: int) -> None:
    said: list[str] = []
    info = SimpleNamespace(
        status=SimpleNamespace(value=status), driver_exit_code=code, error_type=kind, message=None
    )
    assert exit_code_of(info, said.append) == ends
    assert bool(said) == (code is None or not 0 <= code < 127)


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (" \n", "it is empty")])
def test_a_token_that_is_not_there(
    content: str | None, words: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    result = run_verb(plain)
    assert result.exit_code == EXIT_USAGE
    assert f"no token for the cluster in {file}: {words}" in result.stderr


@pytest.mark.parametrize(
    ("mode", "token", "sent"),
    [
        ("", None, False),
        ("", "t" * 64, True),
        ("token", "t" * 64, True),
        ("disabled", "t" * 64, False),
    ],
)
def test_how_to_follow_and_stop(
    mode: str, token: str | None, sent: bool, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own commands send a token only where they are told to."""

    class Server:
        address = "http://head:8265"
        submit = staticmethod(lambda *_, **named: "raysubmit_1")

        def __init__(self, address: str | None) -> None:
            ray_jobs._use_token()

    monkeypatch.setattr(ray_jobs, "JobServer", Server)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    result = run_verb(plain, "--no-follow")
    assert result.exit_code == EXIT_DONE, result.output
    front = "RAY_AUTH_MODE=token " if sent else ""
    at = "--address http://head:8265 raysubmit_1"
    assert f"  follow  {front}ray job logs --follow {at}\n" in result.output
    assert f"  stop    {front}ray job stop {at}    (" in result.output
    assert "tttt" not in result.output


class Head(NamedTuple):
    address: str
    token: Path
    folder: Path
    environment: dict[str, str]
    path: str

    def submit(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "actlas.jobs.cli", "submit", *arguments]
        return subprocess.Popen(
            [*command, "--address", self.address],
            env=self.environment | {"RAY_AUTH_TOKEN_PATH": str(self.token)} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with its job server, and a stand-in for ``actlas`` on its PATH."""
    folder = Path(tempfile.mkdtemp(prefix="as", dir="/tmp"))  # Ray's sockets want short paths
    tools, token = folder / "bin", folder / "token"
    tools.mkdir()
    (tools / "actlas").write_text(ACTLAS.format(python=sys.executable))
    (tools / "actlas").chmod(0o755)
    token.write_text("d" * 64)
    token.chmod(0o600)
    (folder / "run.yaml").write_text(CONFIG)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    clean |= {"HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    auth = {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ports = free_ports(3)
    start = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    start += ["--num-gpus=0", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}"]
    start += [f"--dashboard-port={ports[2]}", "--dashboard-agent-listen-port=0"]
    start += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=104857600"]
    start += ["--include-log-monitor=false", f"--temp-dir={folder}/r", "--disable-usage-stats"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [shutil.which("ray", path=path) or "ray", *start[1:]],
            env=clean | auth,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answers() -> bool:
        assert process.poll() is None, (folder / "head.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", ports[2])) == 0

    try:
        wait_until(answers, 240)
        yield Head(f"http://127.0.0.1:{ports[2]}", token, folder, clean, path)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.chaos
def test_jobs_end_as_they_ended(head: Head) -> None:
    """Exit codes, stops and kills; what a killed pod's preStop does; a token that is wrong."""
    config = str(head.folder / "run.yaml")
    codes = {
        "3": EXIT_QUARANTINE,
        "killed": EXIT_RESUME,
        "waits": EXIT_RESUME,
    }
    jobs = {name: head.submit(config, f"/stores/{name}", "run.device=cpu") for name in codes}
    refused = head.submit(config, "/stores/0", RAY_AUTH_TOKEN="wrong")
    said: dict[str, str] = {}
    for name in codes:
        if name != "waits":
            said[name] = jobs[name].communicate(timeout=240)[0]
    assert {name: jobs[name].returncode for name in said} == {
        name: code for name, code in codes.items() if name != "waits"
    }, said
    prefix = ["--executor", "ray", "--address", "auto"]
    given_here = ["plan.model=builtin:m", 'plan.corpus="/data/it\'s"', "run.workers=3"]
    for name, out in said.items():
        [line] = [line for line in out.splitlines() if line.startswith("called with ")]
        got = json.loads(line.removeprefix("called with "))
        assert got == ["extract", f"/stores/{name}", *prefix, *given_here, "run.device=cpu"]
        assert f"  status  actlas status /stores/{name}\n" in out
    assert "was killed by signal 9; finished shards are kept: submit it again" in said["killed"]

    [line] = [line for line in said["3"].splitlines() if line.startswith("  follow  ")]
    assert str(head.token) not in said["3"] and head.token.read_text() not in said["3"]
    shell = {"PATH": head.path, "RAY_AUTH_TOKEN_PATH": str(head.token)}
    followed = subprocess.Popen(  # in another shell, with the token alone
        ["sh", "-c", line.removeprefix("  follow  ")],
        env=head.environment | shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    assert "called with" in read_until(jobs["waits"], "called with ")
    rayjob = [*yaml.safe_load_all((ROOT / "deploy/kuberay/rayjob.yaml").read_text())][-1]
    pod = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    program, *arguments = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "python"
    arguments = [a.replace("http://127.0.0.1:8265", head.address) for a in arguments]
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token)}
    subprocess.run(
        [sys.executable, *arguments], env=head.environment | auth, check=True, timeout=240
    )
    out = jobs["waits"].communicate(timeout=240)[0]
    assert jobs["waits"].returncode == EXIT_RESUME
    assert "drained\n" in out  # it took 4 s; Ray's own patience is 3
    assert "the job was stopped; finished shards are kept" in out
    out = followed.communicate(timeout=240)[0]
    assert followed.returncode == 0, out
    assert 'called with ["extract", "/stores/3"' in out and "Authentication" not in out

    out = refused.communicate(timeout=240)[0]
    assert refused.returncode == EXIT_USAGE
    assert "the cluster requires a token, and the one that was sent is wrong" in out
    assert out.count("\n") == 1


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"it ended without {words!r}")
