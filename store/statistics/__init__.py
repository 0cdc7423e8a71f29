"""Statistics of activations that combine exactly: per block, per shard, and over a whole store.

Imports numpy only. Start reading in ``moments.py``, then ``shard.py`` and ``total.py``.
"""
