"""What a folder is that was given in place of another: a store, a mask, an autoencoder, a model."""

from __future__ import annotations

import os
from pathlib import Path

_KINDS = {
    "ledger/plan.json": "a store of actlas",
    "cfg.json": "the folder of a sparse autoencoder",
    "checkpoint.safetensors": "the folder of an unfinished training",
    "mask.json": "the result of `actlas localize`",
}

_MODEL = b'"model_type"'
"""What the configuration of a model has, and other files of this name do not have."""

_LOOK_BYTES = 1 << 20


def kind_of_folder(path: Path) -> str | None:
    """Return what a folder is by its files, with an article; None for a folder of other files.

    Parameters
    ----------
    path : Path
        The folder.
    """
    kind = next((kind for name, kind in _KINDS.items() if (path / name).exists()), None)
    return "the folder of a model" if kind is None and _has_model(path) else kind


def _has_model(path: Path) -> bool:
    try:
        with (path / "config.json").open("rb") as file:
            return _MODEL in file.read(_LOOK_BYTES)
    except OSError:
        return False


def store_around(path: Path) -> Path | None:
    """Return the store that a path lies in, below its top; None if it lies in none.

    Parameters
    ----------
    path : Path
        Anything, existing or not.
    """
    folders = Path(os.path.abspath(path)).parents  # noqa: PTH100 - keep links
    return next((folder for folder in folders if _there(folder / "ledger/plan.json")), None)


def _there(file: Path) -> bool:
    """Return whether a file exists; not where its path is none that a file system could have."""
    try:
        return file.exists()
    except OSError:
        return False
