"""``python -m actlas.jobs.cli``, which is the command ``actlas``."""

from __future__ import annotations

from actlas.jobs.cli.app import main

main()
