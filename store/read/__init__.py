"""Reading a store: rows, activations, documents, pooled rows and statistics, in numpy.

Imports ``ledger``, ``shards``, ``format``, ``statistics``, ``objects`` and ``display``. Start
reading in ``reader.py``: ``StoreReader`` is what every other room takes.
"""
