"""The contenders of the storage benchmark: writers, readers and gatherers of one array."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actlas.store.format import layout
from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.dtypes import BFLOAT16
from benchmarks import harness
from benchmarks.backends import Backend, Ours, Rows, TensorStore, ZarrPython, describe
from benchmarks.harness import Contender

PROFILES = ("none", "fast", "dense")
PEERS: tuple[Backend, ...] = (ZarrPython(), ZarrPython(zarrs=True), TensorStore())
WRITERS: tuple[Backend, ...] = (Ours(), Ours(read_back=True), *PEERS)
READERS: tuple[Backend, ...] = (Ours(), Ours(check=False), *PEERS)
RAW_WRITE, READINTO, MEMMAP = "os.write + fsync", "readinto", "memmap"


@dataclass(frozen=True)
class Case:
    """The sizes of a run, and its folder."""

    folder: Path
    n_rows: int = 262_144
    width: int = 768
    shard_rows: int = 65_536
    slice_rows: int = 8_192
    document_rows: int = 500
    rounds: int = 3
    memory: bool = True
    """Whether to measure peak memory, each in a process of its own."""

    def spec(self, profile: str) -> ArraySpec:
        return ArraySpec(
            path="activations/x",
            shape=(self.n_rows, self.width),
            dtype="bfloat16",
            shard_rows=self.shard_rows,
            chunk_rows=layout.chunk_rows(2 * self.width, self.shard_rows),
            compression=profile,
            dimensions=("row", "unit"),
        )

    @property
    def n_bytes(self) -> int:
        return 2 * self.n_rows * self.width

    @property
    def raw_file(self) -> Path:
        return self.folder / "raw" / "rows"

    def stored(self, profile: str) -> Path:
        return self.folder / profile

    def raw(self) -> Rows:
        flat = np.memmap(self.raw_file, dtype=BFLOAT16, mode="r")
        return flat.reshape(self.n_rows, self.width)


def equal(a: Rows, b: Rows) -> None:
    """Check that two arrays are equal bit by bit."""
    if a.shape != b.shape or not np.array_equal(a.view(np.uint16), b.view(np.uint16)):
        raise AssertionError("a contender's bytes are not the source's")


def writers(case: Case, profile: str, rows: Rows) -> list[Contender]:
    """Return the writers of the array, durable, the raw limit first."""
    spec, folder = case.spec(profile), case.folder / "written"

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        describe(folder, spec)

    def raw() -> None:
        paths = [folder / str(shard) for shard in range(spec.n_shards)]
        for shard, path in enumerate(paths):
            start, stop = spec.shard_range(shard)
            view = rows[start:stop].reshape(-1).view(np.uint8).data
            fd = os.open(path, os.O_WRONLY | os.O_CREAT)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
            os.close(fd)
        harness.sync([folder])

    def check(backend: Backend) -> Callable[[object], None]:
        other = TensorStore() if isinstance(backend, Ours) else Ours(check=False)
        return lambda _: equal(other.open(folder, spec).read(0, case.n_rows), rows)

    return [
        Contender(RAW_WRITE, raw, fresh, note="limit"),
        *(
            Contender(b.name, partial(b.write, folder, spec, rows), fresh, check(b))
            for b in WRITERS
        ),
    ]


def readers_of(spec: ArraySpec) -> tuple[Backend, ...]:
    """Return the readers of an array: compressed chunks are always verified."""
    return READERS if not spec.checksummed_chunks else (Ours(), *PEERS)


def readers(case: Case, profile: str, ranges: list[tuple[int, int]], cold: bool) -> list[Contender]:
    """Return the readers of ranges of rows, the two raw limits first."""
    spec, folder = case.spec(profile), case.stored(profile)
    longest = max(stop - start for start, stop in ranges)
    buffer = np.empty((longest, case.width), dtype=BFLOAT16)
    buffer.view(np.uint16).fill(0)

    def readinto() -> Rows:
        with case.raw_file.open("rb", buffering=0) as file:
            for start, stop in ranges:
                file.seek(2 * case.width * start)
                view = buffer[: stop - start].reshape(-1).view(np.uint8).data
                while view:
                    view = view[file.readinto(view) :]
        return buffer[: stop - start]

    def each(read: Callable[[int, int], Rows]) -> Callable[[], Rows]:
        def run() -> Rows:
            for start, stop in ranges:
                rows = read(start, stop)
            return rows

        return run

    def check(found: Rows) -> None:
        equal(found, np.array(case.raw()[slice(*ranges[-1])]))

    def before(where: Path) -> Callable[[], None]:
        return lambda: harness.evict(where) if cold else None

    raw = case.raw_file.parent
    contenders = [
        Contender(READINTO, readinto, before(raw), check),
        Contender(MEMMAP, each(lambda a, b: np.array(case.raw()[a:b])), before(raw), check),
    ]
    for backend in readers_of(spec):
        run = each(backend.open(folder, spec).read)
        contenders.append(Contender(backend.name, run, before(folder), check))
    return contenders


def takers(case: Case, profile: str, index: NDArray[np.int64], cold: bool) -> list[Contender]:
    """Return the gatherers of single rows."""
    spec, folder, raw = case.spec(profile), case.stored(profile), case.raw_file.parent

    def check(found: Rows) -> None:
        equal(found, case.raw()[index])

    def before(where: Path) -> Callable[[], None]:
        return lambda: harness.evict(where) if cold else None

    contenders = [Contender(MEMMAP, lambda: case.raw()[index], before(raw), check)]
    for backend in readers_of(spec):
        run = partial(backend.open(folder, spec).take, index)
        contenders.append(Contender(backend.name, run, before(folder), check))
    return contenders
