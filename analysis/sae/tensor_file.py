"""Writing safetensors files: complete or not at all, with the operating system's own errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from actlas.store.objects import leftovers

_OS_ERROR = re.compile(r"\(os error (\d{1,5})\)")


def save_tensors(
    tensors: Mapping[str, torch.Tensor], final: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Replace a safetensors file; after a crash the old or the new one is there, whole.

    The library writes to a file of a random name beside the one that it is given. It is given one
    in a temporary folder, which the next run sweeps if this one is killed.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The tensors.
    final : Path
        The file.
    metadata : mapping of str to str, optional
        The file's metadata.

    Raises
    ------
    OSError
        The disk is full or fails: the library itself raises an error of its own for that.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    leftovers.sweep(final)
    folder = leftovers.beside(final)
    try:
        folder.mkdir(mode=0o700)
        staged = folder / final.name
        try:
            save_file(dict(tensors), staged, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            if (code := _OS_ERROR.search(str(error))) is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(staged)) from error
        with staged.open("rb+") as file:
            os.fsync(file.fileno())
        staged.replace(final)
    finally:
        leftovers.remove(folder)
