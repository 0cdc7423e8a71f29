"""Processes: how a file names the process that wrote it, and whether that process still runs.

A process id means something only within its PID namespace and its boot, and ``/proc`` may hide the
processes of other users (``hidepid``), show those of another namespace, or be absent. A process
therefore counts as ended only on proof: the kernel knows no process of that id (``ESRCH``), or
``/proc`` shows that the id belongs to a later process, or to one that has exited. Without proof the
answer is "unknown"; a namespace or a boot that cannot be read equals no other.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

State = Literal["running", "ended", "unknown"]

LARGEST_PID = 1 << 30
"""No kernel gives out larger process ids."""

_TAG = re.compile(r"([0-9a-f]{12})-(\d{1,10})-(\d{1,20})", re.ASCII)


def this_process() -> dict[str, Any]:
    """Return the fields by which a file names this process."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "pid_namespace": _namespace("pid"),
        "time_namespace": _namespace("time"),
        "process_start": _start_and_state("self")[0],
    }


def is_local(process: Mapping[str, Any]) -> bool:
    """Return whether a process's id can be looked up here.

    That is so on the same host, in the same boot, and in the same PID namespace.

    Parameters
    ----------
    process : mapping
        The fields of :func:`this_process`, as another process wrote them.
    """
    ours = {"host": socket.gethostname(), "boot": _boot(), "pid_namespace": _namespace("pid")}
    return all(value is not None and process.get(key) == value for key, value in ours.items())


def state_of(process: Mapping[str, Any]) -> State:
    """Return whether a process is running, has ended, or cannot be told.

    It cannot be told of a process of another host, boot or PID namespace, nor where the kernel has
    a process of that id and ``/proc`` does not show when it started: the id may be another's by
    now.

    Parameters
    ----------
    process : mapping
        The fields of :func:`this_process`, as another process wrote them. They are not trusted.
    """
    pid = process.get("pid")
    if not is_local(process) or type(pid) is not int or not 0 < pid <= LARGEST_PID:
        return "unknown"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "ended"
    except OSError:
        pass  # EPERM: the process exists, and is another user's
    if not _numbered_as_here():
        return "unknown"
    started, state = _start_and_state(str(pid))
    if state in ("Z", "X"):
        return "ended"
    # Times since the boot differ between time namespaces. Earlier versions did not write theirs.
    same_clock = process.get("time_namespace") in (None, _namespace("time"))
    if started is None or not same_clock or not isinstance(process.get("process_start"), str):
        return "unknown"
    return "running" if started == process["process_start"] else "ended"


def description(process: Mapping[str, Any]) -> str:
    """Return a process as messages name it."""
    return f"process {process.get('pid')} on {process.get('host')}"


def tag() -> str:
    """Return this process as a part of a file name, to be read by :func:`state_of_tag`.

    Where the boot or the PID namespace is unknown, the tag equals that of no other process.
    """
    return _tag_of(os.getpid())


@functools.lru_cache(maxsize=4)
def _tag_of(pid: int) -> str:
    """Return the tag of this process, which a fork changes with its id."""
    ours = this_process()
    return f"{_place(ours)}-{pid}-{ours['process_start'] or 0}"


def is_tag(text: str) -> bool:
    """Return whether a text is a tag, of whichever process."""
    return _TAG.fullmatch(text) is not None


def state_of_tag(text: str) -> State:
    """Return the state of the process of a tag; unknown for a text that is no tag."""
    found = _TAG.fullmatch(text)
    ours = this_process()
    if found is None or found[1] != _place(ours):
        return "unknown"
    started = None if found[3] == "0" else found[3]
    return state_of({**ours, "pid": int(found[2]), "process_start": started})


def _place(process: Mapping[str, Any]) -> str:
    """Return a digest of where a process id and a start time have their meaning."""
    fields = [process[key] for key in ("host", "boot", "pid_namespace", "time_namespace")]
    if process["boot"] is None or process["pid_namespace"] is None:
        fields.append(uuid.uuid4().hex)
    return hashlib.sha256(repr(fields).encode()).hexdigest()[:12]


def _boot() -> str | None:
    """Return the kernel's id of this boot, or None if it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def _namespace(kind: Literal["pid", "time"]) -> str | None:
    """Return a namespace of this process, or None if it cannot be read or the kernel has none."""
    try:
        return str(Path(f"/proc/self/ns/{kind}").readlink())
    except OSError:
        return None


def _numbered_as_here() -> bool:
    """Return whether ``/proc`` has this PID namespace's numbers: it may be mounted by another's."""
    try:
        return str(Path("/proc/self").readlink()) == str(os.getpid())
    except OSError:
        return False


def _start_and_state(pid: str) -> tuple[str | None, str | None]:
    """Return a process's start, in ticks since the boot, and its state; None where hidden."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # a command's name need not be UTF-8
    except OSError:
        return None, None
    fields = stat.rpartition(b")")[2].split()
    return fields[19].decode(), fields[0].decode()
