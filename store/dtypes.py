"""The data types of a store, bfloat16 among them, and how Zarr comes to know it.

bfloat16 is the zarr-extensions data type of that name, held in numpy by ``ml_dtypes``. zarr-python
has none of its own: :mod:`actlas.store.zarr_bfloat16` gives it one, through the ``zarr.data_type``
entry point. zarr 3.1 (the last for Python 3.11) collects that entry point and never loads it, so
:func:`register_with_zarr` does, the moment zarr is imported and no earlier.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Literal, get_args

import ml_dtypes
import numpy as np

ActivationDtype = Literal["bfloat16", "float16", "float32"]
ACTIVATION_DTYPES: tuple[str, ...] = get_args(ActivationDtype)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """Return numpy's dtype, little-endian, for the name of a Zarr v3 data type.

    Examples
    --------
    >>> numpy_dtype("bfloat16").itemsize
    2
    """
    return BFLOAT16 if name == "bfloat16" else np.dtype(name).newbyteorder("<")


def fill_value(name: str) -> int | str:
    """Return the JSON fill value: NaN for floats, -1 for signed integers, else 0.

    A missing chunk reads as this value in every Zarr library, with no error: it must not look
    like data.
    """
    if name in ACTIVATION_DTYPES or name == "float64":
        return "NaN"
    return -1 if name.startswith("int") else 0


class _AfterZarr(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets the import of zarr run as always, then registers bfloat16 with it."""

    def __init__(self) -> None:
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find zarr by the ordinary way, and put this loader around it."""
        if fullname != "zarr":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to zarr's own loader."""
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run zarr's own loader, then register."""
        assert self._loader is not None
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def _register() -> None:
    from zarr.dtype import data_type_registry

    from actlas.store.zarr_bfloat16 import BFloat16

    data_type_registry.register("bfloat16", BFloat16)


def register_with_zarr() -> None:
    """Make zarr open bfloat16 arrays: now if it is loaded, else as soon as it is.

    Importing zarr takes 0.2-0.4 s, which ``actlas --help`` should not pay.
    """
    if "zarr" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterZarr) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterZarr())
