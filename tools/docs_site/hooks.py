"""MkDocs' hooks: notebooks and files of the repository become pages, and links lead to them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs_site.links import local_targets, page_of, repository_path, rewritten, site_path
from docs_site.notebooks import as_markdown

ROOT = Path(__file__).resolve().parents[2]


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for each notebook, and for each file or folder that a page links to."""
    texts: dict[str, str] = {}
    for file in list(files):
        path = f"docs/{file.src_uri}"
        if path.endswith(".ipynb"):
            files.remove(file)
            texts[path] = as_markdown(json.loads((ROOT / path).read_text()))
        elif path.endswith(".md"):
            texts[path] = (ROOT / path).read_text()
    waiting = list(texts)
    while waiting:
        source = waiting.pop()
        for target in local_targets(texts[source]):
            path = repository_path(source, target)
            if path in texts or not (ROOT / path).exists() or _is_static(path):
                continue
            texts[path] = page_of(path, ROOT)
            waiting.append(path if (ROOT / path).is_file() else f"{path}/index.md")
            texts.setdefault(waiting[-1], texts[path])
    for path, text in texts.items():
        if (ROOT / path).is_dir():
            continue
        uri = site_path(path, ROOT)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, content=text))
    _SOURCES.update({site_path(path, ROOT): path for path in texts})
    return files


_SOURCES: dict[str, str] = {}
"""The path in the repository of each page, by the site's source file."""


def _is_static(path: str) -> bool:
    """Whether MkDocs copies a file as it is."""
    place = ROOT / path
    return path.startswith("docs/") and place.is_file() and place.suffix not in (".md", ".ipynb")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite a page's links."""
    return rewritten(markdown, _SOURCES[page.file.src_uri], ROOT)


def on_config(config: Any) -> Any:
    """Name notebooks in the navigation by the pages that they become."""

    def renamed(item: Any) -> Any:
        if isinstance(item, list):
            return [renamed(child) for child in item]
        if isinstance(item, dict):
            return {title: renamed(child) for title, child in item.items()}
        return item.removesuffix(".ipynb") + ".md" if item.endswith(".ipynb") else item

    config.nav = renamed(config.nav)
    return config
