"""A process that runs a list of commands with whichever ``actlas`` comes first on its path.

``python session.py STEPS.json RESULTS.json``, with ``PYTHONPATH`` at the ``src`` folder of a copy
of the code. This file uses the command line alone (``actlas.jobs.cli:main``), so it runs the code
of any commit. One session builds the fixture; another runs the old code on stores that the new code
has written. Importing torch takes seconds, hence one process for all steps.

Relative paths and ``/proc/self/cwd/…`` are seen from the folder that the session runs in.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOCK = 1_700_000_000.25
"""The time that the clock shows throughout, so that two sessions write the same bytes."""
HOST = "fixture-host"
CHILD_S = 180.0
"""A command that is to be killed may run this long."""


def main() -> None:
    """Run the steps in the first argument's file; write their results to the second argument's."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    time.time = lambda: CLOCK
    socket.gethostname = lambda: HOST
    actlas = importlib.import_module("actlas")
    source = Path(str(actlas.__file__)).resolve().parents[1]
    expected = Path(plan["source"]).resolve()
    if source != expected:
        sys.exit(f"actlas was imported from {source}, expected {expected}")
    results = [run(step) for step in plan["steps"]]
    Path(sys.argv[2]).write_text(json.dumps(results))


def run(step: dict[str, Any]) -> dict[str, Any]:
    """Run one step. A command's result is its exit code (negative: a signal) and its output."""
    do = step["do"]
    if do == "cli":
        if "kill" in step:
            return killed(step["args"], step["kill"], step["nth"])
        return command(step["args"])
    if do == "copy":
        copy(Path(step["source"]), Path(step["target"]))
    elif do == "flip":
        flip(min(Path().glob(step["path"])))
    elif do == "remove":
        for path in sorted(Path().glob(step["path"])):
            path.unlink()
    elif do == "release":
        release(Path(step["store"]))
    elif do == "default":
        set_default(step["function"], step["name"], step["value"])
    else:
        raise ValueError(f"no such step: {step}")
    return {}


def command(arguments: list[str]) -> dict[str, Any]:
    """Run ``actlas`` with these arguments."""
    from actlas.jobs.cli import main as actlas

    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            actlas(arguments)
        except SystemExit as ended:
            code = ended.code
        except BaseException:  # noqa: BLE001 - returned in place of an exit code, which fails the test
            code = traceback.format_exc()
    code = 0 if code is None else code
    return {"code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


def killed(arguments: list[str], at: str, nth: int) -> dict[str, Any]:
    """Run a command in a child process that is killed when it is about to create a file.

    ``at`` is the end of that file's path; the child gets SIGKILL at its ``nth`` such call. Files of
    a store get their final names by ``os.link``, other results by ``os.replace``. So the files are
    those that a kill at this moment leaves: the staged file is complete and has no final name.
    """
    child = os.fork()
    if child == 0:
        left = [nth]
        for name in ("link", "replace"):
            setattr(os, name, _deadly(getattr(os, name), at, left))
        try:
            sys.stderr.write(f"{command(arguments)}\n")
            sys.stderr.flush()
        finally:
            os._exit(99)
    deadline = time.monotonic() + CHILD_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return {"code": os.waitstatus_to_exitcode(status)}
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"{arguments} ran for {CHILD_S:.0f} s and did not create {at}")


def _deadly(call: Callable[..., None], at: str, left: list[int]) -> Callable[..., None]:
    def deadly(source: Any, target: Any, *more: Any, **named: Any) -> None:
        if os.fspath(target).endswith(at):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        call(source, target, *more, **named)

    return deadly


def flip(path: Path) -> None:
    """Flip one bit of the byte at a quarter of a file's length."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 4
    path.write_bytes(data)


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def release(store: Path) -> None:
    """Release the lease of a killed driver; a driver on another machine would wait a minute."""
    for lease in (store / "ledger/lease").glob("*.json"):
        lease.with_suffix(".released").write_text("released\n")


def set_default(function: str, name: str, value: Any) -> None:
    """Change a function's keyword default. For the code of a fixed commit alone."""
    module, _, attribute = function.partition(":")
    getattr(importlib.import_module(module), attribute).__kwdefaults__[name] = value


if __name__ == "__main__":
    main()
