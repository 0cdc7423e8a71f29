"""Annotations of arrays: each is one that can be checked, and the tests check it."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from support import shapes

MADE_UP = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Float32
    from numpy.typing import NDArray
    from nowhere import Missing

def scaled(
    rows: Float32[NDArray[np.float32], "rows units"],
    by: Float[NDArray[Any], " units"],
    other: Missing = None,
) -> Float[NDArray[Any], "rows units"]:
    return (rows * by) if other is None else rows[0]

def several(n: int, rows: Float[NDArray[Any], "{n} units"]) -> Float[NDArray[Any], "{n-1} units"]:
    return rows[:2]

@dataclass(frozen=True, slots=True)
class Pair:
    rows: Float[NDArray[Any], "rows units"]
    by: Float[NDArray[Any], " rows"]

    @property
    def scaled(self) -> Float[NDArray[Any], " units"]:
        return self.rows[0]
"""


class Hint(NamedTuple):
    """An annotation in the source of a module."""

    module: str
    line: int
    text: str


def hints(module: str, file: Path) -> Iterator[Hint]:
    """Yield a module's annotations that are written with names of jaxtyping's."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
        for alias in node.names
    }
    for node in ast.walk(tree):
        found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for hint in filter(None, found):
            if ours & {n.id for n in ast.walk(hint) if isinstance(n, ast.Name)}:
                yield Hint(module, hint.lineno, ast.unparse(hint))


def test_every_annotation_of_an_array_can_be_checked() -> None:
    """One that cannot be evaluated is skipped by the hook without a word."""
    modules = shapes.annotated()
    for module, file in modules.items():
        loaded: Any = importlib.import_module(module)
        for hint in hints(module, file):
            try:
                value = eval(hint.text, vars(loaded))
            except (NameError, AttributeError, ValueError) as error:
                raise AssertionError(f"{file}:{hint.line}: {hint.text}: {error}") from error
            assert shapes.mentions_array(value), hint


def test_a_wrong_shape_or_dtype_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/made_up.py").write_text(MADE_UP)
    (tmp_path / "store/without.py").write_text("")
    monkeypatch.setattr(shapes, "ROOT", tmp_path)
    assert list(shapes.annotated()) == ["actlas.store.made_up"]
    import actlas.store

    monkeypatch.setattr(actlas.store, "__path__", [str(tmp_path / "store")])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    shapes.install()
    made_up = importlib.import_module("actlas.store.made_up")
    monkeypatch.delitem(sys.modules, made_up.__name__)
    rows, by = np.ones((3, 2), np.float32), np.ones(2)
    assert made_up.scaled(rows, by).shape == (3, 2)
    for bad_rows, bad_by in ((rows.astype(np.float64), by), (rows[0], by), (rows, np.ones(3))):
        with pytest.raises(BeartypeCallHintParamViolation, match="scaled"):
            made_up.scaled(bad_rows, bad_by)
    with pytest.raises(BeartypeCallHintReturnViolation, match="scaled"):
        made_up.scaled(rows, by, 1)
    assert made_up.several(3, rows).shape == (2, 2)
    with pytest.raises(BeartypeCallHintParamViolation, match="several"):
        made_up.several(2, rows)
    assert made_up.Pair(rows, np.ones(3)).scaled.shape == (2,)
    with pytest.raises(BeartypeCallHintParamViolation, match="by"):
        made_up.Pair(rows, by)
