"""Notebooks without Jupyter: to run one, to keep what it shows, and to turn it into a page.

``python -m docs_site.notebooks docs/notebooks/*.ipynb`` runs each and writes its outputs into it.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = 96
"""Characters of a line of printed output on a page."""


def code_of(notebook: dict[str, Any]) -> list[str]:
    """Return the source of each code cell.

    Parameters
    ----------
    notebook : dict
        The notebook's JSON.
    """
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


@contextlib.contextmanager
def in_empty_folder() -> Iterator[str]:
    """Work in an empty temporary folder, whose path is yielded."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield os.path.realpath(folder)
        finally:
            os.chdir(before)


def run(notebook: dict[str, Any], name: str) -> list[list[dict[str, Any]]]:
    """Run the code cells in order, in an empty folder; return each cell's outputs.

    Parameters
    ----------
    notebook : dict
        The notebook's JSON.
    name : str
        The notebook's name, for tracebacks.

    Raises
    ------
    Exception
        What a cell raises, with the cell's number as a note.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    with in_empty_folder() as folder:
        for number, code in enumerate(code_of(notebook), 1):
            try:
                outputs.append(_run_cell(code, f"{name}, cell {number}", namespace))
            except BaseException as error:
                error.add_note(f"in {name}, code cell {number}")
                raise
    return json.loads(json.dumps(outputs).replace(f"{folder}/", ""))  # no path of a machine


def _run_cell(code: str, where: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), namespace)  # noqa: S102 - our own notebooks
        if last is not None:
            expression = compile(ast.Expression(last.value), where, "eval")
            value = eval(expression, namespace)  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
    if value is not None:
        outputs.append({"output_type": "display_data", "data": _shown(value), "metadata": {}})
    return outputs


def _shown(value: Any) -> dict[str, str]:
    """Return a value as a notebook shows it: a figure or picture, HTML, or its repr."""
    if hasattr(value, "savefig"):
        buffer = io.BytesIO()
        value.savefig(buffer, format="png", dpi=80)
        return {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    if isinstance(value, Path) and value.suffix == ".png":
        return {"image/png": base64.b64encode(value.read_bytes()).decode()}
    data = {"text/plain": repr(value)}
    html = getattr(value, "_repr_html_", lambda: None)()
    return data | ({"text/html": html} if html else {})


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook as a page: text, code, and the outputs that it holds.

    Parameters
    ----------
    notebook : dict
        The notebook's JSON.
    """
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts.extend(_output(output) for output in cell["outputs"])
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        lines = "".join(output["text"]).rstrip().splitlines()
        wrapped = "\n".join(textwrap.fill(line, COLUMNS) for line in lines)
        return f"```text\n{wrapped}\n```"
    data = output["data"]
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        lines = "".join(data["text/html"]).splitlines()
        return "<div class='output'>\n" + "\n".join(line for line in lines if line) + "\n</div>"
    return f"```text\n{''.join(data['text/plain'])}\n```"


def main(paths: list[str]) -> None:
    """Run notebooks and write their outputs into them.

    Parameters
    ----------
    paths : list of str
        Notebook files.
    """
    for path in paths:
        notebook = json.loads(Path(path).read_text())
        outputs = iter(run(notebook, Path(path).stem))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = next(outputs)
        Path(path).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
