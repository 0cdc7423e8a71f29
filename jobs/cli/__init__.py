"""Room."""

from __future__ import annotations

from actlas.jobs.cli.app import main as main
