"""What lies in a store's folder is a plain file of its own: nothing there leads out of it.

A store may come from a stranger, and an archive can hold links, pipes and devices. A link to a
folder would let a run write, or empty, a folder elsewhere; a link to a file would have it read; a
pipe would hang whoever opens it. So no file is reached through a link that leaves the store, no
link is opened, and nothing but a regular file is read. The store's own folder may be a link.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from actlas.store.errors import CorruptDataError, FormatError

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_NOT_PLAIN = frozenset({errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK})

KEY_CHARACTERS = 1024

MAX_RECORD_BYTES = 256 << 20
"""What is read whole without its size being known: plans, receipts, metadata. More is none."""


class Inside:
    """Holds paths against the folder that they must stay in.

    Parameters
    ----------
    root : Path
        Absolute. Links in it are followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: set[Path] = set()

    def path(self, key: str) -> Path:
        """Return the file of a key.

        Raises
        ------
        FormatError
            The key leads out of the store, or is none.
        """
        parts = key.split("/")
        if key.startswith("/") or ".." in parts or "\0" in key or len(key) > KEY_CHARACTERS:
            raise FormatError(
                f"{self.root}: a key stays inside its store, got {key[:200]!r}.", key=key[:200]
            )
        return self.root / key

    def folder(self, folder: Path) -> Path:
        """Return a folder of the store, looked at once.

        Raises
        ------
        CorruptDataError
            A link on the way to it leads out of the store.
        """
        if folder not in self._known:
            real, root = os.path.realpath(folder), os.path.realpath(self.root)
            if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
                raise CorruptDataError(_leads_out(folder, real), path=str(folder))
            self._known.add(folder)
        return folder

    def open(self, path: Path) -> int:
        """Open a file to read it and return its descriptor.

        Raises
        ------
        CorruptDataError
            It is a link, a pipe, a device or a folder, or lies behind a link that leads out.
        FileNotFoundError
            It is not there.
        """
        self.folder(path.parent)
        try:
            fd = os.open(path, _FLAGS)
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise CorruptDataError(_not_plain(path), path=str(path)) from error
            if error.errno == errno.ENAMETOOLONG:
                raise FormatError(f"{str(path)[:200]}…: no name of a file.") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptDataError(_not_plain(path), path=str(path))
        return fd

    def size(self, path: Path) -> int | None:
        """Return the size of a regular file, None where there is none of that name."""
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


def _leads_out(path: Path, real: str) -> str:
    return (
        f"{path}: leads out of the store by a link, to {real}. What belongs to a store lies in its "
        "folder: put the files there. (The store's own folder may be a link; another disk can be "
        "mounted inside it.)"
    )


def _not_plain(path: Path) -> str:
    return (
        f"{path}: is a link, a pipe, a device or a folder; expected a plain file. Where a store "
        "was unpacked or downloaded as links, copy it with `cp -rL`, or download it again into a "
        "folder of its own."
    )
