"""Drivers as processes: started, killed, waited for, and looked for when they should be gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from support.jobs import PATHS, ROOT

MARK = "ACTLAS_TEST_MARK"
"""In the environment of a driver and of every process that it starts, Ray's among them."""
LOADED = (
    "support.drive",
    "support.frozen",
    "actlas.jobs.cli.extract",
    "actlas.jobs.executors.inline",
)
"""What processes are forked from has loaded these."""


class Driver:
    """A driver at work in a process group of its own.

    Parameters
    ----------
    folder : path
        Where what it says is kept.
    *arguments : str
        Of ``actlas extract``.
    fresh : bool
        Started as a user starts it, ``python -m support.drive``, in a second or more. Otherwise
        forked from a process that has loaded everything and runs no thread.
    before : sequence of str
        The command that starts it in other surroundings, fresh.
    **environment : str
        Beside what it inherits.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        fresh: bool = False,
        before: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.started = time.time()
        self._out, self._err = (folder / f"{self.mark}.{end}" for end in ("out", "err"))
        environment = {
            **{"PYTHONPATH": PATHS, "PYTHONSAFEPATH": "1"},
            **environment,
            MARK: self.mark,
        }
        self._process: subprocess.Popen[bytes] | BaseProcess
        if fresh or before:
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._process = subprocess.Popen(
                    [*before, sys.executable, "-m", "support.drive", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=ROOT,
                    env=os.environ | environment,
                    start_new_session=True,
                )
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(LOADED))
            self._process = context.Process(
                target=_drive,
                args=(arguments, environment, str(self._out), str(self._err)),
                daemon=True,
            )
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def code(self) -> int | None:
        """Return its exit code, minus the signal that killed it; None while it lives."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    def wait(self, seconds: float = 240) -> int:
        """Wait for its end, and return its exit code."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.wait(seconds)
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"still at work after {seconds} s: {self.said()}"
        return code

    def kill(self) -> bool:
        """Kill it; False where it had ended by itself before."""
        if self.code() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send it a signal; to its whole group, as a terminal does."""
        (os.killpg if group else os.kill)(self.pid, number)

    def said(self) -> str:
        """Return what it has said on stderr."""
        return self._err.read_text() if self._err.exists() else ""

    def told(self) -> str:
        """Return what it has said on stdout."""
        return self._out.read_text() if self._out.exists() else ""


def _drive(arguments: tuple[str, ...], environment: dict[str, str], out: str, err: str) -> None:
    os.setsid()
    for name, number in ((out, 1), (err, 2)):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name in [name for name in os.environ if name.startswith("ACTLAS_TEST_")]:
        del os.environ[name]  # of whichever test forked first
    os.environ.update(environment)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 - for as long as this process lives
    sys.argv = ["drive", *arguments]
    from support import drive

    drive.main()


def marked(mark: str) -> dict[int, str]:
    """Return the living processes whose environment has a mark: pid to command."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            its_own = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            if its_own and alive(int(folder.name)):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = command.strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def stat_of(pid: int) -> str:
    """Return a process's state: R, S, D, T where it is stopped, Z; X where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def pending(pid: int, number: int) -> bool:
    """Whether a signal that was sent to a process has not reached it yet."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    [mask] = [line.split()[1] for line in status if line.startswith("ShdPnd:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def alive(pid: int) -> bool:
    """Whether a process lives and may do something."""
    return stat_of(pid) not in "ZX"


def until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Wait for something to become true: the seconds that it took, None where it did not."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(0.02)
    return time.monotonic() - began
