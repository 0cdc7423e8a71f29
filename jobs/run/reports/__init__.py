"""Typed models of every ``--json`` output of the command line.

May be imported from here: pydantic, :mod:`actlas.store.format` and other data models; nothing that
computes. Start reading at :mod:`actlas.jobs.run.reports.base`; all outputs are listed in
:mod:`actlas.jobs.run.reports.schemas`, which also writes ``docs/json``.
"""
