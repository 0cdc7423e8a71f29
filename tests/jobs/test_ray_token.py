"""A Ray of our own is for its driver alone: who has no token, or another, does not get in."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from support.jobs import PATHS

pytest.importorskip("ray")

HOST = """
import os, sys
from actlas.jobs.ray_cluster import connected
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
    return subprocess.Popen(
        [sys.executable, "-c", GUEST, address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_nobody_joins_a_ray_of_our_own_without_its_token() -> None:
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k[:8] != "RAY_AUTH"}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": PATHS},
    )
    guests: list[subprocess.Popen[str]] = []
    try:
        assert host.stdout is not None
        address, token = host.stdout.readline().split()
        assert len(token) == 64
        began = time.monotonic()
        right = guest(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        wrong = [
            guest(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64),
            guest(address, RAY_AUTH_MODE="disabled"),
        ]
        guests = [right, *wrong]
        said, _ = right.communicate(timeout=60)
        assert "inside" in said  # the control: who has the token gets in
        until = time.monotonic() + 3 + (time.monotonic() - began)  # the others get twice its time
        for one in wrong:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(max(0.1, until - time.monotonic()))
            one.kill()
            assert "inside" not in one.communicate()[0] and one.returncode != 0
    finally:
        for one in guests:
            one.kill()
        host.communicate("", timeout=60)
