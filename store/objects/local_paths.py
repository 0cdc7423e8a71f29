"""Safe paths below a store's folder: only regular files inside it are opened.

A store may come from an untrusted source, and an archive can hold symbolic links, pipes and
devices. A link to a folder could make a run write or delete files elsewhere; a link to a file could
disclose it; opening a pipe could block forever. Therefore no file is reached through a link that
leaves the store, no link is opened, and only regular files are read. The store's own folder may be
a link.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from actlas.store.errors import CorruptDataError, FormatError
from actlas.store.objects.faults import write_fault

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_NOT_PLAIN = frozenset({errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK})

KEY_CHARACTERS = 1024
"""The maximum length of a key."""

MAX_RECORD_BYTES = 256 << 20
"""The maximum size of an object that is read at once: a plan, a receipt, metadata."""


class LocalPaths:
    """Checks paths against the folder that they must lie in.

    Parameters
    ----------
    root : Path
        The store's folder, absolute. Symbolic links in this path itself are followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: set[Path] = set()

    def path(self, key: str) -> Path:
        """Return the path of a key's file.

        Raises
        ------
        FormatError
            The key is malformed, or leads out of the store.
        """
        parts = key.split("/")
        if key.startswith("/") or ".." in parts or "\0" in key or len(key) > KEY_CHARACTERS:
            raise FormatError(
                f"{self.root}: got key {key[:200]!r}, expected one that stays inside the store.",
                key=key[:200],
            )
        return self.root / key

    def folder(self, folder: Path) -> Path:
        """Return a folder of the store once it is known to lie inside; the check is cached.

        Below a folder that is known, a look at the last name is enough: on a network file system
        each name of a path costs a request.

        Raises
        ------
        CorruptDataError
            A symbolic link on the path leads out of the store.
        """
        if folder not in self._known:
            if folder.parent in self._known and not folder.is_symlink():
                self._known.add(folder)
                return folder
            real, root = os.path.realpath(folder), os.path.realpath(self.root)
            if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
                raise CorruptDataError(_leads_out(folder, real), path=str(folder))
            self._known.add(folder)
        return folder

    def open(self, path: Path) -> int:
        """Open a regular file for reading and return its descriptor.

        Raises
        ------
        CorruptDataError
            The path is a link, a pipe, a device or a folder, or a link on it leads out of the
            store.
        FileNotFoundError
            The file does not exist.
        """
        self.folder(path.parent)
        try:
            fd = os.open(path, _FLAGS)
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise CorruptDataError(_not_plain(path), path=str(path)) from error
            if error.errno == errno.ENAMETOOLONG:
                if _is_too_long(self.root):
                    raise write_fault(error, self.root) from error
                raise FormatError(
                    f"{str(path)[:200]}…: this name is too long for a file."
                ) from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptDataError(_not_plain(path), path=str(path))
        return fd

    def size(self, path: Path) -> int | None:
        """Return the size of a regular file in bytes, or None if there is none of that name."""
        self.folder(path.parent)
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise
        return found.st_size if stat.S_ISREG(found.st_mode) else None


def _is_too_long(path: Path) -> bool:
    try:
        path.lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def _leads_out(path: Path, real: str) -> str:
    return (
        f"{path}: leads out of the store through a symbolic link, to {real}. All files of a store "
        "must lie in its folder: put them there. (The store's own folder may be a link, and "
        "another disk can be mounted inside it.)"
    )


def _not_plain(path: Path) -> str:
    return (
        f"{path}: got a symbolic link, a pipe, a device or a folder, expected a regular file. If "
        "the store was unpacked or downloaded as links, copy it with `cp -rL`, or download it "
        "again into a folder of its own."
    )
