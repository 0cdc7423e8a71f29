"""Backends that write and read the same Zarr array: actlas and three Zarr libraries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray

import actlas  # noqa: F401 - makes bfloat16 known to zarr
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.recorded import Recorded
from actlas.store.format.zarr_json import metadata_bytes
from actlas.store.objects.digests import object_digest
from actlas.store.objects.local import LocalObjects
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.shards.writer import ShardWriter
from benchmarks.harness import sync

Rows = NDArray[Any]


class Reader(NamedTuple):
    """An open array: ``read(start, stop)`` and ``take(rows)``, each returning numpy."""

    read: Callable[[int, int], Rows]
    take: Callable[[NDArray[np.int64]], Rows]


class Backend(Protocol):
    """A library that writes an array durably and reads it back."""

    name: str

    def write(self, root: Path, spec: ArraySpec, rows: Rows) -> None:
        """Write all shards, durably."""

    def open(self, root: Path, spec: ArraySpec) -> Reader:
        """Open an array that any backend wrote."""

    def checks(self, spec: ArraySpec) -> bool:
        """Whether reading verifies a chunk."""


def describe(root: Path, spec: ArraySpec) -> None:
    """Write the array's ``zarr.json``."""
    path = root / spec.metadata_key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(metadata_bytes(spec.metadata()))


def written(root: Path, spec: ArraySpec) -> list[Path]:
    """Return the files of the shards, and their folders."""
    files = [root / spec.key(shard) for shard in range(spec.n_shards)]
    return [*files, *{file.parent for file in files}]


@dataclass(frozen=True)
class KeptChecksums:
    """A guard that allows every shard, with records of the objects from files beside the array."""

    root: Path

    def require(self, shards: NDArray[np.int64]) -> None:
        """Allow all shards."""

    def record(self, shard: int, key: str) -> Recorded:
        """Return the size of an object, and the crc32c of each of its chunks."""
        crcs = np.load(self.root / "crc32c" / f"{key.replace('/', '.')}.npy")
        return Recorded((self.root / key).stat().st_size, "", tuple(crcs.tolist()))

    def repaired_since(self, shard: int) -> Callable[[], bool]:
        """Report no repair."""
        return lambda: False


class Ours:
    """The writer and reader of actlas, with checksums of raw chunks kept as in a receipt."""

    def __init__(self, *, check: bool = True, read_back: bool = False) -> None:
        self.check, self.read_back = check, read_back
        self.name = "actlas"
        if not check:
            self.name = "actlas, unchecked"
        elif read_back:
            self.name = "actlas, read back"

    def checks(self, spec: ArraySpec) -> bool:
        return self.check or spec.checksummed_chunks

    def write(self, root: Path, spec: ArraySpec, rows: Rows) -> None:
        objects = LocalObjects(root)
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            writer = ShardWriter(spec, rows[start:stop])
            objects.create(spec.key(shard), writer.parts())
            if self.read_back:
                found = object_digest(objects, spec.key(shard))
                assert found == (writer.n_bytes, writer.xxh3)
            self._note(root, spec, shard, writer.chunk_crc32c)

    def _note(self, root: Path, spec: ArraySpec, shard: int, crcs: list[int]) -> None:
        path = root / "crc32c" / f"{spec.key(shard).replace('/', '.')}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.array(crcs, dtype=np.uint32))

    def open(self, root: Path, spec: ArraySpec) -> Reader:
        array = LazyArray(LocalObjects(root), spec, KeptChecksums(root) if self.check else None)
        return Reader(array.read, array.take)


class ZarrPython:
    """zarr-python, with its own codecs or with those of zarrs, as its documentation advises.

    zarrs 0.2 does not support numpy's bfloat16 and silently falls back to zarr-python, unless it is
    strict. It is therefore strict here and reads the same files as uint16.
    """

    def __init__(self, *, zarrs: bool = False) -> None:
        self.name = "zarrs, as uint16" if zarrs else "zarr"
        self.zarrs = zarrs

    def checks(self, spec: ArraySpec) -> bool:
        return spec.checksummed_chunks

    def _config(self, *, strict: bool = True) -> AbstractContextManager[Any]:
        if not self.zarrs:
            return nullcontext()
        options = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
        config: AbstractContextManager[Any] = zarr.config.set(
            {**options, "codec_pipeline.strict": strict}
        )
        return config

    def _array(self, root: Path, spec: ArraySpec) -> Any:
        path = _as_uint16(root, spec) if self.zarrs else root / spec.path
        with self._config(strict=False):
            array = zarr.open_array(store=str(path), mode="r+")
            # By default every chunk is compared with the fill value first.
            return array.with_config({"write_empty_chunks": True})

    def write(self, root: Path, spec: ArraySpec, rows: Rows) -> None:
        array = self._array(root, spec)
        values = rows.view(array.dtype)
        with self._config():
            for shard in range(spec.n_shards):
                start, stop = spec.shard_range(shard)
                array[start:stop] = values[start:stop]
        sync(written(root, spec))

    def open(self, root: Path, spec: ArraySpec) -> Reader:
        array = self._array(root, spec)

        def read(start: int, stop: int) -> Rows:
            with self._config():
                return np.asarray(array[start:stop]).view(spec.numpy_dtype)

        def take(rows: NDArray[np.int64]) -> Rows:
            with self._config(strict=False):  # Part of its indexing is done by zarr-python.
                return np.asarray(array.oindex[rows]).view(spec.numpy_dtype)

        return Reader(read, take)


def _as_uint16(root: Path, spec: ArraySpec) -> Path:
    """Describe the same files a second time, as unsigned integers."""
    path, chunks = root / "uint16" / spec.path, root / spec.path / "c"
    path.mkdir(parents=True, exist_ok=True)
    chunks.mkdir(parents=True, exist_ok=True)
    metadata = {**spec.metadata(), "data_type": "uint16", "fill_value": 0}
    (path / "zarr.json").write_bytes(metadata_bytes(metadata))
    if not (path / "c").exists():
        (path / "c").symlink_to(chunks, target_is_directory=True)
    return path


class TensorStore:
    """tensorstore: its file driver syncs writes; without a cache, so that reads reach the files."""

    name = "tensorstore"

    def checks(self, spec: ArraySpec) -> bool:
        return spec.checksummed_chunks

    def _array(self, root: Path, spec: ArraySpec) -> Any:
        import tensorstore

        store = {"driver": "file", "path": f"{root / spec.path}/"}
        return tensorstore.open({"driver": "zarr3", "kvstore": store}).result()

    def write(self, root: Path, spec: ArraySpec, rows: Rows) -> None:
        array = self._array(root, spec)
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            array[start:stop].write(rows[start:stop]).result()
        sync(written(root, spec)[spec.n_shards :])

    def open(self, root: Path, spec: ArraySpec) -> Reader:
        array = self._array(root, spec)

        def read(start: int, stop: int) -> Rows:
            return np.asarray(array[start:stop].read().result())

        def take(rows: NDArray[np.int64]) -> Rows:
            return np.asarray(array[rows].read().result())

        return Reader(read, take)
