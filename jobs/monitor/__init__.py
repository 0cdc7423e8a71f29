"""Observation of a run: its statistics, its display, its heartbeat, its metrics.

May import :mod:`actlas.jobs.scheduler` and :mod:`actlas.store`; Ray only in ``prometheus``.
Start reading at :mod:`actlas.jobs.monitor.run_stats`.
"""
