"""Hookpoints: names of tensors in a model, found by tracing a forward pass without values.

May import: ``pipeline.model`` and what it may import.
Start with ``names.py``: :func:`~actlas.pipeline.hookpoints.names.resolve`.
"""
