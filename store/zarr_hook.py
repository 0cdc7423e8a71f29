"""Registration of bfloat16 with zarr-python once zarr is imported, without importing it.

:mod:`actlas.store.zarr_bfloat16` provides the data type through the ``zarr.data_type`` entry point.
zarr 3.1 (the last version for Python 3.11) collects that entry point but never loads it, so
:func:`register_with_zarr` registers the type as soon as zarr is imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _AfterZarr(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports zarr as usual, then registers bfloat16 with it."""

    def __init__(self) -> None:
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find zarr as usual, and wrap its loader in this one."""
        if fullname != "zarr":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Delegate to zarr's own loader."""
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run zarr's own loader, then register the data type."""
        assert self._loader is not None
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def _register() -> None:
    """Import the data type, which registers itself.

    If importing :mod:`actlas.store.zarr_bfloat16` is what imports zarr, that module is already in
    ``sys.modules``, incomplete; then nothing happens here, and it registers itself at its end.
    """
    importlib.import_module("actlas.store.zarr_bfloat16")


def register_with_zarr() -> None:
    """Make zarr support bfloat16: now if it is imported, else as soon as it is.

    Importing zarr takes 0.2 to 0.4 s, which ``actlas --help`` must not spend.
    """
    if "zarr" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterZarr) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterZarr())
