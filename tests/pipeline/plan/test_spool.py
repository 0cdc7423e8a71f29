"""The planner's files on disk. The oracle is numpy in memory."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlas.pipeline.plan.spool import Spool, open_spool
from actlas.store.errors import RunFaultError


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_gather_is_numpys_own_concatenation(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=20))
    order = data.draw(st.permutations(range(len(lengths))))
    order = order[: data.draw(st.integers(1, len(order)))]
    with closing(Spool(tmp_path_factory.mktemp("spool"))) as spool:
        file = spool.file("x", np.int32)
        pieces = [np.arange(100 * i, 100 * i + n, dtype=np.int32) for i, n in enumerate(lengths)]
        for piece in pieces:
            file.append(piece)
        file.flush()
        edges = np.cumsum([0, *lengths])
        chosen = np.array(order)
        target = np.cumsum([0, *[lengths[i] for i in order]])
        expected = np.concatenate([pieces[i] for i in order])
        start = data.draw(st.integers(0, len(expected)))
        stop = data.draw(st.integers(start, len(expected)))
        found = file.gather(edges[chosen], target, start, stop)
        assert found.dtype == np.int32 and found.tolist() == expected[start:stop].tolist()
        assert file.read(0, file.n_items).tolist() == np.concatenate(pieces).tolist()


def test_neighbours_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    file = spool.file("x", np.uint8)
    file.append(bytes(range(100)))
    file.flush()
    reads: list[int] = []
    plain = file.read_into
    monkeypatch.setattr(
        file, "read_into", lambda items, start: (reads.append(start), plain(items, start))
    )
    edges = np.arange(0, 101, 10)
    assert file.gather(edges[:-1], edges, 5, 95).tolist() == list(range(5, 95))
    assert reads == [5]
    spool.close()


def test_reading_behind_the_end_is_an_error(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    file = spool.file("x", np.int32)
    file.append(np.arange(3))
    file.flush()
    with pytest.raises(OSError, match=r"ends before item 5"):
        file.read(0, 5)
    spool.close()


def test_the_folder_goes_away_whatever_happens(tmp_path: Path) -> None:
    def fill() -> None:
        with open_spool(tmp_path / "new" / "s.zarr") as spool:
            spool.file("x", np.uint8).append(b"abc")
            assert list((tmp_path / "new").iterdir()) == [spool.folder]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_when_files_are_closed(tmp_path: Path) -> None:
    def fill() -> None:
        with open_spool(tmp_path / "s.zarr") as spool:
            (spool.folder / "target").symlink_to("/dev/full")
            first = spool.file("first", np.uint8)
            full = (spool.folder / "target").open("wb", buffering=1 << 16)
            full.write(b"x")
            first._file.close()
            first._file = full  # type: ignore[assignment]
            spool.file("last", np.uint8).append(b"y")

    with pytest.raises(RunFaultError, match="No space left") as caught:
        fill()
    cause = caught.value.__cause__
    assert isinstance(cause, OSError) and cause.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
