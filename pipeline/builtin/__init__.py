"""Data shipped with actlas: a small language model, corpora and stimuli. Light to import.

May import: nothing of actlas.
Start with ``corpora.py``: ``BUILTIN_CORPORA``.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

MODEL_NAMES = ("actlas-6m",)
"""Names of the models shipped in the package."""


def builtin_model_path(name: str) -> Path:
    """Return the folder of a shipped model, in transformers' format.

    Parameters
    ----------
    name : str
        One of ``MODEL_NAMES``.

    Raises
    ------
    ValueError
        No such model is shipped.
    FileNotFoundError
        The package is in an archive, so that the model has no folder.

    Examples
    --------
    >>> (builtin_model_path("actlas-6m") / "config.json").is_file()
    True
    """
    if name not in MODEL_NAMES:
        known = ", ".join(MODEL_NAMES)
        raise ValueError(f"no builtin model {name!r}; known: {known}")
    folder = Path(str(files(__name__).joinpath(name)))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: install actlas unpacked, not zipped")
    return folder
