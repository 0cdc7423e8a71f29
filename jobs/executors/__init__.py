"""Executors: each brings every shard of a job to a receipt, or into quarantine.

May be imported here: the scheduler, the monitor, the room of Ray; Ray itself only in ``ray*.py``.
Start reading at ``inline.py``, which is the specification; ``ray.py`` is the same in parallel.
"""
