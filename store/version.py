"""Which actlas this is."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("actlas")
except PackageNotFoundError:
    VERSION = "0.0.0+source"


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions of what may have had a hand in a row."""
    found = {"python": platform.python_version(), "actlas": VERSION}
    for name in ("numpy", "numcodecs", "torch", "transformers", "tokenizers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
