"""Temporary files of a planner: append-only, in a folder that is removed at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ActlasError, RunFaultError
from actlas.store.objects import faults, leftovers
from actlas.store.objects.base import is_url
from actlas.store.write.staging import workplace

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped

_BUFFER_BYTES = 1 << 20


class SpoolFile:
    """A file of items of one dtype, written sequentially and then read at random.

    Parameters
    ----------
    path : Path
        The new file; it must not exist.
    dtype : dtype
        The dtype of the items.
    """

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.n_items = 0
        self._file = path.open("xb+", buffering=_BUFFER_BYTES)

    def append(self, items: NDArray[Any] | bytes) -> None:
        """Append items."""
        if isinstance(items, bytes):
            data = memoryview(items)
        else:
            data = np.ascontiguousarray(items, self.dtype).data
        self._file.write(data)
        self.n_items += data.nbytes // self.dtype.itemsize

    def flush(self) -> None:
        """Flush the buffer to the operating system, so that the items can be read."""
        self._file.flush()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return items [start, stop)."""
        items = np.empty(stop - start, self.dtype)
        self.read_into(items, start)
        return items

    def read_into(self, items: NDArray[Any], start: int) -> None:
        """Fill an array with items from ``start`` on."""
        view = items.data.cast("B")
        at = start * self.dtype.itemsize
        while view.nbytes:
            n_bytes = os.preadv(self._file.fileno(), [view], at)
            if n_bytes == 0:
                raise OSError(f"{self.path}: ends before item {start + len(items)}")
            view, at = view[n_bytes:], at + n_bytes

    def gather(
        self,
        source: Int64[NDArray[np.int64], " segments"],
        target: Int64[NDArray[np.int64], " segments+1"],
        start: int,
        stop: int,
    ) -> Shaped[NDArray[Any], " items"]:
        """Return a range of the file's items with its segments in another order.

        Parameters
        ----------
        source : ndarray of int64, shape [segments]
            The item of the file at which each segment begins.
        target : ndarray of int64, shape [segments + 1]
            The items at which each segment begins and ends in the new order, from 0.
        start, stop : int
            The range of items in the new order.
        """
        items = np.empty(stop - start, self.dtype)
        if stop <= start:
            return items
        first = int(np.searchsorted(target, start, side="right")) - 1
        last = int(np.searchsorted(target, stop, side="left"))
        begin = np.maximum(target[first:last], start)
        end = np.minimum(target[first + 1 : last + 1], stop)
        at = source[first:last] + (begin - target[first:last])
        kept = end > begin
        begin, end, at = begin[kept], end[kept], at[kept]
        # Segments that are adjacent in the file too are read at once.
        breaks = np.flatnonzero(at[1:] != at[:-1] + (end - begin)[:-1]) + 1
        heads = np.concatenate(([0], breaks))
        tails = np.concatenate((breaks, [len(at)])) - 1
        for head, tail in zip(heads.tolist(), tails.tolist(), strict=True):
            self.read_into(items[int(begin[head]) - start : int(end[tail]) - start], int(at[head]))
        return items

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Spool:
    """A folder of spool files.

    Parameters
    ----------
    folder : Path
        The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[SpoolFile] = []

    def file(self, name: str, dtype: Any) -> SpoolFile:
        """Create a new file of items of one dtype."""
        self._files.append(SpoolFile(self.folder / name, dtype))
        return self._files[-1]

    def close(self) -> None:
        """Close every file, even if flushing one of them fails."""
        while self._files:
            try:
                self._files.pop().close()
            finally:
                self.close()


@contextmanager
def open_spool(store_path: str | os.PathLike[str]) -> Iterator[Spool]:
    """Make a spool next to a store's future place, and remove it at the end, whatever happens.

    For a store in a bucket the spool is in the folder for temporary files (``TMPDIR``). Its name is
    that of a planner at work: :func:`actlas.store.write.create.create` removes it where the process
    was killed.

    Parameters
    ----------
    store_path : path
        The store that is being planned.

    Raises
    ------
    RunFaultError
        The disk is full or fails while the spool is in use; a ``PlaceError`` where it cannot be
        made.
    """
    place = workplace(store_path)
    named = place.parent if is_url(store_path) else place
    spool = Spool(leftovers.beside(place, leftovers.PLANNING))
    try:
        with faults.writing(named):
            spool.folder.mkdir(parents=True)
        try:
            yield spool
        finally:
            spool.close()
    except OSError as error:
        if (fault := _fault(error, spool.folder, named)) is None:
            raise
        raise fault from error
    finally:
        leftovers.remove(spool.folder)


def _fault(error: OSError, folder: Path, named: Path) -> RunFaultError | None:
    """Return the error to raise for one of the spool's files, or of a file that is read."""
    if isinstance(error, ActlasError):
        return None
    file = error.filename
    if isinstance(file, str | os.PathLike) and not Path(file).is_relative_to(folder):
        return faults.run_fault(error, file)
    return faults.run_fault(error, named) if file is None else faults.write_fault(error, named)
