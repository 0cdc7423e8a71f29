"""Which files of a folder are opened, as the kernel says it: by Python, Rust or C alike."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_OPENED, _IS_FOLDER = 0x20, 0x40000000


@contextmanager
def opened_files(folder: Path) -> Iterator[set[str]]:
    """Collect the paths, inside a folder, of the files that are opened meanwhile (inotify)."""
    if sys.platform != "linux":
        pytest.skip("which files are opened is watched with inotify, which only Linux has")
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    found: set[str] = set()
    try:
        places: dict[int, Path] = {}
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            places[libc.inotify_add_watch(queue, os.fsencode(path), _OPENED)] = path
        assert min(places) > 0, "a watch for every folder"
        yield found
        for place, name in _events(queue):
            found.add((places[place] / name).relative_to(folder).as_posix())
    finally:
        os.close(queue)


def _events(queue: int) -> Iterator[tuple[int, str]]:
    while True:
        try:
            data = os.read(queue, 1 << 20)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            place, mask, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length
            assert place > 0, "the queue overflowed"
            if not mask & _IS_FOLDER:
                yield place, os.fsdecode(name)
