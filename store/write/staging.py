"""The path of a new store: it must be free, and the planner's working files lie beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from actlas.store.display.folders import store_around
from actlas.store.errors import ConfigError, FormatError, StoreExistsError
from actlas.store.ledger.plan_file import PLAN_KEY, read_json
from actlas.store.objects.base import Objects, is_url, open_objects
from actlas.store.objects.faults import writing
from actlas.store.objects.local import STAGING


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raise ``StoreExistsError`` where the path of a new store is occupied.

    ``ConfigError`` where it lies in another store.
    """
    if is_url(path):
        _refuse_objects(open_objects(path))
    else:
        with writing(path):
            if (store := store_around(Path(path))) is not None:
                raise ConfigError(
                    f"{path}: lies in the store {store}, and a store holds no other. Give a path "
                    "outside of it.",
                    path=str(path),
                )
            _refuse_files(Path(path).absolute())


def workplace(path: str | os.PathLike[str]) -> Path:
    """Return the path beside which a planner keeps its working files.

    It is the store's own path; for a store in a bucket it is in the folder for temporary files
    (``TMPDIR``).
    """
    if not is_url(path):
        return Path(path).absolute()
    return Path(tempfile.gettempdir()) / os.fspath(path).rstrip("/").rpartition("/")[2]


def _refuse_objects(objects: Objects) -> None:
    if objects.size(PLAN_KEY) is not None:
        raise StoreExistsError(
            f"{objects.url}: a store exists here already, and it is left as it is. `actlas "
            f"extract {objects.url}` continues it; give another path for another plan.",
            path=objects.url,
        )
    # What a check of the bucket left behind is nobody's data.
    if all(key.startswith(f"{STAGING}/") for key in objects.walk()):
        return
    try:
        root = read_json(objects, "zarr.json").get("attributes")
    except (FileNotFoundError, FormatError):
        root = None
    if not isinstance(root, dict) or "actlas" not in root:
        raise StoreExistsError(
            f"{objects.url}: this prefix is not empty, and it is not a store. Give a "
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
            f"{path}: a store exists here already, and it is left as it is. `actlas extract "
            f"{path}` continues it; give another path for another plan.",
            path=str(path),
        )
    if path.is_dir() and any(path.iterdir()):
        raise StoreExistsError(
            f"{path}: this folder is not empty and is not a store. Give a path that does not exist "
            "yet.",
            path=str(path),
        )
