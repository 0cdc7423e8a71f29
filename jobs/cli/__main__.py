"""``python -m actlas.jobs.cli``: the same as the command ``actlas``."""

from __future__ import annotations

from actlas.jobs.cli.app import main

main()
