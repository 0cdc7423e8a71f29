"""Every docstring keeps what it promises: no parameter without a word, none that does not exist."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("store", "pipeline", "analysis", "jobs")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
UNDERLINE = re.compile(r"-{3,}")
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Entry(NamedTuple):
    """One parameter or attribute that a docstring lists."""

    names: list[str]
    section: str
    described: bool


def entries(docstring: str) -> Iterator[Entry]:
    """Yield what the sections of a NumPy docstring list."""
    lines = [*inspect.cleandoc(docstring).splitlines(), ""]
    section = ""
    for line, following in itertools.pairwise(lines):
        if UNDERLINE.fullmatch(following.strip()):
            section = line.strip()
        elif line.startswith(">>>"):
            section = ""
        elif (
            section in {"Parameters", "Attributes"}
            and line
            and not line[0].isspace()
            and not UNDERLINE.fullmatch(line)
        ):
            names = re.split(r"\s*,\s*", line.split(" : ")[0].strip())
            yield Entry([name.lstrip("*") for name in names], section, following[:1].isspace())


def documented(path: Path) -> Iterator[tuple[Documented, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Documented) and (docstring := ast.get_docstring(node, clean=False)):
            yield node, docstring


def parameters(node: Documented) -> set[str] | None:
    """Return the names that a signature takes, or None for a class whose fields make it."""
    if isinstance(node, ast.ClassDef):
        found = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not found:
            return None
        node = found[0]
    taken = node.args
    every = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
    return {argument.arg for argument in every if argument is not None}


def test_the_parser_sees_what_is_wrong() -> None:
    text = (
        "Add.\n\n    Parameters\n    ----------\n    a, b : int\n    c : int\n        A word.\n    "
    )
    assert list(entries(text)) == [
        Entry(["a", "b"], "Parameters", described=False),
        Entry(["c"], "Parameters", described=True),
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_every_listed_parameter_has_a_word(room: str) -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {', '.join(entry.names)}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == room
        for node, docstring in documented(path)
        for entry in entries(docstring)
        if not entry.described
    ]
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize("room", ROOMS)
def test_every_listed_parameter_exists(room: str) -> None:
    strangers = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == room
        for node, docstring in documented(path)
        for entry in entries(docstring)
        if entry.section == "Parameters" and (taken := parameters(node)) is not None
        for name in entry.names
        if name not in taken
    ]
    assert not strangers, "\n".join(strangers)


def test_every_room_says_what_belongs_there() -> None:
    for path in (file for file in FILES if file.name == "__init__.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(docstring.splitlines()) >= 3, f"{path.relative_to(ROOT)}: {docstring!r}"


def test_no_room_is_crowded() -> None:
    """A folder holds about a dozen files; the verbs of the command line have a file each."""
    for room in {path.parent for path in FILES} - {ROOT / "jobs" / "cli"}:
        n_files = len([path for path in FILES if path.parent == room])
        assert n_files <= 14, f"{room.relative_to(ROOT)} holds {n_files} files"
