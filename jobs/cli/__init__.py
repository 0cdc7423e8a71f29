"""Command line: one module per command, which parses options, calls a function, and prints.

Anything of actlas may be imported here, heavy libraries only inside of commands; click only here.
Start reading at :mod:`actlas.jobs.cli.app`; options come from :mod:`actlas.jobs.cli.options`.
"""

from __future__ import annotations

from actlas.jobs.cli.app import main as main
