"""Links between the pages: what lies outside docs/ becomes a page of the site.

In an editor, and where the repository is shown, a page links to files by their paths. The site has
only what is in docs/, so each other file becomes a page under ``repository/``, and the links are
rewritten. No address of a host is needed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
"""A link or picture of Markdown: before the target, the target, after it."""

_FENCED = re.compile(r"(```.*?```)", re.DOTALL)
LANGUAGES = {".py": "python", ".sh": "sh", ".yaml": "yaml", ".yml": "yaml", ".cff": "yaml"}


def local_targets(text: str) -> Iterator[str]:
    """Yield the targets of the links of a page that are paths.

    Parameters
    ----------
    text : str
        Markdown.
    """
    for part in _FENCED.split(text)[::2]:
        for match in LINK.finditer(part):
            if "://" not in match[2] and not match[2].startswith("mailto:"):
                yield match[2]


def repository_path(source: str, target: str) -> str:
    """Return the path in the repository that a link leads to.

    Parameters
    ----------
    source : str
        The path of the file with the link, from the repository's root.
    target : str
        The link's target.

    Examples
    --------
    >>> repository_path("docs/guides/localize.md", "../../README.md")
    'README.md'
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def site_path(path: str, root: Path) -> str:
    """Return the site's source file for a path of the repository.

    Parameters
    ----------
    path : str
        From the repository's root.
    root : Path
        The repository.
    """
    inside = path.removeprefix("docs/") if path.startswith("docs/") else None
    if (root / path).is_dir():
        return f"{inside or 'repository/' + path}/index.md"
    if inside is not None:
        return re.sub(r"\.ipynb$", ".md", inside)
    return f"repository/{path}" + ("" if path.endswith(".md") else ".md")


def rewritten(text: str, source: str, root: Path) -> str:
    """Return a page with its links as the site needs them.

    Parameters
    ----------
    text : str
        Markdown.
    source : str
        The page's path, from the repository's root.
    root : Path
        The repository.
    """
    here = posixpath.dirname(site_path(source, root))

    def replace(match: re.Match[str]) -> str:
        if "://" in match[2] or match[2].startswith("mailto:"):
            return match[0]
        target = site_path(repository_path(source, match[2]), root)
        return match[1] + posixpath.relpath(target, here or ".") + match[3]

    parts = _FENCED.split(text)
    parts[::2] = [LINK.sub(replace, part) for part in parts[::2]]
    return "".join(parts)


def page_of(path: str, root: Path) -> str:
    """Return a file or folder of the repository as Markdown.

    Parameters
    ----------
    path : str
        From the repository's root; it exists.
    root : Path
        The repository.
    """
    place = root / path
    if place.is_dir():
        names = sorted(child.name for child in place.iterdir() if child.is_file())
        return f"# {path}\n\n" + "\n".join(f"- [{name}]({name})" for name in names)
    text = place.read_text()
    if path.endswith(".md"):
        return text
    fence = "````"
    return f"# {path}\n\n{fence}{LANGUAGES.get(place.suffix, 'text')}\n{text}\n{fence}\n"
