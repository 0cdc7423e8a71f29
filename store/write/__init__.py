"""Writing a store: its plan and documents once, then one shard after another, create-only.

May import: read, shards, ledger, format, objects, statistics, display. Not features or verify.
Start at ``commit.py`` for the write protocol, at ``create.py`` for how a store begins.
"""
