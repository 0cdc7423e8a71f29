"""Shards: encoding, writing and reading of one object, and lazy arrays over all of them.

Imports ``format``, ``objects`` and ``errors``, never the ledger: a ``ShardGuard`` stands for it.
Start reading in ``lazy_array.py``.
"""
