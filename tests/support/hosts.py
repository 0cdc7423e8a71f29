"""Three hosts of a Ray cluster on one machine, each in a network namespace of its own.

A bridge, in a fourth namespace, connects them, so that nothing of the machine's own network
changes. To pull a host's cable is to take its port of the bridge down: its packets are lost without
a word, in both directions, and its processes go on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.jobs import PATHS, ROOT

PORT = 6379
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "n" * 64}


def unavailable() -> str | None:
    """Return why no namespaces can be made here; None where they can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "this machine has no `ip netns` (Linux, iproute2)"
    name = f"actlas-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()} (run as root)"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Hosts:
    """A head without CPUs, where the driver runs, and hosts of one CPU each.

    Parameters
    ----------
    folder : Path
        For what they say, and for Ray's files.
    n_workers : int
        Hosts beside the head.
    """

    def __init__(self, folder: Path, n_workers: int = 2) -> None:
        self._mark = uuid.uuid4().hex[:6]
        self._folder, self._started = folder, list[subprocess.Popen[bytes]]()
        self._switch = f"actlas-{self._mark}-switch"
        self.names = [f"actlas-{self._mark}-{host}" for host in range(n_workers + 1)]
        self.address = f"{self._address(0)}:{PORT}"

    def __enter__(self) -> Hosts:
        try:
            self._wire()
            here = ["--block", "--object-store-memory", str(80 << 20)]
            head = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
            temporary = [f"--temp-dir=/tmp/a{self._mark}"]  # a socket's path must be short
            self._ray(0, "start", *head, *temporary, f"--node-ip-address={self._address(0)}", *here)
            self._wait_for_nodes(1)
            for host in range(1, len(self.names)):
                where = [f"--address={self.address}", f"--node-ip-address={self._address(host)}"]
                self._ray(host, "start", *where, "--num-cpus=1", *here)
                self._wait_for_nodes(host + 1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.terminate()
        for name in self.names:
            for pid in self._pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.kill()
            process.wait()
        for name in (*self.names, self._switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        shutil.rmtree(f"/tmp/a{self._mark}", ignore_errors=True)

    def drive(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a driver on the head's host; what it says is in ``driver.err``."""
        words = [sys.executable, "-m", "support.drive", *arguments, "--executor=ray"]
        return self._start(0, "driver", *words, f"--address={self.address}")

    def said(self) -> str:
        """What the driver said."""
        return (self._folder / "driver.err").read_text()

    @contextlib.contextmanager
    def cut(self, host: int) -> Iterator[None]:
        """Pull a host's cable while the context is open."""
        _ip("-n", self._switch, "link", "set", f"p{host}", "down")
        try:
            yield
        finally:
            _ip("-n", self._switch, "link", "set", f"p{host}", "up")

    def _wire(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for host, name in enumerate(self.names):
            _ip("netns", "add", name)
            ends = ["e0", "netns", name, "type", "veth", "peer", "name", f"p{host}"]
            _ip("link", "add", *ends, "netns", self._switch)
            _ip("-n", self._switch, "link", "set", f"p{host}", "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{self._address(host)}/24", "dev", "e0")
            for device in ("lo", "e0"):
                _ip("-n", name, "link", "set", device, "up")

    def _address(self, host: int) -> str:
        return f"10.99.0.{host + 1}"

    def _ray(self, host: int, *words: str) -> None:
        self._start(host, f"host-{host}", str(Path(sys.executable).with_name("ray")), *words)

    def _start(self, host: int, name: str, *words: str) -> subprocess.Popen[bytes]:
        environment: dict[str, Any] = {"PYTHONPATH": PATHS, "PYTHONSAFEPATH": "1", **TOKEN}
        with (
            (self._folder / f"{name}.out").open("wb") as out,
            (self._folder / f"{name}.err").open("wb") as err,
        ):
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=os.environ | environment,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def _wait_for_nodes(self, n: int) -> None:
        """Wait until each host's Ray says that it runs."""
        limit = time.monotonic() + 120
        while True:
            outs = [self._folder / f"host-{host}.out" for host in range(n)]
            if all("Ray runtime started" in out.read_text() for out in outs):
                return
            alive = all(process.poll() is None for process in self._started)
            said = [outs[-1].read_text()[-2000:], outs[-1].with_suffix(".err").read_text()[-2000:]]
            assert alive and time.monotonic() < limit, "\n".join(said)
            time.sleep(0.2)

    @staticmethod
    def _pids(name: str) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]
