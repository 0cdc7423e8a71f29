"""Assignment of shards to workers, faults, deadlines, stopping; no Ray.

May import :mod:`actlas.jobs.logs`, ``formatting`` and ``redaction``, and :mod:`actlas.store`.
Start reading at :mod:`actlas.jobs.scheduler.protocols`, then ``driver``.
"""
