"""Surroundings of a process that only the kernel can give: what ``/proc`` shows, and namespaces.

Making them needs root, as in a container or on a test machine; elsewhere the tests skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534
"""The user whose processes may not look at those of others."""

_AS_NOBODY = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"

SURROUNDINGS = {
    "none": ["env"],
    "another user": _AS_NOBODY.split(),
    **{
        f"hidepid={how}": [
            *("unshare", "--mount", "sh", "-c"),
            f'mount -t proc -o hidepid={how} proc /proc && exec {_AS_NOBODY} "$@"',
            "sh",
        ]
        for how in ("1", "2", "4")
    },
    "no /proc": [
        *("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc && exec "$@"', "sh")
    ],
    "/proc of processes alone": [
        *("unshare", "--mount", "sh", "-c"),
        *('mount -t proc -o subset=pid proc /proc && exec "$@"', "sh"),
    ],
    "a PID namespace": ["unshare", "--pid", "--fork", "--mount-proc"],
    "a PID namespace that sees the other's /proc": ["unshare", "--pid", "--fork"],
    "a time namespace": ["unshare", "--time", "--boottime", "5000", "--fork"],
}
"""The command that runs another one in each of the surroundings."""


def open_to_others(folder: Path) -> None:
    """Let every user into a folder of this test, through the session's own folders above it."""
    for above in [folder, *folder.parents]:
        mode = above.stat().st_mode
        if mode & 0o001 or above.stat().st_uid != os.getuid():
            return
        above.chmod(mode | 0o055)


def in_surroundings(name: str, *command: str) -> list[str]:
    """Return the command that runs another one in some surroundings."""
    return [*SURROUNDINGS[name], *command]


def require(name: str) -> None:
    """Skip a test where surroundings cannot be made on this machine."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        pytest.skip(f"surroundings ({name}) need root, unshare, setpriv and mount")
    command = in_surroundings(name, sys.executable, "-c", "import actlas.store.errors")
    tried = subprocess.run(command, capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"surroundings ({name}) cannot be made: {tried.stderr.decode().strip()}")
