"""Runs from Python, without a terminal: extract, repair, status, ablate, and their shared parts.

May be imported here: the executors and the rooms of jobs below them, pipeline, analysis, store; not
click. Start reading at ``run.py`` (one run of any job), then ``work.py`` and ``outcome.py``.
"""
