"""The version of actlas, and of the libraries that affect a row."""

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
    """Return the versions of Python, actlas, and the libraries that affect the values of a row."""
    found = {"python": platform.python_version(), "actlas": VERSION}
    for name in ("numpy", "numcodecs", "torch", "transformers", "tokenizers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
