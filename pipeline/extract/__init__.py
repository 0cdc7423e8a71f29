"""Extraction: from a shard of a plan to its activations, pooled rows and losses.

Imports: ``forward`` and below in pipeline, and the store.
Start with ``extract.py``.
"""
