"""Objects in a local folder: durable create-only writes by staging, fsync and link."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from typing_extensions import Buffer

from actlas.store.errors import FormatError, PlaceError
from actlas.store.objects import processes
from actlas.store.objects.faults import reading, writing
from actlas.store.objects.local_paths import MAX_RECORD_BYTES, LocalPaths

STAGING = "ledger/staging"
"""The folder in which a file is written before it gets its final name."""

STALE_S = 3600.0
"""Seconds after which a staged file of a process that cannot be looked up counts as left."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
"""What ``link`` says on file systems without hard links."""


class LocalObjects:
    """Objects as files under one root folder.

    Parameters
    ----------
    root : path
        The store's folder. It need not exist until something is written.
    named : path, optional
        The folder that errors of the operating system name in its place: that of the user, where
        ``root`` is a temporary one.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, named: str | os.PathLike[str] | None = None
    ) -> None:
        self.root = Path(root).absolute()
        self._named = self.root if named is None else Path(named)
        self._paths = LocalPaths(self.root)

    @property
    def url(self) -> str:
        """The root folder."""
        return str(self.root)

    @property
    def n_readers(self) -> int:
        """The number of CPUs, at most 8: a disk reads faster than a CPU decodes."""
        return min(8, os.cpu_count() or 1)

    def within(self, limit_s: float) -> LocalObjects:
        """Return itself: requests to a file system are never retried."""
        return self

    def path(self, key: str) -> Path:
        """Return the path of a key's file, which always lies inside the root."""
        return self._paths.path(key)

    def create(self, key: str, parts: Iterable[Buffer]) -> bool:
        """Stage, sync and link the file, then sync its folder; False if the key exists."""
        final = self.path(key)
        staging = self.path(STAGING)
        staged = staging / _new_name()
        with writing(self._named / key):
            self._make_folder(staging)
            self._make_folder(final.parent)
            try:
                _write_durably(staged, parts)
                created = _link(staged, final, self._named / key)
            finally:
                staged.unlink(missing_ok=True)
            sync_folder(final.parent)
        return created

    def replace(self, key: str, data: bytes) -> None:
        """Stage the file, sync it, rename it over any existing one, and sync the folder."""
        final = self.path(key)
        staging = self.path(STAGING)
        temporary = staging / _new_name()
        with writing(self._named / key):
            self._make_folder(staging)
            self._make_folder(final.parent)
            try:
                _write_durably(temporary, [data])
                temporary.replace(final)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(final.parent)

    def delete(self, key: str) -> None:
        """Unlink the file. A folder of that name is not removed."""
        self._paths.folder(self.path(key).parent)
        nothing = contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError)
        with writing(self._named / key), nothing:
            self.path(key).unlink()

    def read(self, key: str, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Read with ``pread``; fewer bytes come back only at the end of the file."""
        with reading(self._named / key):
            fd = self._paths.open(self.path(key))
            try:
                wanted = os.fstat(fd).st_size - offset if n_bytes is None else n_bytes
                if n_bytes is None and wanted > MAX_RECORD_BYTES:
                    raise FormatError(
                        f"{self.url}/{key}: got {wanted:,} bytes, which is no record of a store; "
                        f"expected at most {MAX_RECORD_BYTES:,} bytes."
                    )
                return _pread(fd, wanted, offset)
            finally:
                os.close(fd)

    def read_into(self, key: str, offset: int, out: memoryview) -> int:
        """Read with ``preadv``; fewer bytes come only at the end of the file."""
        with reading(self._named / key):
            fd = self._paths.open(self.path(key))
            try:
                got = 0
                while got < len(out) and (n := os.preadv(fd, [out[got:]], offset + got)):
                    got += n
                return got
            finally:
                os.close(fd)

    def stream(self, key: str, n_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes in order."""
        offset = 0
        while piece := self.read(key, offset, n_bytes):
            offset += len(piece)
            yield piece

    def size(self, key: str) -> int | None:
        """Return the file's size in bytes, or None if it does not exist."""
        with reading(self._named / key):
            return self._paths.size(self.path(key))

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names in a folder."""
        try:
            with (
                reading(self._named / folder),
                os.scandir(self._paths.folder(self.path(folder))) as entries,
            ):
                names = [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        yield from names

    def walk(self) -> Iterator[str]:
        """Yield every key below the root. A symbolic link to a folder is yielded like a file."""
        for folder, below, names in os.walk(self.root):
            prefix = Path(folder).relative_to(self.root).as_posix()
            links = [name for name in below if Path(folder, name).is_symlink()]
            for name in (*names, *links):
                yield name if prefix == "." else f"{prefix}/{name}"

    def prune(self, folder: str) -> None:
        """Remove empty folders, deepest first; a folder that holds a file stays."""
        for where, _, _ in sorted(os.walk(self._paths.folder(self.path(folder))), reverse=True):
            with contextlib.suppress(OSError):
                Path(where).rmdir()

    def sweep(self) -> int:
        """Remove staged files that no other living process is writing, and return their number.

        To be called before this process writes. A file whose process cannot be looked up, as on
        another node, is removed once it was not written to for an hour. If that process lives after
        all, its write fails and harms nothing.
        """
        left = [f"{STAGING}/{name}" for name in self.names(STAGING)]
        left = [key for key in left if self._is_left(key)]
        for key in left:
            self.delete(key)
        return len(left)

    def _is_left(self, key: str) -> bool:
        name = key.rpartition("/")[2]
        tag, separator, _ = name.partition(".")
        if not separator or not processes.is_tag(tag):
            return True  # of an earlier version, which is called under the lease
        state = processes.state_of_tag(tag)
        if state != "unknown":
            return state == "ended" or tag == processes.tag()
        with contextlib.suppress(OSError):
            return time.time() - self.path(key).lstat().st_mtime > STALE_S
        return False

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and its parents, and sync each folder's parent."""
        if self._paths.folder(folder).is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent)
        folder.mkdir(parents=folder == self.root, exist_ok=True)
        sync_folder(folder.parent)


def _new_name() -> str:
    return f"{processes.tag()}.{uuid.uuid4().hex}.part"


def _write_durably(path: Path, parts: Iterable[Buffer]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _link(staged: Path, final: Path, named: Path) -> bool:
    """Link a staged file to its final name; return False if the name exists.

    Errors name ``named``. If ``link`` fails but the file has two links, the call succeeded and only
    its answer was lost.
    """
    try:
        os.link(staged, final)
    except FileExistsError:
        return staged.stat().st_nlink == 2
    except OSError as error:
        if staged.stat().st_nlink == 2:
            return True
        if error.errno not in _NO_LINKS:
            raise
        raise PlaceError(
            f"{named}: this file system has no hard links ({error.strerror}); without them two "
            "writers could overwrite each other. Put the store on a file system that has them "
            "(ext4, xfs, NFS, Lustre).",
            path=str(named),
            errno=error.errno,
        ) from error
    return True


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that the names in it survive a crash."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _pread(fd: int, n_bytes: int, offset: int) -> bytes:
    data = os.pread(fd, n_bytes, offset)
    if len(data) in (n_bytes, 0):
        return data
    pieces = [data]
    got = len(data)
    while data and got < n_bytes:  # one call reads at most 2 GiB
        data = os.pread(fd, n_bytes - got, offset + got)
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)
