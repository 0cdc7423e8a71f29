"""A Ray of our own is for its driver alone: who has no token, or another, does not get in."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.jobs import PATHS

from actlas.jobs.doctor import ray as checks_cluster
from actlas.jobs.ray import address as ray_token
from actlas.jobs.ray import cluster as ray_cluster
from actlas.jobs.ray.address import accepts_token, authenticate
from actlas.jobs.ray.cluster import connected
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ConfigError

pytest.importorskip("ray")

HOST = """
import os, sys
from actlas.jobs.ray.cluster import connected
from actlas.pipeline.options import RunOptions
with connected(RunOptions(executor="ray", workers=1)):
    import ray
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.read()
"""
GUEST = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="error", configure_logging=False, log_to_driver=False)
print("inside:", ray.cluster_resources().get("CPU"), flush=True)
"""


def guest(address: str, **more: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": PATHS, "HOME": "/nonexistent", **more}
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray replaces 127.0.0.1
    return subprocess.Popen(
        [sys.executable, "-c", GUEST, address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def knocks(address: str, right: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``authenticate`` and the doctor say at the door of that Ray, and how soon."""

    def refused(**environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(ConfigError) as caught:
                authenticate(address)
        assert right not in str(caught.value)
        return str(caught.value)

    began = time.monotonic()
    assert (
        accepts_token(address, right),
        accepts_token(address, "f" * 64),
        accepts_token(address, None),
    ) == (
        True,
        False,
        False,
    )
    wants = f"{address}: the cluster requires a token, and "
    none_here = f"no token for the cluster in {folder / '.ray/auth_token'}: No such file"
    ours = {"RAY_AUTH_TOKEN": right}
    assert refused().startswith(f"{wants}none was sent. Set RAY_AUTH_TOKEN_PATH to a file")
    assert f"{wants}the one from RAY_AUTH_TOKEN is wrong" in refused(RAY_AUTH_TOKEN="f" * 64)
    assert refused(RAY_AUTH_MODE="token").startswith(none_here)
    assert "prevents sending one. Unset RAY_AUTH_MODE." in refused(RAY_AUTH_MODE="disabled", **ours)
    assert "expected a token" in refused(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=f"{right}\n{right}")
    assert refused(**ours).endswith(
        "this process sends none. Export RAY_AUTH_MODE=token."
    )  # ray is loaded
    file = folder / "token"
    file.write_text(right + "\n")
    for found in (ours, {"RAY_AUTH_TOKEN_PATH": str(file)}):
        for more in ({"RAY_AUTH_MODE": "token"}, dict[str, str]()):
            with monkeypatch.context() as patch:
                patch.delitem(sys.modules, "ray", raising=False)
                patch.setenv("RAY_AUTH_MODE", "")  # put back as it was, whatever is set there
                for name, value in (found | more).items():
                    patch.setenv(name, value)
                authenticate(address)
                assert os.environ["RAY_AUTH_MODE"] == "token"
    security = checks_cluster._security
    assert security(address).result == "ok"
    assert time.monotonic() - began < 60, "a second is plenty; Ray takes 20 for each of ten"
    monkeypatch.setattr(checks_cluster, "accepts_token", lambda *_: True)
    assert security(address).result == "warning"


def test_who_answers_no_question_of_tokens_is_joined_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_token, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert accepts_token(address, None) is None
        authenticate(address)


def test_what_ray_found_itself_is_told_with_where_tokens_are() -> None:
    """Of ``auto`` only Ray knows where it is: it tries for 20 s, and our words are the last."""

    class Ray:
        @staticmethod
        def init(**_: object) -> None:
            raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379.")

    with pytest.raises(
        ConfigError, match=r"10\.0\.0\.1:6379 \(its token is read from RAY_AUTH_TOKEN, "
    ):
        ray_cluster._join(Ray, "auto")
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379\. Start one"):
        ray_cluster._join(Ray, "10.0.0.1:6379")


def test_a_wrong_token_is_told_at_once_and_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before Ray is even started: of :func:`connected`, whose own tries take 20 s."""
    monkeypatch.setattr(ray_cluster, "check_port", lambda _: None)
    asked: list[str] = []

    def refuse(address: str) -> None:
        asked.append(address)
        raise ConfigError("no")

    monkeypatch.setattr(ray_cluster, "authenticate", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    monkeypatch.setitem(sys.modules, "ray", None)  # to import it would raise
    for address in ("head:6379", "auto", None):
        with (
            pytest.raises(ConfigError, match=r"^no$"),
            connected(RunOptions(executor="ray", workers=1, address=address)),
        ):
            pass
    assert asked == ["head:6379", "there:6379", "there:6379"]


def listened_on(pid: int) -> set[str]:
    """The addresses on which a process and those that it started accept connections."""
    import psutil

    parent = psutil.Process(pid)
    listening: set[str] = set()
    n_processes = 0
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets = process.net_connections(kind="inet")
            listening |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
            n_processes += 1
    assert n_processes > 3  # the head's server, the machine's, their agents
    return {address.removeprefix("::ffff:") for address in listening}


@pytest.mark.ray
def test_nobody_joins_a_ray_of_our_own_without_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k[:8] != "RAY_AUTH"}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": PATHS},
    )
    guests: list[subprocess.Popen[str]] = []
    for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        assert host.stdout is not None
        address, token = host.stdout.readline().split()
        assert len(token) == 64
        assert address.startswith("127.0.0.1:")
        assert listened_on(host.pid) == {"127.0.0.1"}
        began = time.monotonic()
        right = guest(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        wrong = [
            guest(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64),
            guest(address, RAY_AUTH_MODE="disabled"),
        ]
        guests = [right, *wrong]
        said, _ = right.communicate(timeout=240)
        assert "inside" in said  # the control: who has the token gets in
        until = time.monotonic() + 3 + (time.monotonic() - began)  # the others get twice its time
        for one in wrong:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(max(0.1, until - time.monotonic()))
            one.kill()
            assert "inside" not in one.communicate()[0] and one.returncode != 0
        knocks(address, token, tmp_path, monkeypatch)
    finally:
        for one in guests:
            one.kill()
        host.communicate("", timeout=240)
