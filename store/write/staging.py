"""Where a new store is made: a place with nothing in it, and beside that the planner's own."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import tempfile
import uuid
from pathlib import Path

from actlas.store.errors import FormatError, StoreExistsError
from actlas.store.ledger.plan_file import PLAN_KEY, read_json
from actlas.store.objects.base import Objects, is_url, open_objects


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raise ``StoreExistsError`` where a new store would not be alone."""
    if is_url(path):
        _refuse_objects(open_objects(path))
    else:
        _refuse_files(Path(path).absolute())


def workplace(path: str | os.PathLike[str]) -> Path:
    """Return beside what a planner keeps its files while it works.

    Beside the store's own folder; where it will lie in a bucket, in the folder for temporary files
    (``TMPDIR``).
    """
    if not is_url(path):
        return Path(path).absolute()
    return Path(tempfile.gettempdir()) / os.fspath(path).rstrip("/").rpartition("/")[2]


def staging_of(final: Path) -> Path:
    """Return a new path beside a store's place, by a name that says who is at work there."""
    here = f"{socket.gethostname()}-{os.getpid()}"
    return final.with_name(f".{final.name}.{here}.{uuid.uuid4().hex[:8]}.planning")


def sweep(final: Path) -> None:
    """Remove what a planner that was killed on this host left beside the store."""
    host = socket.gethostname()
    for left in final.parent.glob(f".{glob.escape(final.name)}.{host}-*.planning"):
        pid = left.name.split(f"{host}-", 1)[1].split(".", 1)[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def _refuse_objects(objects: Objects) -> None:
    if objects.size(PLAN_KEY) is not None:
        raise StoreExistsError(
            f"{objects.url}: there is a store here already, and it is left as it is. `actlas "
            f"extract {objects.url}` goes on with it; give another path for another plan.",
            path=objects.url,
        )
    if next(objects.walk(), None) is None:
        return
    try:
        root = read_json(objects, "zarr.json").get("attributes")
    except (FileNotFoundError, FormatError):
        root = None
    if not isinstance(root, dict) or "actlas" not in root:
        raise StoreExistsError(
            f"{objects.url}: there is something below this prefix, and it is no store. Give a "
            "prefix with nothing below it.",
            path=objects.url,
        )


def _refuse_files(path: Path) -> None:
    above = next((parent for parent in path.parents if parent.exists()), path.parent)
    if not above.is_dir():
        raise StoreExistsError(
            f"{path}: {above} is a file, expected a folder to put the store in.", path=str(path)
        )
    if path.is_symlink() or path.is_file():
        raise StoreExistsError(
            f"{path}: got a file, expected a path for a new folder.", path=str(path)
        )
    if (path / PLAN_KEY).exists():
        raise StoreExistsError(
            f"{path}: there is a store here already, and it is left as it is. `actlas extract "
            f"{path}` goes on with it; give another path for another plan.",
            path=str(path),
        )
    if path.is_dir() and any(path.iterdir()):
        raise StoreExistsError(
            f"{path}: this folder is not empty and is no store. Give a path that is not there yet.",
            path=str(path),
        )
