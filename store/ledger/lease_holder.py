"""The process that holds a lease: how a lease file names it, and whether it is alive."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return the fields by which a lease names this process as its holder."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "pid_namespace": _pid_namespace(),
        "process_start": _process_start(pid),
        "since_unix_s": time.time(),
    }


def is_local(holder: dict[str, Any]) -> bool:
    """Return whether a holder's process id can be looked up here.

    That is so on the same host, in the same boot, and in the same PID namespace.
    """
    same = {"host": socket.gethostname(), "boot": _boot(), "pid_namespace": _pid_namespace()}
    return all(holder.get(key) == value for key, value in same.items()) and _boot() is not None


def is_running(holder: dict[str, Any]) -> bool:
    """Return whether the process of a local holder is still running."""
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    started = _process_start(pid)
    return started is not None and started == holder.get("process_start") and not _zombie(pid)


def description(holder: dict[str, Any]) -> str:
    """Return a holder as messages name it."""
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _boot() -> str | None:
    """Return the kernel's id of this boot, or None if it has none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else None


def _pid_namespace() -> str | None:
    """Return the PID namespace of this process: a container has its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """Return when a process started, in kernel ticks since boot: process ids are reused."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def _zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
