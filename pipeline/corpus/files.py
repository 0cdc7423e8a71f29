"""The files of a corpus: which of a folder's or a glob's are read, and which are not, and why."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from actlas.pipeline.corpus.readers import KNOWN, suffix_of
from actlas.store.display.folders import kind_of_folder
from actlas.store.display.text import printable
from actlas.store.errors import CorpusError

SHOWN_NAMES = 4
"""Names of files that a line about the left-out ones gives."""

SHOWN_CHARACTERS = 300
"""Characters of a name that such a line gives; a store records the line."""

_ABOUT = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
"""Files about a data set, that the ``datasets`` library writes beside its records."""

_HIDDEN = "hidden"
_UNKNOWN = "of a kind that is not read"
_NOTES = ".txt next to files of records (a glob reads them)"
_METADATA = "about the data set"
_CACHE = "beside a saved data set, and not of it"
_NO_FILE = "no regular file (a broken link, a pipe)"
_AGAIN = "folder that was already read by another name"


@dataclass
class LeftOut:
    """Files that are not read, by reason.

    Attributes
    ----------
    n_files : Counter of str
        Files of each reason; a hidden folder counts as one.
    names : dict of str to list of str
        The first names of each reason.
    """

    n_files: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count a file."""
        self.n_files[reason] += 1
        names = self.names.setdefault(reason, [])
        if len(names) < SHOWN_NAMES:
            names.append(name)

    def lines(self) -> tuple[str, ...]:
        """Return a line for each reason, with the number of files and the first of their names."""
        found = []
        for reason, n in sorted(self.n_files.items()):
            names = ", ".join(map(_shown, sorted(self.names[reason])))
            more = f" and {n - SHOWN_NAMES:,} more" if n > SHOWN_NAMES else ""
            found.append(f"{n:,} {reason}: {names}{more}")
        return tuple(found)


def _shown(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}…"


class CorpusFiles(NamedTuple):
    """Files of a corpus.

    Attributes
    ----------
    files : list of Path
        The files in the order in which they are read.
    root : Path
        The folder that sources are named relative to.
    left_out : LeftOut
        The files found that are not read.
    """

    files: list[Path]
    root: Path
    left_out: LeftOut


def find_files(pattern: str) -> CorpusFiles:
    """Return the corpus files of a file, folder or glob, sorted.

    Parameters
    ----------
    pattern : str
        A path or a glob. A folder that a glob matches is read as one.

    Raises
    ------
    CorpusError
        There are none, or a folder may not be read.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        if kind := kind_of_folder(path):
            raise CorpusError(
                f"{pattern}: got {kind}, expected a corpus: a file, folder or glob of {KNOWN}; "
                "hf:NAME[:SPLIT]; or builtin:NAME.",
                path=pattern,
            )
        left_out = LeftOut()
        every = choose_files([path], path, left_out, _is_record_file)
        files = [file for file in every if not _is_note(file)] or every
        for file in sorted({*every} - {*files}):
            left_out.add(_NOTES, file.relative_to(path).as_posix())
        if not files:
            also = "".join(f" There are {line}." for line in left_out.lines())
            raise CorpusError(
                f"{pattern}: this folder has no corpus files in it. Expected {KNOWN}.{also}",
                path=pattern,
            )
        return CorpusFiles(files, path, left_out)
    if path.exists():
        if suffix_of(path) is None:
            raise CorpusError(
                f"{pattern}: got a file with the suffix {path.suffix!r}, expected one of {KNOWN}.",
                path=pattern,
            )
        return CorpusFiles([path], path.parent, LeftOut())
    matches, root = matched(path)
    left_out = LeftOut()
    files = choose_files(matches, root, left_out, _is_record_file)
    if not files:
        what = "there is no such path"
        if matches:
            what = f"none of its {len(matches)} matches is a corpus file"
        raise CorpusError(
            f"{pattern}: {what}. Expected a file, folder or glob of {KNOWN}; hf:NAME[:SPLIT]; or "
            "builtin:NAME.",
            path=pattern,
        )
    return CorpusFiles(files, root, left_out)


def matched(pattern: Path) -> tuple[list[Path], Path]:
    """Return what a glob matches, sorted, and the folders before its first wildcard.

    Parameters
    ----------
    pattern : Path
        The glob.
    """
    root = pattern
    while glob.has_magic(str(root)):
        root = root.parent
    matches = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - hidden files as in a shell
    return sorted(map(Path, matches)), root


def choose_files(
    matches: Iterable[Path], root: Path, left_out: LeftOut, chosen: Callable[[Path], str | None]
) -> list[Path]:
    """Return the chosen files among some paths, and below those that are folders, sorted.

    Parameters
    ----------
    matches : iterable of Path
        The files and folders.
    root : Path
        The folder that names are relative to.
    left_out : LeftOut
        Receives the other files.
    chosen : callable
        Returns the reason why a file is left out, or None.

    Raises
    ------
    CorpusError
        See :func:`files_below`.
    """
    files: set[Path] = set()
    for match in matches:
        if match.is_dir():
            found = files_below(match, root, left_out, chosen)
        else:
            found = _chosen([match], root, left_out, chosen)
        files.update(found)
    return sorted(files)


def _is_note(path: Path) -> bool:
    return (suffix_of(path) or "").startswith(".txt")


def _is_record_file(path: Path) -> str | None:
    """Return the reason why a file is none of records or text; None if it is one."""
    if path.name in _ABOUT:
        return _METADATA
    return None if suffix_of(path) else _UNKNOWN


def files_below(
    root: Path, named_from: Path, left_out: LeftOut, chosen: Callable[[Path], str | None]
) -> Iterator[Path]:
    """Yield every chosen file below a folder, in no order, without hidden files and folders.

    Links to folders are followed, since subsets of a data set are often made of links; a folder
    that is reached twice, as through a link to a folder above it, is read once. Of a folder that
    ``datasets.save_to_disk`` wrote, the files are read that it names.

    Parameters
    ----------
    root : Path
        The folder.
    named_from : Path
        The folder that names are relative to.
    left_out : LeftOut
        Receives the other files.
    chosen : callable
        Returns the reason why a file is left out, or None.

    Raises
    ------
    CorpusError
        A folder may not be read, or a saved data set lacks one of its files.
    """
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        here = Path(where)
        state = here.stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            left_out.add(_AGAIN, here.relative_to(named_from).as_posix() + "/")
            continue
        seen.add((state.st_dev, state.st_ino))
        for name in folders:
            if name.startswith("."):
                left_out.add(_HIDDEN, (here / name).relative_to(named_from).as_posix() + "/")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        saved = _saved_files(here, names)
        files = []
        for file in sorted(here / name for name in names):
            if saved is not None and file.suffix == ".arrow" and file.name not in saved:
                left_out.add(_CACHE, file.relative_to(named_from).as_posix())
            else:
                files.append(file)
        yield from _chosen(files, named_from, left_out, chosen)


def _chosen(
    files: Iterable[Path], named_from: Path, left_out: LeftOut, chosen: Callable[[Path], str | None]
) -> Iterator[Path]:
    for file in files:
        if file.name.startswith("."):
            reason: str | None = _HIDDEN
        elif not file.is_file():
            reason = _NO_FILE
        else:
            reason = chosen(file)
        if reason is None:
            yield file
        else:
            left_out.add(reason, file.relative_to(named_from).as_posix())


def _saved_files(folder: Path, names: list[str]) -> set[str] | None:
    """Return the files of a data set that ``datasets`` saved here; None where it saved none."""
    if not {"state.json", "dataset_info.json"} <= {*names}:
        return None
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = {str(entry["filename"]) for entry in state["_data_files"]}
    except (ValueError, LookupError, TypeError) as error:
        raise CorpusError(
            f"{folder}/state.json: expected the state of a saved data set, with the names of its "
            f"files in _data_files ({type(error).__name__}). Save the data set again.",
            path=str(folder),
        ) from error
    missing = sorted(files - {*names})
    if missing or state.get("_indices_data_files"):
        what = f"its file {missing[0]!r} is missing" if missing else "it has a table of indices"
        raise CorpusError(
            f"{folder}: a saved data set, and {what}. Save it again, with save_to_disk of "
            "datasets 2 or later.",
            path=str(folder),
        )
    return files


def _unreadable(error: OSError) -> None:
    raise CorpusError(
        f"{error.filename}: {error.strerror}. Expected a folder that this user may read.",
        path=str(error.filename),
    ) from error
