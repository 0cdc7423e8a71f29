"""Which actlas this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("actlas")
except PackageNotFoundError:
    VERSION = "0.0.0+source"
