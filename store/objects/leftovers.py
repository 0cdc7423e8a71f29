"""Temporary files and folders: what a killed process leaves of them is swept by the next one.

Each is a hidden path whose name holds its process, so that a leftover is known from what a living
process is writing::

    .results.3f2a9c0d1b7e-4242-8837212.1a2b3c4d.part
     name    host and boot-pid-start   random   end

Only what a process of this host, boot and PID namespace left is removed, and only once that process
is known to have ended: see :mod:`actlas.store.objects.processes`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actlas.store.objects import processes
from actlas.store.objects.faults import writing

NAME_BYTES = 64
"""The largest part of a name that is repeated in a temporary one: a name may have 255 bytes."""

PART, PLANNING, OLD = "part", "planning", "old"
"""Ends of names: a file or folder being written, a store being planned, and what is replaced."""

_TEMPORARY = "tmp"


def beside(final: Path, end: str = PART) -> Path:
    """Return a new hidden path in the folder of a final one. Nothing is created.

    Parameters
    ----------
    final : Path
        The path that the file or folder will get.
    end : str
        The end of the name, which says what it is.
    """
    name = f".{_stem(final)}.{processes.tag()}.{uuid.uuid4().hex[:8]}.{end}"
    return final.parent / name


def leftovers(final: Path, end: str) -> list[Path]:
    """Return the hidden paths of one end beside a final path whose processes have ended.

    Parameters
    ----------
    final : Path
        The path that they would have got.
    end : str
        The end of their names.
    """
    pattern = _pattern(final, end)
    found = []
    for path in sorted(final.parent.glob(f".{glob.escape(_stem(final))}.*.{end}")):
        name = pattern.fullmatch(path.name)
        if name is not None and processes.state_of_tag(name[1]) == "ended":
            found.append(path)
    return found


def sweep(final: Path, end: str = PART) -> None:
    """Remove what killed processes left beside a final path: see :func:`leftovers`."""
    for path in leftovers(final, end):
        remove(path)


def remove(path: Path) -> None:
    """Remove a temporary file or folder as far as possible: what stays does no harm."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def is_temporary(name: str, final: Path, end: str = PART) -> bool:
    """Return whether a name is one that :func:`beside` gives, by whichever process.

    Parameters
    ----------
    name : str
        The name, without its folder.
    final : Path
        The path that the file or folder would get.
    end : str
        The end of the name.
    """
    return _pattern(final, end).fullmatch(name) is not None


@contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file at, and rename it once it is complete.

    Parameters
    ----------
    final : Path
        The file, which is replaced if it exists.
    """
    sweep(final)
    staged = beside(final)
    try:
        yield staged
        staged.replace(final)
    finally:
        staged.unlink(missing_ok=True)


def new_folder(purpose: str, where: str | os.PathLike[str] | None = None) -> Path:
    """Create a temporary folder for this user alone, which the caller removes.

    Parameters
    ----------
    purpose : str
        A word for its name.
    where : path, optional
        The folder that it is created in. Default: that of temporary files (``TMPDIR``).

    Raises
    ------
    RunFaultError
        It cannot be created; the message names ``where``.
    """
    parent = Path(tempfile.gettempdir() if where is None else where)
    sweep(parent / f"actlas-{purpose}", _TEMPORARY)
    folder = beside(parent / f"actlas-{purpose}", _TEMPORARY)
    with writing(parent):
        folder.mkdir(mode=0o700)
    return folder


@contextmanager
def temporary_folder(purpose: str, where: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a temporary folder: see :func:`new_folder`. It is removed at the end."""
    folder = new_folder(purpose, where)
    try:
        yield folder
    finally:
        remove(folder)


def _pattern(final: Path, end: str) -> re.Pattern[str]:
    stem = re.escape(_stem(final))
    return re.compile(rf"\.{stem}\.([0-9a-f]{{12}}-\d+-\d+)\.[0-9a-f]{{8}}\.{end}", re.ASCII)


def _stem(final: Path) -> str:
    """Return a final path's name, or its beginning and a digest if it is long."""
    whole = os.fsencode(final.name)
    if len(whole) <= NAME_BYTES:
        return final.name
    beginning = whole[: NAME_BYTES - 9].decode(errors="ignore")
    return f"{beginning}~{hashlib.sha256(whole).hexdigest()[:8]}"
