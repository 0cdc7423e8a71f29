"""Documentation read from Python source text; nothing is imported or executed."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "test", "tests", "testing", "idle_test", "site-packages", "dist-packages"}
)
"""Folders whose modules are tests, or belong to another root."""


class Docstring(NamedTuple):
    """The cleaned docstring of one module, class or function.

    Attributes
    ----------
    name : str
        Dotted name, such as ``json.dumps``.
    text : str
        The docstring without its indentation.
    """

    name: str
    text: str


def module_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the path of every module under ``root``, sorted by name.

    Test packages, caches, nested package roots and names that cannot be imported (such as the
    folder ``config-3.11-x86_64``) are left out.

    Parameters
    ----------
    root : Path
        The folder of the modules.
    """
    for entry in sorted(root.iterdir(), key=lambda path: path.name):
        if entry.is_dir():
            if entry.name in SKIPPED_FOLDERS or not entry.name.isidentifier():
                continue
            for name, path in module_files(entry):
                yield f"{entry.name}.{name}" if name else entry.name, path
        elif entry.suffix == ".py" and entry.stem == "__init__":
            yield "", entry
        elif entry.suffix == ".py" and _is_module(entry.stem):
            yield entry.stem, entry


def _is_module(name: str) -> bool:
    return name.isidentifier() and not name.startswith("test_")


def docstrings(source: str | bytes, module: str) -> Iterator[Docstring]:
    r"""Yield the docstrings of ``source`` in their order.

    Parameters
    ----------
    source : str or bytes
        Python source; bytes are decoded as the language defines (PEP 263).
    module : str
        The module's name, the first part of each docstring's name.

    Raises
    ------
    SyntaxError
        ``source`` is not valid in the running version of Python.

    Examples
    --------
    >>> list(docstrings('def f():\n    "Say so."', "m"))
    [Docstring(name='m.f', text='Say so.')]
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes in the source
        tree = ast.parse(source)
    yield from _walk(tree, module)


def _walk(node: ast.Module | ast.ClassDef | ast.stmt, name: str) -> Iterator[Docstring]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    if documented or isinstance(node, ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
        if text is not None and (text := inspect.cleandoc(text)):
            yield Docstring(name, text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _walk(child, name)
