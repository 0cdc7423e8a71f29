"""Dying, or being refused, at any system call that changes what lies under a folder.

The calls of a step are counted in one run, and each then has its turn in another.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

NAMES = (
    *("open", "write", "fsync", "fdatasync", "link", "symlink", "rename", "replace", "unlink"),
    *("remove", "mkdir", "rmdir", "truncate", "ftruncate"),
)
"""Calls that change files, folders or what is durable of them; ``open`` where it may create."""
_BY_DESCRIPTOR = ("write", "fsync", "fdatasync", "ftruncate")
_WRITING = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC
TAKES_SPACE = frozenset({"open", "write", "fsync", "fdatasync", "link", "mkdir", "rename"})
"""What a full disk refuses; removing works."""


class Call(NamedTuple):
    """One call that changes something: its name, and the path it is about."""

    name: str
    path: str


class Died(BaseException):
    """The process is dead: no handler's work, and nothing it does later, has any effect."""


Fate = Callable[[int, Call, Callable[[], None]], None]
"""Is asked before each call (its number, the call, and a way to do half of a write); may raise."""


def live(n: int, call: Call, half: Callable[[], None]) -> None:
    """Let every call through."""


def dying(at: int) -> Fate:
    """Return the fate of dying in this process at call ``at``, in the middle of a write."""

    def fate(n: int, call: Call, half: Callable[[], None]) -> None:
        if n == at:
            half()
        if n >= at:
            raise Died(f"died at call {at}")

    return fate


def killed(at: int) -> Fate:
    """Return the fate of SIGKILL at call ``at``, in the middle of a write."""

    def fate(n: int, call: Call, half: Callable[[], None]) -> None:
        if n == at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    return fate


def refused(at: int, code: int) -> Fate:
    """Return the fate of a disk that fails at call ``at``.

    A full disk (ENOSPC, EDQUOT) stays full and refuses what takes space; a read-only one (EROFS)
    refuses everything from then on; an I/O error strikes once.
    """

    def fate(n: int, call: Call, half: Callable[[], None]) -> None:
        if code == errno.EIO:
            strikes = n == at
        elif code == errno.EROFS:
            strikes = n >= at
        else:
            strikes = n >= at and call.name in TAKES_SPACE
        if strikes:
            if n == at:
                half()
            raise OSError(code, os.strerror(code), call.path)

    return fate


class SystemCalls:
    """Watches this process's calls under a folder while it is entered, and hands out fates.

    Parameters
    ----------
    root : path
        Only what lies under it is watched.
    fate : callable

    Attributes
    ----------
    seen : list of Call
        In order. From several threads the order may differ from run to run.
    """

    def __init__(self, root: Path, fate: Fate = live) -> None:
        self.root = str(root)
        self.fate = fate
        self.seen: list[Call] = []
        self._lock = threading.Lock()
        self._descriptors: dict[int, str] = {}
        self._real: dict[str, Any] = {}

    def __enter__(self) -> SystemCalls:
        for name in (*NAMES, "close"):
            self._real[name] = getattr(os, name)
            setattr(os, name, self._closing if name == "close" else self._watched(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def _closing(self, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)
        self._real["close"](descriptor)

    def _watched(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any, **named: Any) -> Any:
            path = self._path(name, arguments, named)
            if path is None:
                return real(*arguments, **named)
            if name != "open" or arguments[1] & _WRITING:

                def half() -> None:
                    if name == "write":
                        real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])

                with self._lock:
                    self.seen.append(Call(name, path))
                    self.fate(len(self.seen) - 1, self.seen[-1], half)
            result = real(*arguments, **named)
            if name == "open":
                self._descriptors[result] = path
            return result

        return call

    def _path(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str | None:
        """Return the path that a call is about, or None where it is none of ours."""
        if name in _BY_DESCRIPTOR:
            return self._descriptors.get(arguments[0])
        final = arguments[1] if name in ("link", "symlink", "rename", "replace") else arguments[0]
        path = os.fsdecode(final)
        folder = named.get("dir_fd", named.get("dst_dir_fd"))
        if folder is not None and not path.startswith("/"):
            if folder not in self._descriptors:
                return None
            path = f"{self._descriptors[folder]}/{path}"
        return path if f"{path}/".startswith(f"{self.root}/") else None


@contextmanager
def ram_folder() -> Iterator[Path]:
    """Yield a folder where the session's files lie, in memory where there is room for them.

    Syncing costs nothing there, and what a killed session leaves, the next one removes.
    """
    folder = Path(tempfile.mkdtemp(prefix="actlas-"))
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder)


def copy_store(source: Path, to: Path) -> Path:
    """Copy a store by links: whoever changed a file in place would change the source too."""
    return Path(shutil.copytree(source, to, copy_function=os.link))


def overwrite(path: Path, data: bytes) -> None:
    """Put other bytes under a name, and leave other links to the old ones alone."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)


def dies(step: Callable[[], object], root: Path, at: int) -> bool:
    """Run a step in this process that dies at call ``at``; False where it ended before that."""
    with SystemCalls(root, dying(at)) as calls, suppress(Died):
        step()
    return len(calls.seen) > at


def _doomed(step: Callable[..., object], root: Path, at: int, arguments: tuple[Any, ...]) -> None:
    with SystemCalls(root, killed(at)):
        step(*arguments)


class Doomed:
    """Runs steps in processes of their own, each killed by SIGKILL at a chosen call.

    The processes are forked from one that has loaded everything and runs no thread.
    """

    def __init__(self, *modules: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *modules])

    def dies(self, step: Callable[..., object], root: Path, at: int, *arguments: Any) -> bool:
        """Run a step that is killed at call ``at``; False where it ended well before that."""
        process = self._context.Process(target=_doomed, args=(step, root, at, arguments))
        process.start()
        process.join()
        code = process.exitcode
        process.close()
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"exit code {code} of a step to be killed at call {at}")
        return code != 0
