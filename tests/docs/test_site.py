"""The documentation's site: every page is in its navigation, every notebook runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docs_site.links import local_targets, page_of, repository_path, rewritten, site_path
from docs_site.notebooks import as_markdown, code_of
from support.pages import PAGES, ROOT

import actlas

DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def navigation() -> list[str]:
    """The pages that mkdocs.yml names, in order."""
    found: list[str] = []

    def walk(item: object) -> None:
        if isinstance(item, str):
            found.append(item)
        for child in item.values() if isinstance(item, dict) else item:  # type: ignore[attr-defined]
            if not isinstance(item, str):
                walk(child)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in [*DOCS.rglob("*.md"), *NOTEBOOKS]]
    assert sorted(navigation()) == sorted(pages)


def test_every_page_is_linked_from_the_first_one_or_a_guide() -> None:
    linked = {
        repository_path(page.relative_to(ROOT).as_posix(), target)
        for page in PAGES
        for target in local_targets(page.read_text())
    }
    pages = {path.relative_to(ROOT).as_posix() for path in [*PAGES, *NOTEBOOKS]}
    assert pages - linked <= {"README.md", "docs/README.md"}


def test_every_public_name_is_in_the_reference() -> None:
    names = re.findall(r"^::: actlas\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    base = {"ActlasError", "__version__"}  # the error is among its subclasses
    assert sorted({*names, *base}) == sorted(actlas.__all__)


def test_links_lead_to_pages_of_the_site() -> None:
    links = {
        "../localizer.md#masks": "../localizer.md#masks",
        "../../Dockerfile": "../repository/Dockerfile.md",
        "../notebooks/localizer.ipynb": "../notebooks/localizer.md",
        "../../benchmarks/results": "../repository/benchmarks/results/index.md",
        "https://example.org": "https://example.org",
    }
    for target, expected in links.items():
        fenced = f"```text\n[f]({target})\n```\n"
        text = rewritten(f"[f]({target})\n{fenced}", "docs/guides/localize.md", ROOT)
        assert text == f"[f]({expected})\n{fenced}"
    assert site_path("CONTRIBUTING.md", ROOT) == "repository/CONTRIBUTING.md"
    assert page_of("Dockerfile", ROOT).startswith("# Dockerfile\n\n````text\n")
    assert "[ablate.schema.json](ablate.schema.json)" in page_of("docs/json", ROOT)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_name_no_machine(notebook: Path) -> None:
    text = notebook.read_text()
    assert len(text) < 200_000
    assert not re.search(r"/(tmp|home|root|dev)/", text)
    content = json.loads(text)
    shown = [cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code"]
    assert sum(map(bool, shown)) >= len(shown) - 2  # the first cells may only prepare
    page = as_markdown(content)
    assert page.startswith("# ") and page.count("```python") == len(code_of(content))


@pytest.mark.slow
def test_every_notebook_runs() -> None:
    """All in one process, which imports torch once; what they show is not compared."""
    code = (
        "import json, pathlib, sys\n"
        "from docs_site.notebooks import run\n"
        "for path in sys.argv[1:]:\n"
        "    run(json.loads(pathlib.Path(path).read_text()), pathlib.Path(path).stem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, NOTEBOOKS)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), *sys.path])},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
