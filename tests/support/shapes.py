"""Checks the shapes and dtypes that jaxtyping annotations promise, wherever a test calls.

Production code imports jaxtyping under ``if TYPE_CHECKING`` alone, so that it costs nothing there.
Here each module that does so is instrumented as it is imported, by jaxtyping's own import hook, and
the names that it imports for its annotations are put into it first. Only hints of arrays are
checked: all others are mypy's.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("store", "pipeline", "analysis", "jobs")
LIBRARIES = frozenset({"jaxtyping", "numpy", "torch"})
"""What annotations of arrays are made of."""


def annotated() -> dict[str, Path]:
    """Return the modules whose source imports jaxtyping: name to file."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "from jaxtyping import" in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(("actlas", *parts)).removesuffix(".__init__")] = path
    return found


def mentions_array(hint: Any) -> bool:
    """Whether a type hint is of an array's shape, or holds one that is."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(mentions_array, get_args(hint)))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose array hints beartype checks: the type checker of the import hook."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if mentions_array(hint)}
    return beartype(function) if function.__annotations__ else function


def imported_for_types(source: str) -> dict[str, Any]:
    """Import what a module imports of :data:`LIBRARIES` under ``if TYPE_CHECKING``, by its names.

    Parameters
    ----------
    source : str
        The module's source code.
    """
    names: dict[str, Any] = {}
    for node in _for_types(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and _root(node.module) in LIBRARIES:
            loaded = importlib.import_module(str(node.module))
            names |= {
                alias.asname or alias.name: getattr(loaded, alias.name) for alias in node.names
            }
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _root(alias.name) in LIBRARIES:
                    loaded = importlib.import_module(alias.name)
                    top = sys.modules[_root(alias.name)]
                    names[alias.asname or _root(alias.name)] = loaded if alias.asname else top
    return names


def _for_types(module: ast.Module) -> Iterator[ast.stmt]:
    for block in module.body:
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"):
            yield from block.body


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]


class _NamesFirst(MetaPathFinder):
    """Puts the names of annotations into a module before jaxtyping's loader runs it."""

    def __init__(self, modules: dict[str, Path], hook: MetaPathFinder) -> None:
        self._modules, self._hook = modules, hook

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._modules.get(fullname)
        spec = None if file is None else self._hook.find_spec(fullname, path, target)
        if file is None or spec is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(module).update(imported_for_types(file.read_text(encoding="utf-8")))
            execute(module)

        loader.exec_module = exec_module
        return spec


def install() -> None:
    """Instrument every module that has annotations of arrays, before any of them is imported."""
    modules = annotated()
    if early := sorted(set(modules) & set(sys.modules)):
        raise RuntimeError(f"imported before their shapes could be checked: {', '.join(early)}")
    manager = install_import_hook([*modules], "support.shapes.checked")
    sys.meta_path.insert(0, _NamesFirst(modules, manager.hook))
