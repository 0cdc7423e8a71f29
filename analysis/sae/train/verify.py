"""Verification of an autoencoder's folder, or a training's, against the checksums in it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from actlas.analysis.sae.foreign import Folder, is_unfinished, kind_of, raise_if_foreign
from actlas.analysis.sae.record import (
    CONFIG_FILE,
    OWN_FILE,
    WEIGHTS_FILE,
    Record,
    check_files,
    read_record,
)
from actlas.analysis.sae.saelens_format import load_sae
from actlas.analysis.sae.train.checkpoint import STATE_FILE, read_state
from actlas.store.errors import ActlasError, CorruptDataError, SaeError


class Verified(NamedTuple):
    """The result of verifying a folder.

    Attributes
    ----------
    what : str
        What the folder is, and what its files were compared with.
    damages : tuple of (str, str)
        The name of each damaged file, and what is wrong.
    n_files, n_bytes : int
        Number of files that were compared, and their bytes.
    finished : bool
        Whether the training is finished.
    """

    what: str
    damages: tuple[tuple[str, str], ...]
    n_files: int
    n_bytes: int
    finished: bool = True


_OWN = frozenset((CONFIG_FILE, WEIGHTS_FILE, OWN_FILE))


def is_sae_folder(folder: Path) -> bool:
    """Return whether a folder is one for :func:`verify_sae`, of ours or of another library.

    Parameters
    ----------
    folder : Path
        The folder.
    """
    found = Folder.of(folder)
    if {"zarr.json", "ledger"} & found.names:
        return False
    own = bool(_OWN & found.names) or is_unfinished(found.names)
    return own or kind_of(found) is not None


def verify_sae(folder: Path) -> Verified:
    """Check every byte of a folder's files that a checksum is recorded of.

    Parameters
    ----------
    folder : Path
        The folder of a sparse autoencoder, or of a training.

    Raises
    ------
    SaeError
        The folder is another library's, or SAELens's and cannot be loaded.
    """
    names = {path.name for path in folder.iterdir()}
    if is_unfinished(names):
        return _unfinished(folder, names)
    raise_if_foreign(folder)
    try:
        record = read_record(folder)
    except SaeError as error:
        return Verified("a sparse autoencoder", (_damage(folder, error),), 1, 0)
    if record is None:
        load_sae(folder)
        what = f"a sparse autoencoder without checksums (no {OWN_FILE}): it loads"
        return Verified(what, (), *_size(folder, (CONFIG_FILE, WEIGHTS_FILE)))
    return _recorded(folder, record)


def _unfinished(folder: Path, names: set[str]) -> Verified:
    what = "an unfinished training's checkpoint against its checksum"
    if STATE_FILE not in names:
        return Verified(what, (), 0, 0, finished=False)
    damages: tuple[tuple[str, str], ...] = ()
    try:
        read_state(folder)
    except CorruptDataError as error:
        damages = (_damage(folder, error),)
    return Verified(what, damages, *_size(folder, (STATE_FILE,)), finished=False)


def _recorded(folder: Path, record: Record) -> Verified:
    damages = [_damage(folder, error) for error in check_files(folder, record)]
    if not damages:
        try:
            load_sae(folder)
        except SaeError as error:
            damages = [_damage(folder, error)]
    what = f"files of a sparse autoencoder against the SHA-256 in {OWN_FILE}"
    if not record.sealed:
        what += " (of an earlier version: weights and configuration alone)"
    return Verified(what, tuple(damages), *_size(folder, (*record.sha256, OWN_FILE)))


def _damage(folder: Path, error: ActlasError) -> tuple[str, str]:
    path = Path(str(error.details.get("path", folder)))
    return path.name, error.message.removeprefix(f"{path}: ")


def _size(folder: Path, names: tuple[str, ...]) -> tuple[int, int]:
    there = [folder / name for name in names if (folder / name).is_file()]
    return len(there), sum(path.stat().st_size for path in there)
