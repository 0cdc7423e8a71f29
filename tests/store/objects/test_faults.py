"""Errors of the operating system at every call of a write: the exit code, and the path named.

What each error means is written down here from the manual pages (errno(3), link(2), rename(2),
mkdir(2), fsync(2), write(2)), apart from the code's own table.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.crash import Call, SystemCalls, ram_folder
from support.stores import create, plan_for, words_columns

from actlas.jobs.output import check_free, output_folder, write_whole
from actlas.pipeline.plan.spool import open_spool
from actlas.store.errors import EXIT_RESUME, EXIT_USAGE, ActlasError, PlaceError, RunFaultError
from actlas.store.ledger import lease
from actlas.store.objects import faults
from actlas.store.objects.local import LocalObjects
from actlas.store.store import open_store

AGAIN = frozenset(
    [
        *("ENOSPC", "EDQUOT", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EAGAIN", "EINTR"),
        *("EBUSY", "EDEADLK", "ENOLCK", "ECANCELED", "ENODEV", "ENXIO", "ENOMEDIUM", "ENOKEY"),
        *("EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED", "ESTALE", "ETIMEDOUT", "EHOSTDOWN"),
        *("EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNREFUSED", "ECONNRESET"),
        *("ECONNABORTED", "ENOTCONN", "ESHUTDOWN", "EREMOTEIO", "ENOLINK", "ECOMM", "EPROTO"),
        "ENONET",
    ]
)
"""The place is the right one, and something is wrong with it for now. Any other call is refused
however often it is made."""
NUMBERS = {getattr(errno, name, None) for name in AGAIN}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "file-systems.md"


def exit_code(code: int) -> int:
    return EXIT_RESUME if code in NUMBERS else EXIT_USAGE


def test_each_error_of_a_write() -> None:
    """None is left to be charged to a shard, and none ends with 75 that only a change can mend."""
    for code in errno.errorcode:
        given = OSError(code, os.strerror(code), "/there/.a.part")
        error = faults.write_fault(given, "/there/a")
        assert error.exit_code == exit_code(code), errno.errorcode[code]
        assert error.details == {"path": "/there/a", "errno": code}
        begins = f"/there/a: {os.strerror(code)} (errno {code}). Nothing already written"
        assert str(error).startswith(begins)
        again = "repeat the same call" in str(error)
        assert again == (error.exit_code == EXIT_RESUME)
        assert ".part" not in str(error) and isinstance(error, OSError)


def test_a_short_write_that_a_library_reports_without_a_number() -> None:
    error = faults.write_fault(OSError("8 requested and 3 written"), "a.npy")
    assert error.exit_code == EXIT_RESUME and "8 requested and 3 written" in str(error)


def test_what_is_no_fault_of_the_environment_where_something_is_read() -> None:
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EINVAL", "EEXIST", "ENAMETOOLONG", "ELOOP"):
        assert faults.run_fault(OSError(getattr(errno, name), "x"), "a") is None
    assert faults.run_fault(OSError("no number"), "a") is None
    for name in ("EACCES", "EPERM", "EROFS", "EIO", "ETIMEDOUT", "ESTALE", "EMFILE"):
        assert faults.run_fault(OSError(getattr(errno, name), "x"), "a") is not None
    assert faults.run_fault(RunFaultError("mine", errno=errno.EIO), "a") is None


def table() -> str:
    lines = ["| error | exit code | what to do |", "|---|---|---|"]
    for rule in dict.fromkeys(faults.RULES.values()):
        names = [errno.errorcode[code] for code, found in faults.RULES.items() if found == rule]
        lines.append(f"| {', '.join(sorted(names))} | {75 if rule.again else 2} | {rule.remedy} |")
    return "\n".join(lines)


def test_the_page_has_the_table() -> None:
    if not hasattr(errno, "EKEYEXPIRED"):
        pytest.skip("the table of the page is Linux's")
    assert table() in PAGE.read_text(), table()


@pytest.fixture
def ram() -> Iterator[Path]:
    with ram_folder() as folder:
        yield folder


def once(at: int, code: int) -> Callable[[int, Call, Callable[[], None]], None]:
    def fate(n: int, call: Call, half: Callable[[], None]) -> None:
        if n == at:
            raise OSError(code, os.strerror(code), call.path)

    return fate


def plan(folder: Path) -> None:
    columns = words_columns(0, 4, 6)
    with open_spool(folder / "run.zarr") as spool:
        spool.file("texts", np.uint8).append(b"x")
        create(folder / "run.zarr", plan_for(columns), columns)


def results(folder: Path) -> None:
    check_free(folder / "results")
    with output_folder(folder / "results") as out:
        (out / "sub").mkdir()


STEPS: dict[str, Callable[[Path], Any]] = {
    "object": lambda folder: LocalObjects(folder).create("a/b", [b"x"]),
    "replaced": lambda folder: LocalObjects(folder).replace("a/b", b"x"),
    "plan": plan,
    "results": results,
    "page": lambda folder: write_whole(folder / "page.html", "x"),
}
NAMES = {"object": "a/b", "replaced": "a/b", "plan": "run.zarr", "results": "results"}
CODES = ("EACCES", "EROFS", "ENAMETOOLONG", "ENOENT", "EOPNOTSUPP", "EINVAL", "EXDEV", "ENOSPC")
CODES += ("EDQUOT", "EIO", "ETIMEDOUT", "ENOKEY", "EPERM")


@pytest.mark.parametrize("step", STEPS)
def test_an_error_at_any_call(step: str, ram: Path) -> None:
    """Its exit code, the final path and no hidden one in the message, and nothing left behind."""
    (ram / "all").mkdir()
    with SystemCalls(ram / "all") as calls:
        STEPS[step](ram / "all")
    n_refused, stride = 0, max(1, len(calls.seen) // 8)
    for at in range(0, len(calls.seen), stride):
        for name in CODES if step in ("object", "results") else CODES[at % 3 :: 3]:
            folder, code = ram / "once", getattr(errno, name)
            folder.mkdir()
            try:
                with SystemCalls(folder, once(at, code)):
                    STEPS[step](folder)
            except RunFaultError as error:
                n_refused += 1
                no_links = "no hard links" in str(error)
                wanted = EXIT_USAGE if no_links else exit_code(code)
                assert error.exit_code == wanted, (calls.seen[at], error)
                assert str(error).startswith(str(folder / NAMES.get(step, "page.html"))), error
                assert ".part" not in str(error) and ".planning" not in str(error)
                stays = calls.seen[at].name in ("unlink", "rmdir")
                assert stays or list(folder.rglob(".*")) == []
            shutil.rmtree(folder)
    assert n_refused > 5


def test_a_place_without_hard_links(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vfat, exfat, SMB and many FUSE file systems refuse them, each with its own number."""
    for name in ("EPERM", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EMLINK"):

        def none(a: Any, b: Any, code: int = getattr(errno, name)) -> None:
            raise OSError(code, os.strerror(code), a, None, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", none)
            with pytest.raises(PlaceError, match="no hard links") as caught:
                plan(ram)
        assert caught.value.exit_code == EXIT_USAGE
        assert str(caught.value).startswith(f"{ram}/run.zarr/zarr.json: ")
        assert list(ram.iterdir()) == []


def refusal(do: Callable[[], object]) -> ActlasError:
    with pytest.raises(ActlasError) as caught:
        do()
    assert caught.value.exit_code == EXIT_USAGE, caught.value
    assert ".planning" not in str(caught.value) and ".part" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("place", ["/proc", "/sys", "/dev/null", "long", "file", "loop"])
def test_real_places_that_take_nothing(place: str, ram: Path) -> None:
    where = Path(place) if place.startswith("/") else ram / place
    if not ram.exists() or (place.startswith("/") and not where.exists()):
        pytest.skip(f"no {place} here")
    if place == "long":
        where = ram / ("x" * 300)
    elif place == "file":
        where.write_text("x")
    elif place == "loop":
        where.symlink_to(where)
    named = str(where)
    for do in (
        lambda: plan(where),
        lambda: check_free(where / "results"),
        lambda: LocalObjects(where / "run.zarr").create("a/b", [b"x"]),
        lambda: results(where),
        lambda: write_whole(where / "page.html", "x"),
    ):
        assert named in str(refusal(do))
    if place == "long":
        assert named in str(refusal(lambda: open_store(where)))


def test_a_read_only_disk_and_one_of_another_user(tmp_path: Path, ram: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    store, disk = tmp_path / "run.zarr", ram / "disk"
    columns = words_columns(0, 4, 6)
    create(store, plan_for(columns), columns)
    disk.mkdir()
    bind = subprocess.run(["mount", "--bind", str(tmp_path), str(disk)], check=False)
    if bind.returncode != 0:
        pytest.skip("a disk cannot be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
        for do in (
            lambda: plan(disk / "new"),
            lambda: lease.hold(LocalObjects(disk / "run.zarr")).__enter__(),
            lambda: results(disk),
        ):
            error = refusal(do)
            assert error.details["errno"] == errno.EROFS and "mount it writable" in str(error)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
