"""Objects in a local folder: durable create-only writes by staging, fsync and link."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from typing_extensions import Buffer

from actlas.store.errors import FormatError, RunFaultError, run_fault
from actlas.store.objects.local_paths import MAX_RECORD_BYTES, Inside

STAGING = "ledger/staging"


class LocalObjects:
    """Objects as files under one root folder.

    Parameters
    ----------
    root : path
        The store's folder. It need not exist until something is written.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        self._inside = Inside(self.root)

    @property
    def url(self) -> str:
        """The root folder."""
        return str(self.root)

    @property
    def n_readers(self) -> int:
        """As many as processors: the disk answers faster than a chunk is decoded."""
        return min(8, os.cpu_count() or 1)

    def within(self, limit_s: float) -> LocalObjects:
        """Return itself: a file system is asked once, and nothing is tried again."""
        return self

    def path(self, key: str) -> Path:
        """Return the file of a key, which never leaves the root."""
        return self._inside.path(key)

    def create(self, key: str, parts: Iterable[Buffer]) -> bool:
        """Stage, sync, link and sync the folder; False if the name was taken."""
        final = self.path(key)
        staging = self.path(STAGING)
        staged = staging / f"{uuid.uuid4().hex}.part"
        with _faults(final):
            self._make_folder(staging)
            self._make_folder(final.parent)
            try:
                _write_durably(staged, parts)
                created = _link(staged, final)
            finally:
                staged.unlink(missing_ok=True)
            sync_folder(final.parent)
        return created

    def replace(self, key: str, data: bytes) -> None:
        """Stage, sync, rename over and sync the folder."""
        final = self.path(key)
        staging = self.path(STAGING)
        temporary = staging / f"{uuid.uuid4().hex}.part"
        with _faults(final):
            self._make_folder(staging)
            self._make_folder(final.parent)
            try:
                _write_durably(temporary, [data])
                temporary.replace(final)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(final.parent)

    def delete(self, key: str) -> None:
        """Unlink the file. A folder of that name is no object."""
        self._inside.folder(self.path(key).parent)
        nothing = contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError)
        with _faults(self.path(key)), nothing:
            self.path(key).unlink()

    def read(self, key: str, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Read with ``pread``; fewer bytes come back only at the end of the file."""
        with _faults(self.path(key)):
            fd = self._inside.open(self.path(key))
            try:
                wanted = os.fstat(fd).st_size - offset if n_bytes is None else n_bytes
                if n_bytes is None and wanted > MAX_RECORD_BYTES:
                    raise FormatError(f"{self.url}/{key}: {wanted:,} bytes are no record.")
                return _pread(fd, wanted, offset)
            finally:
                os.close(fd)

    def pieces(self, key: str, n_bytes: int) -> Iterator[bytes]:
        """Read from front to end."""
        offset = 0
        while piece := self.read(key, offset, n_bytes):
            offset += len(piece)
            yield piece

    def size(self, key: str) -> int | None:
        """Return the file's size."""
        return self._inside.size(self.path(key))

    def names(self, folder: str) -> Iterator[str]:
        """List a folder."""
        try:
            with os.scandir(self._inside.folder(self.path(folder))) as entries:
                for entry in entries:
                    yield entry.name
        except (FileNotFoundError, NotADirectoryError):
            return

    def walk(self) -> Iterator[str]:
        """Walk the root folder. A link to a folder is told of as if it were a file."""
        for folder, below, names in os.walk(self.root):
            prefix = Path(folder).relative_to(self.root).as_posix()
            links = [name for name in below if Path(folder, name).is_symlink()]
            for name in (*names, *links):
                yield name if prefix == "." else f"{prefix}/{name}"

    def prune(self, folder: str) -> None:
        """Remove empty folders, the deepest first; what holds a file stays."""
        for where, _, _ in sorted(os.walk(self._inside.folder(self.path(folder))), reverse=True):
            with contextlib.suppress(OSError):
                Path(where).rmdir()

    def sweep(self) -> int:
        """Empty the staging folder."""
        left = [f"{STAGING}/{name}" for name in self.names(STAGING)]
        for key in left:
            self.delete(key)
        return len(left)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and its parents, each synced into the one above it."""
        if self._inside.folder(folder).is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent)
        folder.mkdir(parents=folder == self.root, exist_ok=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn what the surroundings are to blame for into a run fault; leave the rest as it is."""
    try:
        yield
    except OSError as error:
        fault = run_fault(error, str(path))
        if fault is None:
            raise
        raise fault from error


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


def _link(staged: Path, final: Path) -> bool:
    """Link to the final name. An error with two links is success: only the answer was lost."""
    try:
        os.link(staged, final)
    except FileExistsError:
        return staged.stat().st_nlink == 2
    except OSError as error:
        if staged.stat().st_nlink == 2:
            return True
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise RunFaultError(
            f"{final}: this file system makes no hard links ({error.strerror}), and without them "
            "two writers could harm each other. Put the store on one that does (ext4, xfs, NFS, "
            "Lustre).",
            path=str(final),
        ) from error
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
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
