"""Walking through folders, links to folders included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file below a folder, in no order; nothing that is hidden, or in what is.

    Links to folders are followed, as those who cut subsets of a data set expect; a folder that is
    reached twice, as by a link to a folder above it, is read once.
    """
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(root, followlinks=True):
        state = Path(where).stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(where, name)
            if not name.startswith(".") and file.is_file():
                yield file
