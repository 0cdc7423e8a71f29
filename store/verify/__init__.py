"""Checking a store against its receipts and its plan, and repairing what is damaged.

May import every other room of the store, except the facade ``store.store``.
Start at ``verify.py`` for what is checked, at ``repair_shard.py`` for how a shard is repaired.
"""
