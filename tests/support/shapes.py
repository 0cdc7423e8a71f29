"""Checks the shapes and dtypes that jaxtyping annotations promise, wherever a test calls.

Production code imports jaxtyping under ``if TYPE_CHECKING`` alone, so that it costs nothing there.
Here each module that does so is instrumented as it is imported: the names that it imports for its
annotations are put into it first, and every function with a hint of an array is decorated. Only
hints of arrays are checked: all others are mypy's. A function is prepared when it is first called.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, get_args, get_origin

import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("store", "pipeline", "analysis", "jobs")
LIBRARIES = frozenset({"jaxtyping", "numpy", "torch"})
"""What annotations of arrays are made of."""
_DECORATOR = "_arrays_are_checked"
"""The decorator's name in an instrumented module."""


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


def checked(function: Any) -> Any:
    """Return a function whose arrays are checked at each call, each axis's name by one length.

    Of a dataclass the arrays that it is made of are checked.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    prepared: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not prepared:
            prepared.append(_prepared(function))
        with jaxtyped("context"):
            return prepared[0](*arguments, **named)

    return call


class _Array:
    """Stands for numpy's ``NDArray``, an alias from numpy 2.5 on, of which jaxtyping makes none."""

    def __class_getitem__(cls, _dtype: Any) -> Any:
        return np.ndarray


def _with_arrays(names: dict[str, Any]) -> dict[str, Any]:
    """Return a module's names, with numpy's array for ``NDArray`` and for aliases of it."""
    aliases = {n: np.ndarray for n, value in names.items() if get_origin(value) is NDArray}
    return {**names, **aliases, "NDArray": _Array}


def _prepared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as beartype checks it, with its hints of arrays alone."""
    hints, names = function.__annotations__, _with_arrays(function.__globals__)
    texts = {name: hint for name, hint in hints.items() if _may_be_array(hint, names)}
    if inspect.isgeneratorfunction(function):
        texts.pop("return", None)  # what it yields comes later
    values = {name: eval(text, names) for name, text in texts.items()}
    function.__annotations__ = {name: hint for name, hint in values.items() if mentions_array(hint)}
    try:
        made: Callable[..., Any] = beartype(function)
    finally:
        function.__annotations__ = hints
    # An axis may be said by the values of arguments, which jaxtyping's own wrapper binds.
    symbolic = any("{" in text for text in texts.values())
    return jaxtyped(made, typechecker=None) if symbolic else made


def _may_be_array(hint: Any, names: dict[str, Any]) -> bool:
    """Whether a hint has a name of jaxtyping's in it: others may have names that are not there."""
    if not isinstance(hint, str):
        return False
    found = (names.get(n.id) for n in ast.walk(ast.parse(hint)) if isinstance(n, ast.Name))
    return any(getattr(value, "__module__", None) == "jaxtyping" for value in found)


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


class _Decorated(ast.NodeTransformer):
    """Decorates every function and dataclass that has a hint with one of some names."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        hints = [node.returns, *(one.annotation for one in every if one is not None)]
        if any(map(self._named, hints)):
            # The last one: the function itself, below property and the like.
            node.decorator_list.append(self._decorator(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        hints = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        made = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        if made and any(map(self._named, hints)):
            node.decorator_list.insert(0, self._decorator(node))
        return node

    def _decorator(self, node: ast.AST) -> ast.expr:
        return ast.copy_location(ast.Name(_DECORATOR, ast.Load()), node)

    def _named(self, hint: ast.expr | None) -> bool:
        parts = ast.walk(hint) if hint is not None else ()
        return any(isinstance(part, ast.Name) and part.id in self._names for part in parts)


class _Loader(SourceFileLoader):
    """Compiles a module with the decorator at its functions of arrays."""

    def get_code(self, fullname: str) -> CodeType:
        # Not from a cached file, nor into one: that is of the module as it is.
        source = self.get_data(self.path)
        tree = ast.parse(source)
        names = {
            alias.asname or alias.name
            for node in _for_types(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
            for alias in node.names
        }
        code: CodeType = compile(
            _Decorated(names).visit(tree), self.path, "exec", dont_inherit=True
        )
        return code

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_DECORATOR] = checked
        vars(module).update(imported_for_types(self.get_data(self.path).decode()))
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the modules that have annotations of arrays."""

    def __init__(self, modules: dict[str, Path]) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Instrument every module that has annotations of arrays, before any of them is imported."""
    modules = annotated()
    if early := sorted(set(modules) & set(sys.modules)):
        raise RuntimeError(f"imported before their shapes could be checked: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(modules))
