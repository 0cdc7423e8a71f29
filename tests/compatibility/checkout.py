"""Copies of the code at other commits, and sessions that run commands with such a copy."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

OLD = "be5a194810496011df0894a5fc51593430f5e50a"
"""The commit whose code wrote the fixture: the last one before the modules were moved."""
ROOT = Path(__file__).resolve().parents[2]
HERE = "/proc/self/cwd"
"""The working directory of a process, as an absolute path.

A store holds the absolute paths of its model, its corpus and its sparse autoencoders. With this
prefix the store can be moved together with them, and holds no path of the machine that wrote it.
"""
SESSION_S = 280.0
_SESSION = Path(__file__).with_name("session.py")

Step = dict[str, Any]
"""One thing that a session does: see ``session.run``."""


def has(commit: str) -> bool:
    """Whether the tests lie in a git checkout whose history has this commit."""
    asked = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    try:
        return subprocess.run(asked, cwd=ROOT, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def archive(commit: str, folder: Path) -> Path:
    """Write the package as of a commit into a folder; return the ``src`` folder there."""
    names = ["src", "store", "pipeline", "analysis", "jobs"]
    left_out = ":(exclude)pipeline/builtin/actlas-6m"  # megabytes that no store here needs
    command = ["git", "archive", "--format=tar", commit, "--", *names, left_out]
    made = subprocess.run(command, cwd=ROOT, capture_output=True)
    if made.returncode:
        raise RuntimeError(f"git archive {commit}: {made.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as tar:
        tar.extractall(folder, filter="tar")
    return folder / "src"


def run(source: Path, folder: Path, steps: Sequence[Step]) -> list[Result]:
    """Run steps in one process, with the code below ``source`` and ``folder`` as its directory.

    Returns
    -------
    list of Result
        One per command, in order.

    Raises
    ------
    RuntimeError
        A step other than a command failed.
    """
    todo, told = folder / "steps.json", folder / "results.json"
    todo.write_text(json.dumps({"source": str(source), "steps": list(steps)}))
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MKL_CBWR": "COMPATIBLE",  # the same bits, however operands are aligned in memory
    }
    command = [sys.executable, str(_SESSION), str(todo), str(told)]
    made = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SESSION_S
    )
    if made.returncode:
        raise RuntimeError(f"the session ended with {made.returncode}:\n{made.stderr[-6000:]}")
    results = json.loads(told.read_text())
    for path in (todo, told):
        path.unlink()
    commands = zip(steps, results, strict=True)
    return [
        Result(" ".join(step["args"]), step["code"], **found)
        for step, found in commands
        if step["do"] == "cli"
    ]


class Result(NamedTuple):
    """The outcome of a command.

    Attributes
    ----------
    command : str
        The command's arguments, separated by spaces.
    expected : int
        The exit code that the command must have.
    code : int or str
        The exit code that it had, below zero for a signal; or the traceback of an exception.
    stdout, stderr : str
        The command's output.
    """

    command: str
    expected: int
    code: int | str
    stdout: str = ""
    stderr: str = ""

    def check(self) -> None:
        """Raise ``AssertionError`` where the command had another exit code."""
        said = f"{self.stdout}\n{self.stderr}"
        assert self.code == self.expected, f"actlas {self.command}: {self.code}\n{said}"


def cli(*arguments: object, code: int = 0, kill: str | None = None, nth: int = 1) -> Step:
    """Return the step that runs a command, which must exit with ``code``.

    With ``kill`` the command gets SIGKILL instead, when it is about to create a file whose path
    ends so, for the ``nth`` time.
    """
    step: Step = {"do": "cli", "args": [str(argument) for argument in arguments], "code": code}
    return step if kill is None else {**step, "kill": kill, "nth": nth, "code": -9}


def copy(source: str, target: str) -> Step:
    """Return the step that copies a file or a folder."""
    return {"do": "copy", "source": source, "target": target}


def flip(path: str) -> Step:
    """Return the step that flips a bit in the first file that a glob matches."""
    return {"do": "flip", "path": path}


def remove(path: str) -> Step:
    """Return the step that removes the files that a glob matches."""
    return {"do": "remove", "path": path}


def release(store: str) -> Step:
    """Return the step that releases the lease of a killed driver."""
    return {"do": "release", "store": store}
