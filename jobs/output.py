"""Output folders and files that appear complete or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actlas.store.display.folders import store_around
from actlas.store.errors import ConfigError, StoreExistsError
from actlas.store.objects import leftovers
from actlas.store.objects.faults import writing
from actlas.store.write.plain import EXPORTED


@contextmanager
def output_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to write in, and rename it once it is complete.

    Parameters
    ----------
    path : path
        The output folder. It must not exist, or be empty.
    overwrite : bool
        Replace its contents.

    Raises
    ------
    StoreExistsError
        The folder is not empty; it is left as it is.
    RunFaultError
        The disk is full or fails; a ``PlaceError`` where the folder cannot be there at all. The
        temporary folder is removed.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "results"
    >>> with output_folder(folder) as staged:
    ...     _ = (staged / "a.txt").write_text("whole")
    >>> (folder / "a.txt").read_text()
    'whole'
    """
    final = Path(path).expanduser().absolute()
    check_free(final, overwrite=overwrite)
    staged = leftovers.beside(final)
    with writing(final):
        try:
            staged.mkdir(parents=True)
            yield staged
            _put(staged, final, overwrite=overwrite)
        finally:
            leftovers.remove(staged)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a file atomically: it has the old contents or the new ones.

    Parameters
    ----------
    path : path
        The file.
    text : str
        The new contents.

    Raises
    ------
    RunFaultError
        The disk is full or fails; a ``PlaceError`` where the file cannot be there at all.
    ConfigError
        The folder does not exist, or the path is a folder.
    """
    final = check_file(path)
    with writing(final), leftovers.staged_file(final) as staged:
        staged.write_text(text, encoding="utf-8")


def check_file(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file to write; also called before long work.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    ConfigError
        The folder does not exist, or the path is a folder, a URL, or inside a store.
    """
    final = Path(path).expanduser().absolute()
    refuse_url(final)
    refuse_inside_store(final)
    with writing(final):
        if final.is_dir() or not final.parent.is_dir():
            raise ConfigError(f"{final}: expected the name of a file in an existing folder.")
    return final


def refuse_url(path: Path) -> None:
    """Raise ``ConfigError`` for a URL, because results are written to this machine only."""
    schemes = [i for i, part in enumerate(path.parts) if re.fullmatch(r"[a-z][a-z0-9+]+:", part)]
    if schemes:
        scheme, *rest = path.parts[schemes[0] :]
        raise ConfigError(
            f"{scheme}//{'/'.join(rest)}: got a URL, expected a folder or a file of this "
            "machine: results are written locally, wherever the store is.",
            field="out",
        )


def refuse_inside_store(path: Path) -> None:
    """Raise ``ConfigError`` for a path inside a store, whose files are all its own.

    Parameters
    ----------
    path : Path
        The output folder or file.
    """
    if (store := store_around(path.expanduser())) is not None:
        raise ConfigError(
            f"{path}: lies in the store {store}, where `actlas verify` would report it as an "
            "orphan. Give a path outside of it.",
            field="out",
        )


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Raise ``StoreExistsError`` if a path holds something that may not be replaced.

    It is also called before long work, so that the user learns of it first. What killed runs left
    beside the path is swept; a folder that was being replaced when its run was killed comes back.
    Whether a folder can be made there is tried.

    Parameters
    ----------
    path : Path
        The output folder.
    overwrite : bool
        Whether its contents may be replaced.
    """
    refuse_url(path)
    refuse_inside_store(path)
    with writing(path):
        _sweep(path)
        _require_free(path, overwrite=overwrite)
        above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        tried = leftovers.beside(above / path.name)
        tried.mkdir()
        leftovers.remove(tried)


def _sweep(path: Path) -> None:
    leftovers.sweep(path)
    for old in leftovers.leftovers(path, leftovers.OLD):
        if path.exists() or path.is_symlink():
            leftovers.remove(old)
        else:  # killed between the two renames of _put
            old.rename(path)


def _require_free(path: Path, *, overwrite: bool) -> None:
    if path.is_dir() and not path.is_symlink():
        if overwrite and not _is_array_data(path):
            return
        if not any(path.iterdir()):
            return
    elif not path.exists() and not path.is_symlink():
        return
    raise StoreExistsError(
        f"{path}: exists and is not empty; it is left as it is. Give another folder"
        + (", or --overwrite." if path.is_dir() and not overwrite else "."),
        path=str(path),
    )


def _is_array_data(path: Path) -> bool:
    """Whether a folder is a store or other Zarr data, which is never replaced; copies are."""
    root = path / "zarr.json"
    return (path / "ledger").exists() or (
        root.exists() and EXPORTED.encode() not in root.read_bytes()
    )


def _put(staged: Path, final: Path, *, overwrite: bool) -> None:
    _require_free(final, overwrite=overwrite)
    if not final.exists():
        staged.rename(final)
        return
    old = leftovers.beside(final, leftovers.OLD)
    final.rename(old)
    staged.rename(final)
    leftovers.remove(old)
